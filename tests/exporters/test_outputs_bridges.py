"""Bridges of bundles with several outputs: one for each output with labels, through a gate of its own."""

import asyncio

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bridge import BridgeError, bridge, bridge_outputs
from exporters.tasks import Task, add_task, export_multitask
from models.data.recordings import load_folder
from service.app import create_app
from tests.cli.test_cli import run
from tests.conftest import running
from tests.exporters.test_multitask_bundle import shown
from tests.service.test_multitask import ANA, MODEL, ok, predicted, settings_on
from tests.tiny import LABELS, tiny_windows
from tests.tiny_outputs import SPEC, angles, gesture, write_tiny_outputs
from tests.upgraded import MIX, SHIFT, upgraded_graph, upgraded_prior, write_people


def write_upgraded(models):
    """The next version: the same outputs over features that are mixed."""
    labels = [Task(name, labels=LABELS, prior=upgraded_prior()) for name in ("gesture", "side")]
    tasks = [labels[0], angles(), labels[1]]
    return export_multitask(upgraded_graph(), tasks, models, name="arm", input_spec=SPEC, preprocessing="none")


@pytest.fixture
def folder(tmp_path, rng):
    write_tiny_outputs(tmp_path / "models", gesture(), angles(), gesture("side"))
    write_upgraded(tmp_path / "models")
    write_people(tmp_path / "data", 5, rng)
    return tmp_path


def command(folder, *data):
    model = folder / "models" / "arm"
    line = ["bridge", "--from", str(model / "1"), "--to", str(model / "2")]
    return run(*line, *(word for each in data for word in ("--data", each)))


async def test_users_of_every_output_come_over_their_bridge(folder, rng):
    data = folder / "data"
    done = command(folder, f"gesture={data}", f"side={data}")
    assert done.returncode == 0, done.stderr
    assert "gesture: 5 left-out people" in done.stdout
    assert "side: 5 left-out people" in done.stdout
    old, new, bridged = (bundles.load(folder / "models/arm" / str(n)) for n in (1, 2, 3))
    assert (bridged.backbone, bridged.manifest.manifest_version) == (new.backbone, new.manifest.manifest_version)
    for one, other in zip(old.outputs[::2], bridged.outputs[::2], strict=True):
        space = one.manifest.feature_space
        assert list(other.bridges) == [space]
        assert other.manifest.bridges[space].parity.passes
        assert np.allclose(other.bridges[space].weight, MIX.T, atol=1e-3)
        assert np.allclose(other.bridges[space].offset, SHIFT, atol=1e-2)
    assert bridged.outputs[1].bridges == {}
    assert [b["output"] for b in bridged.manifest.provenance["bridges"]] == ["gesture", "side"]
    assert "/side`)" in (bridged.path / bundles.CARD).read_text()
    assert set(bundles.load(add_task(bridged.path, folder / "more", angles("more"))).outputs[2].bridges) == set(
        bridged.outputs[2].bridges
    )

    hidden = folder / "hidden"
    hidden.mkdir()
    for version in ("2", "3"):
        (folder / "models/arm" / version).rename(hidden / version)
    async with running(create_app(settings_on(folder / "models", folder))) as client:
        x, labels = tiny_windows(10, rng, 1.5)
        sent = {"inputs": x.tolist(), "labels": labels, "activate": "always"}
        for task in ("gesture", "side"):
            ok(await client.post(f"{ANA}/calibrations?task={task}", json=sent), 201)
        (hidden / "3").rename(folder / "models/arm/3")
        ok(await client.post("/v2/repository/models/arm/load"))
        for task in ("side", "gesture"):
            begun = ok(await client.post(f"{MODEL}/users:recalibrate?task={task}", json={}), 202)
            async with asyncio.timeout(20):
                while (found := ok(await client.get(f"/v2/operations/{begun['operation']}")))["state"] != "done":
                    await asyncio.sleep(0.02)
            assert found["progress"]["moved"] == 1, found
        report = ok(await client.get(f"{ANA}?task=side"))["last_calibration"]
        assert (report["origin"], report["by"], report["task"]) == ("recalibration", "bridge", "side")
        answer = await predicted(client, x[:2], "ana")
        assert answer["model_version"] == "3"
        assert {name: o["head"] for name, o in answer["outputs"].items()} == {
            "gesture": "personal", "angles": "shared", "side": "personal",
        }  # fmt: skip


def test_a_bridge_that_is_too_weak_is_left_out_and_the_others_are_written(tmp_path, rng):
    models = tmp_path / "models"
    one = Task("side", labels=LABELS, population=shown(), features=((3, 4),))
    write_tiny_outputs(models, gesture(), angles(), one)
    write_upgraded(models)
    write_people(tmp_path / "data", 5, rng)
    people = load_folder(tmp_path / "data")
    said = list[str]()
    path, found = bridge_outputs(
        models / "arm/1", models / "arm/2", {"gesture": people, "side": people}, models, said.append
    )
    assert {name: fitted.parity.passes for name, fitted in found.items()} == {"gesture": True, "side": False}
    assert {text.partition(":")[0] for text in said} == {"gesture", "side"}
    made = bundles.load(path)
    assert [len(each.bridges) for each in made.outputs] == [1, 0, 0]
    with pytest.raises(BridgeError, match="is not written: side: 5 left-out people"):
        bridge_outputs(models / "arm/1", models / "arm/2", {"side": people}, models)
    assert bundles.versions(models / "arm") == [1, 2, 3]


def test_what_cannot_be_bridged_names_the_output(folder):
    models, data = folder / "models", folder / "data"
    people = load_folder(data)
    for name, sentence in (
        ("angles", "output 'angles': there is no bridge between heads of targets"),
        ("force", "has no output 'force'; it has gesture, angles, side"),
        ("", "has no output ''; it has gesture, angles, side"),
    ):
        with pytest.raises(BridgeError, match=sentence):
            bridge_outputs(models / "arm/1", models / "arm/2", {name: people}, models)
    with pytest.raises(BridgeError, match="has no output ''"):
        bridge(models / "arm/1", models / "arm/2", people, models)
    with pytest.raises(BridgeError, match=r"output 'side': both compute feature space fs-.*/side"):
        bridge_outputs(models / "arm/1", models / "arm/1", {"side": people}, models)
    write_tiny_outputs(models, gesture(), angles(), name="two")
    with pytest.raises(BridgeError, match="has no output 'side' that its users could move from"):
        bridge_outputs(models / "two/1", models / "arm/2", {"side": people}, models)
    done = command(folder, str(data))
    assert done.returncode == 1
    assert f"as --data gesture={data}" in " ".join(done.stderr.split())
