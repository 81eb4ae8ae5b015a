"""Baselines on hand-made features."""

import numpy as np
import pytest

from models.data.recordings import load_folder
from models.data.windows import WindowSpec, windows
from models.evaluation import features
from models.evaluation.baselines import baselines, euclidean_ncm, own_lda, population_prior, tuned_prior

SPEC = WindowSpec(52, 20)
SIZES = ((features.classic_td, 32), (features.log_variance, 8), (features.log_td, 40), (features.log_td_covariance, 68))


@pytest.mark.parametrize(("extract", "size"), SIZES)
def test_features_have_their_size_and_are_finite_on_silence(extract, size, rng):
    x = rng.normal(size=(5, 8, 52)).astype(np.float32)
    x[0] = 0
    x[1, 3] = 7  # a flat channel
    x[2] *= 1e-5  # volts
    z = extract(x)
    assert z.shape == (5, size)
    assert np.isfinite(z).all()


@pytest.mark.parametrize(("extract", "_size"), SIZES)
def test_features_ignore_offsets(extract, _size, rng):
    x = rng.normal(size=(3, 8, 52))
    np.testing.assert_allclose(extract(x.astype(np.float32)), extract((x + 3).astype(np.float32)), atol=1e-3)


def test_log_features_turn_a_gain_into_a_shift(rng):
    x = rng.normal(size=(4, 8, 52)).astype(np.float32)
    shift = features.log_td_covariance(4 * x) - features.log_td_covariance(x)
    np.testing.assert_allclose(shift, shift[:1].repeat(4, 0), atol=1e-4)


def test_own_heads_never_predict_a_class_that_was_not_shown(rng):
    z = rng.normal(size=(40, 3)) + np.repeat([0, 6], 20)[:, None]
    y = np.repeat([0, 2], 20)
    for fit in (own_lda(3), euclidean_ncm(3)):
        assert (fit(z, y, y).logits(z).argmax(1) == y).all()


def test_own_lda_takes_one_window_a_class(rng):
    z = 5 * rng.normal(size=(3, 10))
    head = own_lda(3)(z, np.arange(3), np.zeros(3, int))
    assert (head.logits(z).argmax(1) == np.arange(3)).all()


def test_a_prior_finds_the_spreads_it_was_drawn_from(rng, people):
    k, d, users, reps, n = 3, 4, 40, 4, 30
    rec = load_folder(people, "synth_0")[0]
    template = windows(rec, SPEC).select(np.zeros(k * reps * n, int))
    y, r = np.repeat(np.arange(k), reps * n), np.tile(np.repeat(np.arange(reps), n), k)
    means, drawn = 5 * rng.normal(size=(k, d)), []
    for _ in range(users):
        own = means + 2.0 * rng.normal(size=(k, d))
        moved = own[:, None] + 0.5 * rng.normal(size=(k, reps, d))
        z = moved[y, r] + rng.normal(size=(len(y), d))
        drawn.append((z, type(template)(template.x, y, r, 0 * y, 0 * y, 0 * y)))
    p = population_prior(drawn, ("a", "b", "c"))
    assert np.diag(p.within).mean() == pytest.approx(1, rel=0.1)
    assert np.diag(p.repetition).mean() == pytest.approx(0.25 + 1 / n, rel=0.2)
    assert np.diag(p.between).mean() == pytest.approx(4 + 0.25 / reps, rel=0.3)
    assert np.abs(p.means - means).max() < 1.5
    np.testing.assert_allclose(p.whitening @ p.within @ p.whitening.T, np.eye(d), atol=1e-8)
    assert tuned_prior(drawn[:4], ("a", "b", "c")).hyper.window > 0


def test_baselines_with_a_population_need_one(people):
    recs = load_folder(people)
    alone = [b.name for b in baselines(4, None, [], recs[0].label_names, SPEC)]
    among = [b.name for b in baselines(4, None, recs[:4], recs[0].label_names, SPEC)]
    assert set(among) - set(alone) == {
        "log-TD: NCM, population whitening",
        "log-TD + log-covariance: hierarchical Bayes",
    }


def test_more_windows_do_not_make_the_own_lda_worse(rng):
    # 32 features, one covariance from 4 x 5 windows: singular unless it is shrunk.
    k, d = 4, 32
    mixing, means = rng.normal(size=(d, d)) / np.sqrt(d), rng.normal(size=(k, d))
    y_test = np.repeat(np.arange(k), 300)
    test = means[y_test] + rng.normal(size=(len(y_test), d)) @ mixing
    accuracy = {}
    for n in (1, 5, 6, 8, 9, 60):
        hits = []
        for _ in range(10):
            y = np.repeat(np.arange(k), n)
            head = own_lda(k)(means[y] + rng.normal(size=(len(y), d)) @ mixing, y, y)
            hits.append((head.logits(test).argmax(1) == y_test).mean())
        accuracy[n] = np.mean(hits)
    assert min(accuracy[n] for n in (5, 6, 8, 9)) > accuracy[1]
    assert accuracy[60] == max(accuracy.values())
