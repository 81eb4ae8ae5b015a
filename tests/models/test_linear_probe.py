"""The recipe linear-probe: from a folder or a table to a bundle."""

import numpy as np
import pytest
import torch

from exporters import bundle as bundles
from exporters.export import export_run
from models.backbones import create_encoder
from models.data.collections import load_collection
from models.heads.calibration import calibrate
from models.training import RunError, TrainingError
from models.training.extract import Source, extract
from models.training.features import backbone_digest, features_of
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.media_run import load_media_run
from models.training.runners import Serial
from tests import tiny_media

pytest.importorskip("PIL.Image")

SLOTS = {
    f"user{i}": dict(zip("abc", order, strict=True))
    for i, order in enumerate(
        [("red", "green", "blue"), ("blue", "red", "green"), ("green", "blue", "red"), ("red", "blue", "green")]
    )
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_media.image_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def pooled(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled")
    data = load_collection(tiny_media.write_pictures(folder / "data", 12))
    return train_probe(data, LinearProbeConfig(backbone=encoder), folder / "run", command="the command"), data


@pytest.fixture(scope="module")
def peopled(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    data = load_collection(tiny_media.write_pictures(folder / "data", 12, SLOTS))
    return train_probe(data, LinearProbeConfig(backbone=encoder), folder / "run"), data


def shots(run, users, k, seed=5):
    """Features of a stranger's pictures, k a label and each a repetition of its own, then ten a label to score."""
    rng = np.random.default_rng(seed)
    from models.data.media import reader_of

    reader = reader_of(run.input, run.files)
    files = [[tiny_media.picture(tiny_media.COLOURS[c], rng) for _ in range(k + 10)] for c in users]
    x = reader.read([f for own in files for f in own])
    with torch.no_grad():
        z = run.backbone()(torch.from_numpy(x)).numpy().reshape(len(users), k + 10, -1)
    y = np.arange(len(users))
    shown = z[:, :k].reshape(-1, z.shape[2]), np.repeat(y, k), np.tile(np.arange(k), len(users))
    return shown, (z[:, k:].reshape(-1, z.shape[2]), np.repeat(y, 10))


def test_a_pooled_run_says_so_and_its_generic_head_knows_the_labels(pooled):
    run, _ = pooled
    assert run.prior.hyper.pooled
    assert not run.prior.hyper.evidence
    assert run.provenance["population"] == "pooled"
    assert run.provenance["command"] == "the command"
    assert run.evaluation["zero_shot"]["mean"] > 0.95
    _, (z, y) = shots(run, ("blue", "green", "red"), 1)
    assert (np.argmax(z @ run.prior.generic_weight.T + run.prior.generic_bias, 1) == y).mean() > 0.95


def test_personal_features_have_about_unit_variance_within_labels(pooled):
    run, data = pooled
    z, _ = features_of(run.backbone(), data)
    p = run.prior.personal
    residual = z[:, :p] - run.prior.means[data.y]
    assert 0.8 < float((residual**2).mean()) < 1.1


def test_the_pooled_guard_says_what_it_can_judge_and_judges_it(pooled):
    run, _ = pooled
    mine = ("red", "blue", "green")  # other meanings than the population's
    (z, y, r), _ = shots(run, mine, 5)
    one = calibrate(run.prior, z, y, np.zeros(len(y), int))
    assert one.verdict.outcome == "insufficient"
    assert "no users" in one.verdict.reason
    several = calibrate(run.prior, z, y, r)
    assert (several.verdict.outcome, several.verdict.evidence) == ("promoted", "held_out")
    _, (z, y) = shots(run, mine, 5)
    assert (several.head.logits(z).argmax(1) == y).mean() > 0.95


def test_people_give_a_record_and_a_prior_that_few_shots_use(peopled):
    run, _ = peopled
    hyper = run.prior.hyper
    assert not hyper.pooled
    assert run.provenance["population"] == "users"
    assert {e.users for e in hyper.evidence} == {4}
    assert run.evaluation["zero_shot"]["mean"] < 0.7  # everybody calls something else by these names
    (z, y, r), (held, truth) = shots(run, ("green", "red", "blue"), 1)
    found = calibrate(run.prior, z, y, r)
    assert found.verdict.outcome == "promoted"
    assert found.verdict.evidence == "population"
    assert (found.head.logits(held).argmax(1) == truth).mean() > 0.9


def test_the_bundle_computes_what_the_run_does(pooled, peopled, tmp_path):
    for run, data in (pooled, peopled):
        name = f"m{len(data)}"
        path = export_run(run.folder, tmp_path, name=name)
        bundle = bundles.load(path)
        assert bundle.manifest.parity["max_error"] <= 1e-4
        assert bundle.manifest.input.media == run.input.media
        assert bundle.manifest.head.pooled == run.prior.hyper.pooled
        assert bundle.manifest.feature_dim == run.prior.dim


def test_the_same_seed_gives_the_same_run(encoder, pooled, tmp_path):
    run, data = pooled
    again = train_probe(data, LinearProbeConfig(backbone=encoder), tmp_path / "run")
    ours, theirs = run.backbone().state_dict(), again.backbone().state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert np.array_equal(run.prior.within, again.prior.within)


def test_features_are_computed_once_for_the_same_backbone_preprocessing_and_input(encoder, tmp_path):
    data = load_collection(tiny_media.write_pictures(tmp_path / "data", 4))
    backbone, cache = create_encoder(encoder), tmp_path / "cache"
    first, computed = features_of(backbone, data, cache)
    assert computed == 12
    again, computed = features_of(backbone, data, cache)
    assert computed == 0
    assert np.array_equal(first, again)
    rng = np.random.default_rng(99)
    (tmp_path / "data" / "red" / "0.png").write_bytes(tiny_media.picture((9, 9, 9), rng))
    changed, computed = features_of(backbone, load_collection(tmp_path / "data"), cache)
    assert computed == 1
    assert (changed != first).any(1).sum() == 1
    media = backbone.input.media.model_copy(update={"fit": "pad"})
    other = create_encoder(encoder, input=backbone.input.model_copy(update={"media": media}).model_dump())
    assert backbone_digest(other) != backbone_digest(backbone)
    assert features_of(other, data, cache)[1] == 12


def test_a_damaged_cache_is_as_good_as_none(encoder, tmp_path):
    data = load_collection(tiny_media.write_pictures(tmp_path / "data", 2))
    backbone = create_encoder(encoder)
    first, _ = features_of(backbone, data, tmp_path / "cache")
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again, computed = features_of(backbone, data, tmp_path / "cache")
    assert computed == 6
    assert np.array_equal(first, again)


def test_extract_names_the_file_that_it_cannot_read(encoder, tmp_path):
    data = tiny_media.write_pictures(tmp_path / "data", 3)
    (data / "red" / "1.png").write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"red/1\.png: "):
        extract(Source(backbone=encoder), load_collection(data), Serial(), lambda stage, done, total: None)


def test_what_cannot_be_trained_on_is_a_sentence(encoder, pooled, tmp_path):
    run, data = pooled
    with pytest.raises(TrainingError, match="is not empty"):
        train_probe(data, LinearProbeConfig(backbone=encoder), run.folder)
    broken = tiny_media.write_pictures(tmp_path / "broken", 2)
    (broken / "red" / "1.png").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"red/1\.png: image 0 is neither"):
        train_probe(load_collection(broken), LinearProbeConfig(backbone=encoder), tmp_path / "run")
    table = tmp_path / "t.csv"
    table.write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    with pytest.raises(TrainingError, match="The data are texts, and the backbone reads images"):
        train_probe(load_collection(table), LinearProbeConfig(backbone=encoder), tmp_path / "run")
    (run.folder / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot be loaded"):
        load_media_run(run.folder).backbone()
