"""The shipped bundle."""

import numpy as np
import onnxruntime as ort
import pytest

from exporters import bundle as bundles
from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.heads.calibration import calibrate, shared_head
from service.config import ZOO

SEMG = ZOO / "semg-myo"


def test_shipped_bundles_verify_and_are_small():
    for name, versions in bundles.find(ZOO).items():
        for version in versions:
            manifest = bundles.load(ZOO / name / str(version)).manifest
            assert sum(f.bytes for f in manifest.files.values()) <= 3_000_000
            assert manifest.licence
            assert "headway train" in manifest.provenance["command"]


def test_semg_never_touched_an_evaluation_subject(myo):
    manifest = bundles.read_manifest(bundles.resolve(SEMG))[0]
    trained = {s["digest"] for s in manifest.provenance["subjects"]}
    population = {r.digest for r in load_folder(myo, "pretrain_*")}
    evaluation = {r.digest for r in load_folder(myo, "eval_*")}
    assert trained == population
    assert not trained & evaluation
    assert "Côté-Allard" in manifest.citation


def test_semg_personal_head_on_real_recordings(myo):
    """On a population subject: what is checked is that the parts fit together, not how good the head is."""
    bundle = bundles.load(bundles.resolve(SEMG))
    rec = load_folder(myo, "pretrain_M0")[0]
    w = windows(rec, WindowSpec(52, bundle.manifest.input.stride))
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    z = np.concatenate([session.run(None, {"input": w.x[i : i + 64]})[0] for i in range(0, len(w), 64)])
    shown = w.repetition < 2
    result = calibrate(bundle.prior, z[shown], w.y[shown], w.repetition[shown], overlap=10)
    assert result.verdict.outcome == "promoted"
    personal = (result.head.logits(z[~shown]).argmax(1) == w.y[~shown]).mean()
    generic = (shared_head(bundle.prior).logits(z[~shown]).argmax(1) == w.y[~shown]).mean()
    assert personal >= generic
    assert personal > 0.95


@pytest.mark.parametrize("kind", ["zeros", "flat channel", "huge", "tiny", "offset"])
def test_semg_features_are_finite_whatever_comes(kind, rng):
    bundle = bundles.load(bundles.resolve(SEMG))
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    x = rng.standard_normal((3, 8, 52)).astype(np.float32) * 10
    x = {
        "zeros": x * 0, "flat channel": np.where(np.arange(8)[None, :, None] == 2, 5, x), "huge": x * 1e30,
        "tiny": x * 1e-30, "offset": x + 1e6,
    }[kind].astype(np.float32)  # fmt: skip
    assert np.isfinite(session.run(None, {"input": x})[0]).all()
