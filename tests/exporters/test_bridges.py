"""A bridge between two bundles: fitted on people, gated, written as the next version, read back."""

import json
import subprocess
import sys

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bridge import BridgeError, bridge
from exporters.bundle import BundleError
from models.data.recordings import load_folder
from tests.tiny import write_tiny_bundle
from tests.upgraded import MIX, SHIFT, write_people, write_upgraded_bundle


@pytest.fixture
def folder(tmp_path, rng):
    """Two versions of the tiny model, and six people."""
    write_tiny_bundle(tmp_path / "models")
    write_upgraded_bundle(tmp_path / "models")
    write_people(tmp_path / "data", 6, rng)
    return tmp_path


def test_a_bridge_by_the_command_line(folder):
    model = folder / "models" / "tiny"
    options = ["--from", model / "1", "--to", model / "2", "--data", folder / "data"]
    said = subprocess.run(
        [sys.executable, "-m", "service.cli", "bridge", *options], capture_output=True, text=True, check=True
    ).stdout
    assert "6 left-out people" in said
    old, new, bridged = (bundles.load(model / str(n)) for n in (1, 2, 3))
    assert (old.bridges, new.bridges) == ({}, {})
    space = old.manifest.feature_space
    assert bridged.manifest.feature_space == new.manifest.feature_space
    assert bridged.backbone == new.backbone
    entry = bridged.manifest.bridges[space]
    assert (entry.version, entry.digest) == (1, old.digest)
    assert entry.parity.passes
    assert entry.parity.users == 6
    assert entry.parity.inputs - entry.parity.bridged == pytest.approx(entry.parity.mean_loss)
    assert np.allclose(bridged.bridges[space].weight, MIX.T, atol=1e-3)
    assert np.allclose(bridged.bridges[space].offset, SHIFT, atol=1e-2)
    assert "Bridge from version 1" in (model / "3" / bundles.CARD).read_text()
    assert bridged.manifest.provenance["bridges"][0]["people"] == [f"p{i}" for i in range(6)]


def test_a_bridge_that_is_too_weak_is_not_written(folder):
    write_upgraded_bundle(folder / "models", 3, bend=200.0)
    people = load_folder(folder / "data")
    with pytest.raises(BridgeError, match="not good enough"):
        bridge(folder / "models/tiny/1", folder / "models/tiny/3", people, folder / "models")
    assert bundles.versions(folder / "models/tiny") == [1, 2, 3]


def test_what_cannot_be_bridged(folder):
    models = folder / "models"
    write_tiny_bundle(models, "other")
    people = load_folder(folder / "data")
    with pytest.raises(BridgeError, match="tiny and other"):
        bridge(models / "tiny/1", models / "other", people, models)
    with pytest.raises(BridgeError, match="both compute feature space"):
        bridge(models / "tiny/1", models / "tiny/1", people, models)
    with pytest.raises(BridgeError, match="there are 2"):
        bridge(models / "tiny/1", models / "tiny/2", people[:2], models)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry.update(file="none.safetensors"), "does not list"),
        (lambda entry: entry.update(file=bundles.PRIOR), "not a bridge"),
        (lambda entry: entry["parity"].update(users=0), "parity.users"),
    ],
)
def test_a_manifest_that_names_no_bridge(folder, change, words):
    people = load_folder(folder / "data")
    path, _ = bridge(folder / "models/tiny/1", folder / "models/tiny/2", people, folder / "models")
    file = path / bundles.MANIFEST
    manifest = json.loads(file.read_text())
    (entry,) = manifest["bridges"].values()
    change(entry)
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=words):
        bundles.load(path)
