"""A bundle of several outputs is whole, or it is refused; what is added changes nothing of what was there."""

import json
import subprocess
import sys

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bundle import BundleError, Manifest
from exporters.bundle_outputs import check_ranges
from exporters.classification import fit_classification
from exporters.regression import Population
from exporters.tasks import Task, add_task, columns
from models.heads.calibration import calibrate
from models.heads.prior import Prior
from tests.tiny import DIM, LABELS, tiny_graph, tiny_prior, tiny_windows, write_tiny_bundle
from tests.tiny_outputs import angles, gesture, write_tiny_outputs
from tests.tiny_regression import NAMES, TARGETS, population
from tests.upgraded import write_bridged_bundle


@pytest.fixture
def folder(tmp_path):
    return write_tiny_outputs(tmp_path)


def shown(people=6, repetitions=3, per_class=8, noise=0.8, seed=0):
    """Tiny windows of people who differ from each other."""
    rng = np.random.default_rng(seed)
    parts, values, users, ids = [], [], [], []
    for user in range(people):
        offset = rng.standard_normal(DIM)
        for repetition in range(repetitions):
            x, labels = tiny_windows(per_class, rng, offset, noise)
            parts.append(x)
            values += [LABELS.index(label) for label in labels]
            users += [user] * len(x)
            ids += [repetition] * len(x)
    return Population(np.concatenate(parts), np.array(values), np.array(users), np.array(ids))


def test_what_is_exported_is_loaded(folder):
    bundle = bundles.load(folder)
    manifest = bundle.manifest
    assert manifest.names == ("gesture", "angles")
    assert manifest.manifest_version == bundles.SEVERAL_OUTPUTS_VERSION
    assert (manifest.task, manifest.labels, manifest.outputs[0].targets) == ("classification", LABELS, TARGETS)
    one, two = bundle.outputs
    assert (one.manifest.output, one.manifest.outputs, one.manifest.labels) == ("gesture", (), LABELS)
    assert (two.manifest.task, two.manifest.labels, two.regression.targets) == ("regression", (), NAMES)
    assert np.array_equal(one.prior.means, tiny_prior().means)
    assert set(manifest.files) == {"backbone.onnx", "prior.safetensors", "prior.angles.safetensors", "MODEL_CARD.md"}
    assert manifest.feature_space == bundles.feature_space(tiny_graph())
    assert two.manifest.feature_space == f"{manifest.feature_space}/angles"
    card = (folder / bundles.CARD).read_text()
    assert "Output `gesture`: heads for 3 labels" in card
    assert "Output `angles`: heads for 2 targets: elbow [deg], wrist [deg]" in card
    assert [line for line in card.splitlines() if "Left-out" in line] == [
        "## Left-out population users: gesture",
        "## Left-out population users: angles",
    ]


def test_a_bundle_of_one_output_says_nothing_of_several(tmp_path):
    bundle = bundles.load(write_tiny_bundle(tmp_path))
    assert (bundle.outputs, bundle.manifest.names, bundle.manifest.head_dim) == ((), (), DIM)
    written = json.loads((bundle.path / bundles.MANIFEST).read_text())
    assert not {"output", "outputs", "features"} & set(written)


def test_an_added_output_changes_nothing_of_what_was_there(tmp_path):
    first = write_tiny_bundle(tmp_path, user_labels=2)
    old = bundles.load(first)
    new = bundles.load(add_task(first, tmp_path, angles(), called="gesture"))
    assert (new.path.name, new.manifest.names) == ("2", ("gesture", "angles"))
    for name in (bundles.BACKBONE, bundles.PRIOR):
        assert new.file(name) == old.file(name)
    assert new.manifest.feature_space == old.manifest.feature_space
    assert new.outputs[0].manifest.user_labels == 2
    assert new.manifest.provenance["added"] == [
        {"output": "angles", "to": {"version": 1, "digest": old.digest}, "people": 8, "windows": 720}
    ]
    third = bundles.load(add_task(new.path, tmp_path, angles("more", ((1, 3),))))
    assert third.manifest.names == ("gesture", "angles", "more")
    assert third.file("prior.angles.safetensors") == new.file("prior.angles.safetensors")
    assert third.outputs[2].manifest.feature_dim == 2
    assert third.outputs[1].manifest == new.outputs[1].manifest.model_copy(
        update={
            name: getattr(third.outputs[1].manifest, name) for name in ("version", "provenance", "created", "files")
        }
    )


def test_bridges_stay_where_an_output_is_added(tmp_path):
    bridged = write_bridged_bundle(tmp_path)
    new = bundles.load(add_task(bridged, tmp_path, angles(), called="gesture"))
    assert set(new.outputs[0].bridges) == set(new.bridges) == set(bundles.load(bridged).bridges)
    assert new.outputs[1].bridges == {}


def test_an_output_is_added_once_and_under_a_name(tmp_path):
    first = write_tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match="has no name yet: say how it is called"):
        add_task(first, tmp_path, angles())
    with pytest.raises(BundleError, match="has an output 'angles' already"):
        add_task(first, tmp_path, angles(), called="angles")
    second = add_task(first, tmp_path, angles(), called="gesture")
    with pytest.raises(BundleError, match="is named 'gesture'"):
        add_task(second, tmp_path, angles("more"), called="other")
    assert bundles.versions(first.parent) == [1, 2]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("both", labels=LABELS, targets=TARGETS, prior=tiny_prior()), "one of both"),
        (Task("nothing", labels=LABELS), "one of both"),
        (Task("Large", labels=LABELS, prior=tiny_prior()), "should match pattern"),
        (Task("a/b", labels=LABELS, prior=tiny_prior()), "should match pattern"),
        (angles(features=((2, 5),)), "not ascending ranges within 4"),
        (angles(features=((2, 3), (0, 1))), "not ascending ranges within 4"),
        (gesture(features=((0, 2),)), "reads 2 features, and its prior is of 4"),
        (Task("two", labels=LABELS[:2], prior=tiny_prior()), "is for rest, fist, and its prior for rest, fist, open"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, task, message):
    with pytest.raises(ValueError, match=message):
        write_tiny_outputs(tmp_path, gesture("first"), task)
    assert not (tmp_path / "arm").exists() or bundles.versions(tmp_path / "arm") == []


def test_a_bundle_of_several_has_two_at_least(tmp_path):
    with pytest.raises(BundleError, match="has 2 to 16, not 1"):
        write_tiny_outputs(tmp_path, gesture())


def changed(folder, **change):
    file = folder / bundles.MANIFEST
    written = json.loads(file.read_text())
    outputs = [{**written["outputs"][0], **change.pop("other", {})}]
    file.write_text(json.dumps({**written, "outputs": outputs, **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": ""}, "have a name each"),
        ({"output": "angles"}, "have a name each"),
        ({"outputs": []}, "there are no others"),
        ({"feature_space": "fs-abc/gesture"}, "id without"),
        ({"features": [[0, 9]]}, "not ascending ranges"),
        ({"features": [[0, 2]]}, "the prior has 4 features"),
        ({"other": {"name": "none"}}, "does not end with /none"),
        ({"other": {"name": "none", "feature_space": "fs-12345/none"}}, "does not list prior.none.safetensors"),
        ({"other": {"task": "classification"}}, "output 'angles': a classification says under head"),
        ({"other": {"targets": []}}, "output 'angles': a regression has one of targets or more"),
        ({"other": {"features": [[3, 3]]}}, "output 'angles': features"),
        ({"other": {"colour": 1}}, "colour"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    changed(folder, **change)
    with pytest.raises(BundleError, match=message):
        bundles.load(folder)


def test_an_altered_prior_of_any_output_is_refused(folder):
    file = folder / "prior.angles.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(BundleError, match="altered"):
        bundles.load(folder)


def test_outputs_of_one_graph_have_feature_spaces_of_their_own():
    graph, named = tiny_graph(), [("", ()), ("", ((0, 2),)), ("a", ()), ("b", ()), ("a", ((0, 2),))]
    spaces = [bundles.feature_space(graph, features, output) for output, features in named]
    assert len(set(spaces)) == len(spaces)
    assert spaces[0] == bundles.feature_space(graph)


def test_ranges_are_columns():
    z = np.arange(10, dtype=np.float32).reshape(2, 5)
    assert columns(z, ((0, 1), (3, 5))).tolist() == [[0, 3, 4], [5, 8, 9]]
    assert columns(z, ()) is z
    check_ranges(((0, 2), (2, 5)), 5)


def test_a_classification_is_fitted_without_torch(tmp_path, rng):
    bundle = bundles.load(write_tiny_outputs(tmp_path, Task("gesture", labels=LABELS, population=shown()), angles()))
    prior, found = bundle.prior, bundle.manifest.evaluation["left_out_people"]
    assert isinstance(prior, Prior)
    assert found["people"] == 6
    assert found["accuracy"] > 0.8
    assert prior.hyper.evidence
    parts = [tiny_windows(6, rng, 1.0) for _ in range(2)]
    z = np.concatenate([x for x, _ in parts]).reshape(-1, 2, 2, 2).sum(3).reshape(-1, DIM)
    y = np.array([LABELS.index(label) for _, labels in parts for label in labels])
    assert calibrate(prior, z, y, np.repeat([0, 1], 18)).verdict.outcome in ("promoted", "kept", "blended")
    script = "import sys, exporters.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(10, np.int64)}, "one of each a window"),
        ({"y": np.zeros(24, np.float64)}, "one of each a window"),
        ({"y": np.zeros(24, np.int64)}, "each at least once"),
        ({"user": np.repeat([0, 1], 12)}, "3 people or more, not 2"),
        ({"z": np.full((24, DIM), np.nan)}, "not finite"),
    ],
)
def test_a_population_that_does_not_allow_a_fit_is_refused(rng, change, message):
    given = {
        "z": rng.standard_normal((24, DIM)),
        "y": np.arange(24) % 3,
        "user": np.repeat([0, 1, 2, 3], 6),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        fit_classification(**given, labels=LABELS)


def test_a_manifest_reads_what_it_writes(folder):
    manifest = bundles.load(folder).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    with pytest.raises(KeyError):
        manifest.of_output("force")
    assert population().values.shape[1] == len(manifest.outputs[0].targets)
