"""Several outputs judged on one set of data: recordings with arrays beside their labels, tables with a column each."""

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.gate import PrecisionError
from service.commands.conversion import _split
from service.commands.judging_outputs import of_recordings, of_table
from tests.recipes.test_further_tasks import headway, write
from tests.tiny_tasks import write_table


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def arm(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    headway(
        "train", "--data", data, "--out", folder / "arm", "--recipe", "handmade", "--set", "personal=16",
        "--task", "move=gesture", "--task", "effort", "--task", "posture",
    )  # fmt: skip
    return folder


def test_a_run_of_several_tasks_is_exported_within_a_bound(arm, data):
    said = headway(
        "export", arm / "arm", "--models", arm / "models", "--latency-ms", "1000",
        "--data", data, "--held-out", "*0*,*1*,*2*",
    )  # fmt: skip
    assert "move: " in said
    made = bundles.load(arm / "models" / "arm" / "1")
    assert made.manifest.names == ("move", "effort", "posture")
    record = made.manifest.evaluation["variants"]
    first = record["rows"][0]
    assert set(first["outputs"]) == {"move", "effort", "posture"}
    assert len(first["outputs"]["effort"]["rmse"]) == 1
    assert 0.5 < first["outputs"]["posture"]["shared"] <= 1
    card = (made.path / bundles.CARD).read_text()
    assert "| decisions kept | move | effort | posture | |" in card


def test_recordings_tell_what_they_know_of_the_same_windows(arm, data):
    headway("export", arm / "arm", "--models", arm / "told")
    manifest = bundles.load(arm / "told" / "arm" / "1").manifest
    found = of_recordings(manifest, data, "*", manifest.names)
    move, effort, posture = (found[name] for name in manifest.names)
    assert move.x is effort.x is posture.x
    assert len(move.y) == len(move.x), "every window has a label"
    assert (len(effort.y) < len(effort.x), len(posture.y) < len(posture.x)) == (True, True), "some are not known"
    assert effort.y.shape == (len(effort.rows), 1)
    assert move.people == 4
    assert len(np.unique(move.repetition[move.user == 0])) == 3
    assert list(of_recordings(manifest, data, "*", ("effort",))) == ["effort"]
    line = "bundle", "convert", arm / "told/arm/1", "--models", arm / "half", "--data", data
    said = headway(*line).replace("\n", " ")
    assert all(f"{name}: " in said for name in manifest.names)
    with pytest.raises(PrecisionError, match="tells nothing of other"):
        of_recordings(_named(manifest, "other"), data, "*", ("other",))


def _named(manifest, name):
    """The manifest, whose second output is called otherwise."""
    other = manifest.outputs[0].model_copy(update={"name": name, "targets": (_target(manifest, name),)})
    return manifest.model_copy(update={"outputs": (other, *manifest.outputs[1:])})


def _target(manifest, name):
    return manifest.outputs[0].targets[0].model_copy(update={"name": name})


def test_a_table_tells_what_it_knows_of_the_same_items(tmp_path):
    pytest.importorskip("PIL.Image")
    table = write_table(tmp_path / "data")
    manifest = _pictures()
    found = of_table(manifest, lambda name: b"", table, manifest.names)
    assert set(found) == {"colour", "lit"}
    assert found["colour"].x is found["lit"].x
    assert found["lit"].y.shape == (len(found["lit"].rows), 1)
    assert len(found["colour"].rows) < len(found["colour"].x)
    some = of_table(manifest, lambda name: b"", table, manifest.names, users="user0,user1")
    assert len(some["lit"].x) < len(found["lit"].x)
    assert some["lit"].people == 2
    with pytest.raises(PrecisionError, match=r"no user in .* matches 'nobody'; there are user0, user1"):
        of_table(manifest, lambda name: b"", table, manifest.names, users="nobody")
    with pytest.raises(PrecisionError, match="tells nothing of shape"):
        of_table(manifest, lambda name: b"", table, ("shape",))

    ranges, judged = _split(found, 0)
    assert len(ranges) + len(judged["lit"].x) == len(found["lit"].x)
    at = judged["lit"].rows
    same = [np.flatnonzero((found["lit"].x == row).all((1, 2, 3)))[0] for row in judged["lit"].x[at]]
    order = {row: i for i, row in enumerate(found["lit"].rows.tolist())}
    assert np.array_equal(judged["lit"].y, found["lit"].y[[order[int(i)] for i in same]])


def _pictures():
    """A manifest of pictures with what the table tells of: a colour, and how much is lit; and a shape."""
    from exporters.bundle_outputs import Output, Target
    from exporters.input_spec import InputSpec
    from exporters.media_spec import ImageMedia
    from tests.tiny import tiny_manifest
    from tests.tiny_media import COLOURS

    spec = InputSpec(
        datatype="UINT8", shape=(-1, 32, 32, 3), unit="grey levels", modality="image",
        media=ImageMedia(kind="image", resize=32),
    )  # fmt: skip
    lit = Output.model_construct(
        name="lit", feature_space="fs/lit", task="regression", targets=(Target(name="lit", unit="%"),), labels=()
    )
    shape = Output.model_construct(
        name="shape", feature_space="fs/shape", task="classification", targets=(), labels=("round", "square")
    )
    return tiny_manifest("pictures").model_copy(
        update={"input": spec, "labels": tuple(COLOURS), "output": "colour", "outputs": (lit, shape)}
    )
