"""The whole loop by the command line, on synthetic users of an armband that nothing was made for."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.export import export_run
from exporters.parity import ParityError
from models.data.recordings import load_folder
from models.data.synthetic import Design, write_folder
from service.commands.process import running_service


def headway(*arguments, fails=False):
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """Recordings of 10 electrodes at 500 Hz, 5 gestures; a run on six people, exported."""
    folder = tmp_path_factory.mktemp("loop")
    design = Design(channels=10, fs=500.0, labels=5, repetitions=3, sessions=2, seconds=2.0, correlation=0.8, seed=3)
    write_folder(folder / "data", 8, design)
    said = headway(
        "train", "--data", folder / "data", "--subjects", "*,!*_6,!*_7", "--recipe", "handmade", "--out", folder / "run"
    )
    assert "left-out people" in said
    said = headway("export", folder / "run", "--models", folder / "models", "--name", "band")
    assert "largest error" in said
    return folder


def test_the_bundle_is_whole(loop):
    manifest = bundles.load(bundles.resolve(loop / "models" / "band")).manifest
    assert manifest.input.window_shape == (10, 130)
    assert manifest.input.sample_rate == 500
    assert len(manifest.provenance["subjects"]) == 6
    assert manifest.parity["batches"] == [1, 2, 7, 64]
    assert manifest.provenance["command"].startswith("headway train")
    card = (loop / "models" / "band" / "1" / bundles.CARD).read_text()
    assert "Left-out population users" in card
    assert "verified" not in headway("bundle", "verify", loop / "models" / "band")
    assert "band" in headway("bundle", "list", "--models", loop / "models")


def test_evaluation_is_the_same_here_and_through_the_service(loop):
    found = {}
    for via in ("local", "http"):
        file = loop / f"{via}.json"
        said = headway(
            "evaluate", "--model", loop / "models" / "band", "--data", loop / "data", "--via", via, "--no-baselines",
            "--json", file, "--markdown", loop / f"{via}.md",
        )  # fmt: skip
        assert "below generic" in said
        found[via] = json.loads(file.read_text())
    # Batches of other sizes add up in another order: probabilities differ in the seventh digit.
    for method, by_protocol in found["local"]["users"].items():
        for protocol, by_user in by_protocol.items():
            for user, scores in by_user.items():
                assert found["http"]["users"][method][protocol][user] == pytest.approx(scores, abs=1e-5)
    assert found["local"]["outcomes"] == found["http"]["outcomes"]
    personal = found["local"]["table"]["personal head"]
    assert personal["2 cycles"]["users"] == 2
    generic = found["local"]["table"]["generic (0-shot)"]["0-shot"]
    assert personal["2 cycles"]["mean"]["accuracy"] >= generic["mean"]["accuracy"]


def test_people_of_the_training_are_not_scored_unnoticed(loop):
    said = headway(
        "evaluate", "--model", loop / "models" / "band", "--data", loop / "data", "--subjects", "*_0", fails=True
    )
    assert "trained on" in said


def test_calibrate_and_predict_by_command(loop, tmp_path):
    file = sorted((loop / "data").glob("*_6.npz"))[0]
    with running_service(loop / "models", tmp_path) as service:
        common = ("--url", service.url, "--model", "band", "--file", file)
        before = headway("predict", *common, "--user", "ana")
        assert "by the shared head" in before
        said = headway("calibrate", *common, "--user", "ana", "--repetitions", "0-1")
        assert "promoted" in said
        after = headway("predict", *common, "--user", "ana")
        assert "ana's head, version 1" in after
        assert "there is no model" in headway(
            "predict", "--url", service.url, "--model", "x", "--file", file, fails=True
        )
        assert "cannot be read" in headway("calibrate", *common, "--user", "a", "--repetitions", "x", fails=True)
        with np.load(file, allow_pickle=False) as arrays:
            renamed = dict(arrays)
        renamed["gesture_names"] = np.array(["juggling", *renamed["gesture_names"][1:]])
        np.savez(tmp_path / "renamed.npz", **renamed)
        foreign = headway(
            "predict", "--url", service.url, "--model", "band", "--file", tmp_path / "renamed.npz", fails=True
        )
        assert "labelled juggling, which model 'band' does not know" in " ".join(foreign.split())
    assert "no service answers" in headway("predict", *common, fails=True)


def test_a_damaged_run_and_a_wrong_name_are_refused(loop, tmp_path):
    assert "cannot be a model's name" in headway(
        "export", loop / "run", "--models", tmp_path, "--name", "Not A Name", fails=True
    )
    assert list(tmp_path.iterdir()) == []


def test_the_parity_gate_stops_a_graph_that_computes_something_else(loop, tmp_path, monkeypatch):
    import exporters.export as export_module

    original = export_module.onnx_forward
    monkeypatch.setattr(export_module, "onnx_forward", lambda graph: lambda x: original(graph)(x) * 1.001)
    with pytest.raises(ParityError, match="differ from torch's by up to"):
        export_run(loop / "run", tmp_path, name="band")
    assert list(tmp_path.iterdir()) == []


def test_the_next_export_is_the_next_version(loop):
    export_run(loop / "run", loop / "more", name="band")
    export_run(loop / "run", loop / "more", name="band")
    assert bundles.find(loop / "more") == {"band": [1, 2]}
    one, two = (bundles.read_manifest(loop / "more" / "band" / v)[0] for v in "12")
    assert one.feature_space == two.feature_space


def test_recordings_are_what_was_asked_for(loop):
    assert len(load_folder(loop / "data", "*")) == 8
