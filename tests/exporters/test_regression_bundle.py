"""A regression bundle is whole and of one task, or it is refused; and what is for labels says so."""

import json

import numpy as np
import pytest
import safetensors.numpy

from exporters import bundle as bundles
from exporters.bundle import BundleError, Manifest, Target
from exporters.precision import convert
from exporters.regression import export_regression, features_of
from models.heads import regression_prior
from tests.tiny import tiny_graph, tiny_manifest, write_tiny_bundle
from tests.tiny_regression import NAMES, TARGETS, TRUTH, population, write_tiny_regression


@pytest.fixture
def folder(tmp_path):
    return write_tiny_regression(tmp_path)


def test_what_is_exported_is_loaded(folder):
    bundle = bundles.load(folder)
    assert (bundle.manifest.task, bundle.manifest.labels) == ("regression", ())
    assert bundle.manifest.head_rows == ("elbow [deg]", "wrist [deg]")
    prior = bundle.regression
    assert prior.targets == NAMES
    assert np.abs(prior.generic.weight - TRUTH.weight).max() < 1
    assert prior.settings == bundle.manifest.regression
    left_out = bundle.manifest.evaluation["left_out_people"]["rmse"]
    assert left_out["elbow"] == pytest.approx(np.sqrt(prior.residual_variance[0]), rel=1e-5)
    card = (folder / bundles.CARD).read_text()
    assert "heads for 2 targets: elbow [deg], wrist [deg]" in card
    assert "Left-out population users" in card
    assert folder.name == "1"
    assert write_tiny_regression(folder.parent.parent).name == "2"


def test_one_kind_of_prior_is_not_taken_for_the_other(folder, tmp_path):
    with pytest.raises(BundleError, match="is a regression"):
        _ = bundles.load(folder).prior
    labels = write_tiny_bundle(tmp_path)
    with pytest.raises(BundleError, match="is a classification"):
        _ = bundles.load(labels).regression


def test_a_variant_of_a_regression_says_the_same(folder, tmp_path):
    path, found = convert(folder, tmp_path / "converted", windows=population().windows)
    made = bundles.load(path)
    assert (made.manifest.precision, made.manifest.task) == ("fp16", "regression")
    assert 0 < found.outputs[""].change < 0.01
    assert made.manifest.feature_space == bundles.load(folder).manifest.feature_space
    assert "| values | values within 0." in (path / bundles.CARD).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "one of targets or more"),
        ({"regression": None}, "how heads are fitted"),
        ({"targets": [{"name": "elbow"}, {"name": "elbow"}]}, "named twice"),
        ({"targets": [{"name": "elbow"}]}, "were expected"),
        ({"targets": [{"name": "\n"}, {"name": "wrist"}]}, "printable"),
        ({"targets": [{"name": "a", "of": 1}, {"name": "b"}]}, "targets.0.of"),
        ({"labels": ["a", "b"]}, "no labels"),
        ({"task": "classification"}, "two labels or more"),
        ({"task": "classification", "labels": ["a", "b"]}, "neither targets nor regression"),
        ({"task": "ranking"}, "task"),
        ({"feature_dim": 5}, "the prior has 4 features"),
        ({"feature_dim": 300}, "at most 256"),
        ({"regression": {"windows": 0, "farthest": 1}}, "windows"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    file = folder / bundles.MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleError, match=message):
        bundles.load(folder)


def test_a_classification_says_how_its_heads_are_fitted():
    given = tiny_manifest().model_dump()
    assert Manifest.model_validate(given) == tiny_manifest()
    without = {name: value for name, value in given.items() if name not in ("targets", "task", "regression")}
    assert Manifest.model_validate(without) == tiny_manifest()
    del given["head"]
    with pytest.raises(ValueError, match="under head"):
        Manifest.model_validate(given)


def read(prior, **change):
    tensors = {**safetensors.numpy.load(regression_prior.to_bytes(prior)), **change}
    data = safetensors.numpy.save({name: value for name, value in tensors.items() if value is not None})
    return regression_prior.from_bytes(data, NAMES, prior.settings)


@pytest.mark.parametrize("name", regression_prior.TENSORS)
def test_a_prior_that_is_not_finite_or_misshapen_is_refused(folder, name):
    prior = bundles.load(folder).regression
    whole = safetensors.numpy.load(regression_prior.to_bytes(prior))[name]
    with pytest.raises(ValueError, match="not finite"):
        read(prior, **{name: np.full_like(whole, np.nan)})
    with pytest.raises(ValueError, match=r"shape|features"):
        read(prior, **{name: np.zeros((3, 2, 2))})
    with pytest.raises(ValueError, match=name):
        read(prior, **{name: None})


def test_a_prior_that_is_no_such_thing_is_refused(folder):
    prior = bundles.load(folder).regression
    assert np.array_equal(read(prior).generic.weight, prior.generic.weight)
    with pytest.raises(ValueError, match="residual_variance must be above 0"):
        read(prior, residual_variance=np.zeros(2))
    with pytest.raises(ValueError, match="second_moment is none"):
        read(prior, second_moment=np.triu(np.ones((5, 5))))
    with pytest.raises(ValueError, match="not a prior"):
        regression_prior.from_bytes(b"", NAMES, prior.settings)


def test_a_graph_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    spec = bundles.load(write_tiny_regression(tmp_path)).manifest.input
    given = {"name": "other", "input_spec": spec, "targets": TARGETS, "preprocessing": "none"}
    with pytest.raises(BundleError, match="the graph does not run"):
        export_regression(b"nothing", population(), tmp_path, **given)
    with pytest.raises(BundleError, match="must have shape"):
        features_of(tiny_graph(), np.zeros((3, 2, 5)), spec)
    with pytest.raises(ValueError, match="do not fit"):
        export_regression(tiny_graph(), population(), tmp_path, **{**given, "targets": [Target(name="one")]})
    assert not (tmp_path / "other").exists()
