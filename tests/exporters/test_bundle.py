"""A bundle is whole, unaltered and of a known kind, or it is refused."""

import json
import shutil

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.bundle import BundleError
from models.heads import prior as priors
from tests.tiny import tiny_graph, tiny_manifest, tiny_prior, write_tiny_bundle


@pytest.fixture
def folder(tmp_path):
    return write_tiny_bundle(tmp_path)


def test_what_is_written_is_loaded(folder):
    bundle = bundles.load(folder)
    assert bundle.manifest.name == "tiny"
    assert bundle.backbone == tiny_graph()
    assert np.allclose(bundle.prior.means, tiny_prior().means)
    assert bundle.prior.hyper == tiny_prior().hyper
    assert bundle.manifest.feature_space == bundles.feature_space(tiny_graph())


@pytest.mark.parametrize("name", [bundles.BACKBONE, bundles.PRIOR, bundles.CARD])
def test_an_altered_file_is_refused(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(BundleError, match="has been altered"):
        bundles.load(folder)


@pytest.mark.parametrize("name", [bundles.BACKBONE, bundles.PRIOR])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        bundles.load(folder)


def test_a_file_that_is_not_listed_is_refused(folder):
    (folder / "extra.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"does not list: extra\.onnx"):
        bundles.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"manifest_version": "3.0"}, "manifest version 3.0; this Headway reads 1.x and 2.x"),
        ({"surprise": 1}, "surprise"),
        ({"labels": ["only"]}, "labels"),
        ({"feature_dim": 5}, "the prior has 4 features"),
        ({"labels": ["a", "a", "b"]}, "names a label twice"),
        ({"files": {}}, "does not list backbone.onnx"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    file = folder / bundles.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=message):
        bundles.load(folder)


def test_a_manifest_cannot_reach_outside_its_folder(folder):
    file = folder / bundles.MANIFEST
    raw = json.loads(file.read_text())
    raw["files"]["../../secret"] = raw["files"][bundles.CARD]
    file.write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="outside its folder"):
        bundles.load(folder)


@pytest.mark.parametrize("content", ["not json", "[1, 2]", "{}"])
def test_nonsense_is_refused_in_a_sentence(folder, content):
    (folder / bundles.MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        bundles.load(folder)


def test_a_version_is_never_overwritten(tmp_path):
    write_tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match="never overwritten"):
        write_tiny_bundle(tmp_path)
    assert bundles.next_version(tmp_path, "tiny") == 2


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError("disk full")

    monkeypatch.setattr(bundles.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tiny_bundle(tmp_path)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_reserved_and_impossible_names_are_refused(tmp_path):
    with pytest.raises(BundleError, match="reserved"):
        write_tiny_bundle(tmp_path, name="stats")
    with pytest.raises(ValueError, match="name"):
        tiny_manifest(name="../up")


def test_find_and_resolve(tmp_path):
    write_tiny_bundle(tmp_path, version=1)
    write_tiny_bundle(tmp_path, version=10)
    assert bundles.find(tmp_path) == {"tiny": [1, 10]}
    assert bundles.resolve(tmp_path / "tiny").name == "10"
    assert bundles.resolve(tmp_path / "tiny" / "1").name == "1"
    with pytest.raises(BundleError, match="neither"):
        bundles.resolve(tmp_path / "other")
    shutil.rmtree(tmp_path / "tiny")
    with pytest.raises(BundleError, match="does not exist"):
        bundles.find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", priors.TENSORS)
def test_a_prior_that_is_not_finite_or_misshapen_is_refused(name):
    prior = tiny_prior()
    import safetensors.numpy

    tensors = safetensors.numpy.load(priors.to_bytes(prior))
    broken = {**tensors, name: np.full_like(tensors[name], np.nan)}
    with pytest.raises(ValueError, match="not finite"):
        priors.from_bytes(safetensors.numpy.save(broken), prior.labels, prior.hyper)
    misshapen = {**tensors, name: np.zeros((2, 2))}
    with pytest.raises(ValueError, match=r"shape|features|lacks"):
        priors.from_bytes(safetensors.numpy.save(misshapen), prior.labels, prior.hyper)
    del tensors[name]
    with pytest.raises(ValueError, match=name):
        priors.from_bytes(safetensors.numpy.save(tensors), prior.labels, prior.hyper)
