"""Labels that the population does not know: what they change, and what they leave to the bit."""

from dataclasses import replace

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.heads import statistics
from models.heads.calibration import METHODS, calibrate
from models.heads.fit import FITS, map_means
from models.heads.guard import BLEND_WEIGHTS
from models.heads.head import NEVER, Head, softmax
from models.heads.logistic import fit_logistic
from models.heads.prior import Placements
from models.heads.statistics import Statistics
from service.errors import Unprocessable
from service.personal.own_labels import placed
from tests.tiny import LABELS, tiny_prior

NEW = np.array([-6.0, -6.0, 3.0, 3.0])


def windows(rng, classes=4, per_class=20, noise=0.3):
    means = [*tiny_prior().means, NEW][:classes]
    z = np.concatenate([m + noise * rng.standard_normal((per_class, 4)) for m in means])
    return z, np.repeat(np.arange(classes), per_class), np.tile(np.arange(per_class) % 2, classes)


def test_old_prototypes_are_the_same_to_the_bit(rng):
    z, y, repetition = windows(rng)
    old, prior = y < 3, tiny_prior()
    before = map_means(Statistics.of(z[old], y[old], repetition[old], 3), prior)
    after = map_means(Statistics.of(z, y, repetition, 4), prior.with_own(1))
    np.testing.assert_array_equal(after[:3], before)
    assert np.linalg.norm(after[3] - NEW) < 1


@pytest.mark.parametrize("method", [*FITS, "logistic"])
@pytest.mark.parametrize("room", [1, 3])
def test_every_method_answers_what_was_shown_and_nothing_else(rng, method, room):
    z, y, repetition = windows(rng)
    prior = tiny_prior().with_own(room)
    head = (
        fit_logistic(z, y, prior)
        if method == "logistic"
        else FITS[method](Statistics.of(z, y, repetition, 3 + room), prior)
    )
    assert (head.logits(z).argmax(1) == y).mean() > 0.95
    assert (np.asarray(softmax(head.logits(z)))[:, 4:] == 0).all()
    assert (head.bias[4:] == NEVER).all()


def test_a_prior_with_own_labels_keeps_its_factors_and_placements():
    p = tiny_prior()
    placements = Placements(
        np.stack([p.means, p.means[::-1]]),
        *(np.stack([m, m]) for m in (p.within, p.between, p.repetition)),
        np.zeros(2),
    )
    prior = replace(p, placements=placements).with_own(2)
    assert (prior.classes, prior.known, prior.own) == (5, 3, 2)
    assert prior.placements.means.shape == (2, 5, 4)
    named = prior.named((*LABELS, "a", "b"))
    assert named.memo is prior.memo
    assert named.at(1).labels == (*LABELS, "a", "b")
    assert prior.at(1).labels == (*LABELS, "", "")
    assert named.at(1).means is prior.at(1).means
    assert p.with_own(0) is p


def test_the_middle_is_no_answer(rng):
    """A class that was forgotten keeps its place, and windows in the middle of the others are not of it."""
    z, y, repetition = windows(rng, classes=3)
    head = FITS["map"](Statistics.of(z, y, repetition, 4), tiny_prior().with_own(1))
    middle = tiny_prior().means.mean(0)[None]
    assert head.logits(middle).argmax(1)[0] < 3


def test_no_blend_with_a_head_that_cannot_say_the_label(rng):
    """Whatever the windows: labels of the user's own are either served in full or not at all."""
    for noise in (0.3, 1.0, 2.0, 3.0, 4.0, 6.0):
        z, y, repetition = windows(rng, noise=noise, per_class=30)
        verdict = calibrate(tiny_prior().with_own(1).named((*LABELS, "new")), z, y, repetition).verdict
        assert verdict.weight not in BLEND_WEIGHTS


@pytest.mark.parametrize("method", [m for m in METHODS if m != "auto"])
def test_among_shown_mutes_the_rest(rng, method):
    z, y, repetition = windows(rng)
    some = y != 1
    result = calibrate(
        tiny_prior().with_own(1).named((*LABELS, "new")), z[some], y[some], repetition[some],
        method=method, only_shown=True,
    )  # fmt: skip
    assert result.verdict.outcome == "promoted"
    assert (result.head.logits(z).argmax(1) != 1).all()


@given(
    hnp.arrays(np.float64, (12, 3), elements=st.floats(-9, 9)),
    hnp.arrays(np.int64, 12, elements=st.integers(0, 5)),
    hnp.arrays(np.int64, 12, elements=st.integers(0, 3)),
)
def test_statistics_are_stored_without_what_is_empty(z, y, repetition):
    stats = Statistics.of(z, y, repetition, 9)
    found = statistics.from_bytes(statistics.to_bytes(stats))
    np.testing.assert_array_equal(found.count, stats.count)
    np.testing.assert_allclose(found.total, stats.total, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.class_moment, stats.class_moment, rtol=1e-5, atol=1e-3)
    assert len(statistics.to_bytes(stats.padded(200))) < len(statistics.to_bytes(stats)) + 191 * 4 * 4 + 64
    cut = stats.trimmed(6)
    assert cut.classes == 6
    np.testing.assert_array_equal(cut.padded(9).total, stats.total)


@given(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4), st.lists(st.sampled_from("abcdef"), min_size=1))
def test_a_label_has_one_class_for_good(held, given_labels):
    names = tuple(dict.fromkeys(given_labels))
    y = np.array([3 + names.index(name) for name in given_labels] + [0, 2])
    got, after = placed(y, names, tuple(held), 3, 6)
    assert after[: len(held)] == tuple(held)
    assert [after[c - 3] for c in got[:-2]] == given_labels
    assert got[-2:].tolist() == [0, 2]
    if len(after) > 1:
        with pytest.raises(Unprocessable, match="room for 1"):
            placed(y, names, tuple(held), 3, 1) if len(after) > len(held) else placed(y, ("z", *names), ("y",), 3, 1)


def test_a_head_is_widened_and_cut():
    head = Head(np.ones((3, 2)), np.zeros(3), None)
    wide = head.widened(5)
    assert (wide.logits(np.ones((1, 2)))[0, 3:] == NEVER).all()
    assert wide.cut(4, ("a",)).weight.shape == (4, 2)
    assert head.widened(2) is head
