"""Variants of bundles with several outputs: one gate on the features, one on each output, which refusals name."""

from dataclasses import replace

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bundle import Target
from exporters.export import Draft
from exporters.gate import PrecisionError, drawn_regressions
from exporters.int8 import quantise, quantise_outputs
from exporters.precision import convert, features
from exporters.tasks import Task, export_multitask
from exporters.variants import Bound, export_within
from exporters.worth import Labelled
from models.data.recordings import Recordings, save
from models.heads.head import Head
from models.heads.regression_prior import RegressionPrior, RegressionSettings
from service.app import create_app
from tests.cli.test_cli import run
from tests.conftest import running
from tests.exporters.test_int8 import deep_graph, judged, separable
from tests.exporters.test_precision import SPEC, windows
from tests.exporters.test_variants import MILLISECONDS, timed
from tests.service.test_multitask import ok, settings_on
from tests.tiny import LABELS
from tests.tiny_outputs import write_tiny_outputs

TARGET = Target(name="force", unit="N")


def force(graph, columns=slice(None), usual=1.0):
    """A prior of one target that follows from the features; `usual` is what the shared head is off by."""
    z = features(graph, SPEC, windows(1000))[:, columns].astype(np.float64)
    weight = np.ones((1, z.shape[1])) / z.std()
    x = np.concatenate([z, np.ones((len(z), 1))], 1)
    settings = RegressionSettings(windows=30.0, farthest=2.0)
    head = Head(weight, np.array([-float((z @ weight.T).mean())]))
    return RegressionPrior((TARGET.name,), head, x.T @ x / len(x), np.array([usual**2]), settings)


def several(folder, usual=1.0, loud=None):
    """Labels along the direction in which noise varies most, and a force; and the same of two features."""
    graph = deep_graph(loud=loud)
    prior = bundles.load(separable(folder / "source", graph)).prior
    tasks = [
        Task("gesture", labels=LABELS, prior=prior),
        Task("force", targets=(TARGET,), prior=force(graph, usual=usual)),
        Task("pull", targets=(TARGET,), prior=force(graph, slice(0, 2)), features=((0, 2),)),
    ]
    path = export_multitask(graph, tasks, folder / "models", name="arm", input_spec=SPEC, preprocessing="none")
    return path, folder / "source" / "conv" / "1"


def forces(bundle, labels, rng, noise=0.5):
    """What each output is judged on: the labels, and what people pull by on the same windows; one in two for `pull`."""
    z = features(bundles.load(bundle).backbone, SPEC, labels.x)
    _, every, some = bundles.load(bundle).outputs
    values = every.regression.generic.logits(z)
    force = replace(labels, y=values + noise * rng.standard_normal(values.shape))
    rows = np.arange(0, len(z), 2)
    values = some.regression.generic.logits(z[rows, :2])
    y = values + noise * rng.standard_normal(values.shape)
    pull = Labelled(labels.x, y, labels.user[rows], labels.repetition[rows], rows)
    return {"gesture": labels, "force": force, "pull": pull}


def test_an_output_keeps_its_feature_space_where_its_heads_say_the_same(tmp_path):
    path, _ = several(tmp_path)
    made, found = convert(path, tmp_path / "out", windows=windows())
    old, new = bundles.load(path), bundles.load(made)
    assert (new.manifest.precision, new.manifest.names) == ("fp16", ("gesture", "force", "pull"))
    assert 0.99 < found.outputs["gesture"].decisions < 0.999
    assert 0 < found.outputs["force"].change < 0.05
    spaces = [
        (one.manifest.feature_space, two.manifest.feature_space)
        for one, two in zip(old.outputs, new.outputs, strict=True)
    ]
    assert spaces[0][1] == bundles.feature_space(new.backbone) != spaces[0][0]
    assert spaces[1][1] == spaces[1][0]
    record = new.manifest.provenance["precision"]["outputs"]
    assert {name: said["feature_space_kept"] for name, said in record.items()}["force"] is True
    lines = (made / bundles.CARD).read_text().splitlines()
    told = {name: next(line for line in lines if line.startswith(f"| {name} |")) for name in ("gesture", "force")}
    assert told["gesture"].endswith("| of its own |")
    assert told["force"].endswith("| kept |")


def test_half_precision_is_refused_for_the_output_that_it_moves_too_much(tmp_path):
    path, _ = several(tmp_path, usual=1e-6)
    with pytest.raises(PrecisionError, match=r"output 'force': values change by \S+% of the shared head's usual error"):
        convert(path, tmp_path / "out", windows=windows())
    assert not (tmp_path / "out").exists()


async def test_eight_bits_are_judged_output_by_output(tmp_path, rng):
    path, labelled = several(tmp_path)
    given = judged(labelled)
    made, found, tasks = quantise_outputs(path, tmp_path / "models", windows(), forces(path, given, rng))
    new = bundles.load(made)
    assert set(tasks) == {"gesture", "force", "pull"}
    assert tasks["gesture"].shared == 1.0
    (before,), (after,) = tasks["force"].rmse, tasks["force"].rmse_int8
    assert before == pytest.approx(0.5, rel=0.2)
    assert before != after == pytest.approx(before, rel=0.05)
    assert tasks["force"].personal < 1
    assert found.windows == len(given.x), "what both are labelled on is seen once"
    assert new.manifest.provenance["precision"]["tasks"]["force"]["people"] == 3
    spaces = [each.manifest.feature_space for each in new.outputs]
    assert spaces[0] == bundles.feature_space(new.backbone) != bundles.load(path).manifest.feature_space
    assert (spaces[1].endswith("/force"), spaces[2].endswith("/pull")) == (True, True)
    card = (made / bundles.CARD).read_text()
    assert f"shared head's RMSE {before:.4g} and {after:.4g}" in card
    assert len([line for line in card.splitlines() if line.endswith("| 3 | of its own |")]) == 3
    async with running(create_app(settings_on(tmp_path / "models", tmp_path))) as client:
        said = ok(await client.post("/v2/models/arm/predict", json={"inputs": windows(3).tolist()}))
        assert (said["model_version"], set(said["outputs"])) == ("2", {"gesture", "force", "pull"})


def test_eight_bits_are_refused_for_the_output_that_loses_too_much(tmp_path, rng):
    path, labelled = several(tmp_path, usual=1e-3)
    given = judged(labelled)
    by_output = forces(path, given, rng, noise=1e-3)
    with pytest.raises(PrecisionError, match=r"output 'force': errors grow by \S+% of the shared head's usual one"):
        quantise_outputs(path, tmp_path / "models", windows(), by_output)
    with pytest.raises(PrecisionError, match=r"output 'force': values change by"):
        quantise_outputs(path, tmp_path / "models", windows(), {"gesture": given})
    with pytest.raises(PrecisionError, match="there is no output 'side' to be judged; it has gesture, force, pull"):
        quantise_outputs(path, tmp_path / "models", windows(), {"side": given})
    with pytest.raises(PrecisionError, match="there is no output '' to be judged"):
        quantise(path, tmp_path / "models", windows(), given)
    assert bundles.versions(tmp_path / "models" / "arm") == [1]


def test_the_fastest_inside_a_bound_keeps_every_output(tmp_path, rng):
    path, labelled = several(tmp_path)
    old, given = bundles.load(path), judged(labelled)
    draft = Draft(old.manifest, {name: old.file(name) for name in old.manifest.files}, windows())
    by_output = forces(path, given, rng)
    eight = dict.fromkeys(("int8", "int8 (2)", "int8 (3)"), 1.0)
    made, rows = export_within(draft, tmp_path / "out", Bound(2.0), by_output, timed=timed({**MILLISECONDS, **eight}))
    (taken,) = (row for row in rows if row.verdict == "taken")
    assert taken.precision == "int8"
    assert set(taken.outputs) == {"gesture", "force", "pull"}
    new = bundles.load(made)
    assert new.outputs[1].manifest.feature_space == bundles.feature_space(new.backbone, (), "force")
    assert new.outputs[2].manifest.feature_space == bundles.feature_space(new.backbone, ((0, 2),), "pull")
    card = (made / bundles.CARD).read_text()
    assert "| decisions kept | gesture | force | pull | |" in card
    line = next(line for line in card.splitlines() if line.startswith(f"| {taken.name}: "))
    assert "RMSE " in line
    alone = {"force": by_output["force"]}
    _, rows = export_within(draft, tmp_path / "one", Bound(5.0), alone, timed=timed(MILLISECONDS))
    assert next(row.verdict for row in rows if row.name == "int8").startswith("refused: output 'gesture': ")
    del by_output["pull"]
    _, rows = export_within(draft, tmp_path / "some", Bound(5.0), by_output, timed=timed(MILLISECONDS))
    refused = next(row.verdict for row in rows if row.name == "int8")
    assert refused.startswith("refused: output 'pull': values change by ")


def test_people_drawn_around_a_regression_differ_by_what_it_errs(rng):
    prior = force(deep_graph(), usual=3.0)
    z = features(deep_graph(), SPEC, windows(1000))
    shared = prior.generic.logits(z)
    drawn = drawn_regressions(prior, 400, rng)
    square = np.mean([((head.logits(z) - shared) ** 2).mean() for head in drawn])
    assert square == pytest.approx(9.0, rel=0.15)


def write_noise(folder, people, rng):
    """People whose two channels are noise, labelled in turns."""
    folder.mkdir()
    for person in range(people):
        start = np.arange(0, 64 * 12, 64)
        rec = Recordings.build(
            rng.standard_normal((64 * 12, 2)).astype(np.float32), start, start + 64, np.arange(12) % 3,
            np.arange(12) // 6, label_names=LABELS, fs=100.0, subject=f"p{person}",
        )  # fmt: skip
        save(folder / f"p{person}.npz", rec)


def test_the_command_takes_data_by_output(tmp_path, rng):
    path, _ = several(tmp_path)
    write_noise(tmp_path / "data", 12, rng)
    line = ["bundle", "convert", str(path), "--models", str(tmp_path / "models"), "--precision"]
    int8 = ["int8", "--held-out", "p0,p1,p2"]
    data = str(tmp_path / "data")
    for options, sentence in (
        ([*int8, "--data", data, "--data", data], f"say which one {data} is labelled for, as --data gesture={data}"),
        ([*int8, "--data", f"side={data}"], "side="),
        ([*int8, "--data", f"force={data}"], "tells nothing of force: it has neither their labels nor their names"),
    ):
        done = run(*line, *options)
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 1, said
        assert sentence in said
        assert "Traceback" not in said
    done = run(*line, "fp16", "--data", data)
    assert "gesture: 99." in done.stdout, done.stderr
    assert "of the shared head's usual error, its feature space is kept" in done.stdout
    done = run(*line, *int8, "--data", f"gesture={data}")
    said = done.stdout + done.stderr
    assert ("written to" in said and "gesture: 3 people: shared head right" in said) or "output 'gesture'" in said, said


def test_the_command_converts_synthetic_windows_of_a_small_bundle(tmp_path):
    path = write_tiny_outputs(tmp_path)
    done = run("bundle", "convert", str(path), "--models", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "angles: values change by" in done.stdout
    assert bundles.load(tmp_path / "arm" / "2").manifest.precision == "fp16"


def test_eight_bits_of_a_model_of_targets_alone(tmp_path, rng):
    path, labelled = several(tmp_path)
    given, old = forces(path, judged(labelled), rng)["force"], bundles.load(path)
    alone = old.manifest.of_output("force").model_copy(
        update={"name": "force", "version": 1, "output": "", "feature_space": "fs-of-one-output", "files": {}}
    )
    files = {bundles.BACKBONE: old.backbone, bundles.PRIOR: old.file("prior.force.safetensors")}
    one = bundles.write(tmp_path / "alone", alone, files)
    made, found, task = quantise(one, tmp_path / "alone", windows(), given)
    assert (found.outputs[""].decisions, len(task.rmse)) == (1.0, 1)
    card = (made / bundles.CARD).read_text()
    assert f"| values | values within {found.outputs[''].change:.2%} of the usual error | shared head's RMSE" in card
