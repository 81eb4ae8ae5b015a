"""Calibrations of targets: who differs gets their own head, who does not loses nothing, and nonsense is kept out."""

import numpy as np
import pytest
import safetensors.numpy

from models.heads import regression_sums
from models.heads.head import Head
from models.heads.inputs import Sensor
from models.heads.regression_calibration import calibrate_regression
from models.heads.regression_population import fit_population
from models.heads.regression_sums import BYTES_AT_REST, MAX_REPETITIONS, RepetitionSums

D, TARGETS = 6, ("elbow", "wrist", "grip")
TRUTH = Head(np.random.default_rng(0).standard_normal((3, D)) * [[3.0], [20.0], [0.1]], np.array([1.0, 50.0, 0.2]))
UNITS = np.array([1.0, 7.0, 0.04])
"""How far people differ, and noise goes, in each target's own unit."""


def person(rng, spread=1.0):
    change = UNITS[:, None] * rng.standard_normal((3, D))
    return Head(TRUTH.weight + spread * change, TRUTH.bias + spread * UNITS * rng.standard_normal(3))


def recorded(rng, who, windows=40, repetitions=2, noise=1.0):
    n = windows * repetitions
    z = rng.standard_normal((n, D)) * np.linspace(0.5, 2, D) + 0.3
    t = who.logits(z) + noise * UNITS * rng.standard_normal((n, 3))
    return z, t, np.repeat(np.arange(repetitions), windows)


def population(units=1.0):
    rng = np.random.default_rng(1)
    parts = [recorded(rng, person(rng), 30, 3) for _ in range(10)]
    z, t, r = (np.concatenate(each) for each in zip(*parts, strict=True))
    return fit_population(z, t * units, np.repeat(np.arange(10), 90), r, targets=TARGETS)


@pytest.fixture(scope="module")
def prior():
    return population()


def error(prior, head, who, rng):
    z, t, _ = recorded(rng, who, 500, 1, noise=0.0)
    return float(prior.errors(head.logits(z), t).mean())


def test_a_person_who_differs_is_promoted_and_served_well(prior):
    rng = np.random.default_rng(2)
    for _ in range(10):
        who = person(rng)
        result = calibrate_regression(prior, *recorded(rng, who))
        assert result.verdict.outcome in ("promoted", "blended"), result.verdict.reason
        assert result.verdict.transfer.gain > 0
        assert error(prior, result.head, who, rng) < 0.3 * error(prior, prior.generic, who, rng)


def test_whoever_is_as_the_shared_head_says_loses_nothing(prior):
    rng = np.random.default_rng(3)
    served = []
    for _ in range(20):
        result = calibrate_regression(prior, *recorded(rng, prior.generic, 10))
        head = prior.generic if result.head is None else result.head
        served.append(error(prior, head, prior.generic, rng))
    assert np.mean(served) < 0.02
    assert max(served) < 0.1


@pytest.mark.parametrize("windows", [20, 60, 200])
def test_shuffled_targets_are_kept_out(prior, windows):
    rng = np.random.default_rng(4)
    outcomes = []
    for _ in range(20):
        z, t, r = recorded(rng, person(rng), windows)
        verdict = calibrate_regression(prior, z, rng.permutation(t), r).verdict
        outcomes.append((verdict.outcome, verdict.remember))
    assert outcomes.count(("kept", False)) >= 19


def test_targets_that_do_not_vary_tell_nothing(prior):
    rng = np.random.default_rng(5)
    z, t, r = recorded(rng, person(rng))
    verdict = calibrate_regression(prior, z, np.broadcast_to(t[0], t.shape), r).verdict
    assert verdict.outcome == "kept"
    assert "hardly vary" in verdict.reason
    assert verdict.candidate.r2 is None


def test_one_repetition_is_held_out_in_blocks_unless_its_windows_overlap_too_much(prior):
    rng = np.random.default_rng(6)
    who = person(rng)
    z, t, r = recorded(rng, who, 60, 1)
    alone = calibrate_regression(prior, z, t, r)
    assert (alone.verdict.evidence, alone.verdict.candidate.folds) == ("held_out", 3)
    assert "within one repetition only" in alone.verdict.transfer.claim
    assert calibrate_regression(prior, z, t, r, overlap=9).verdict.evidence == "held_out"
    unseen = calibrate_regression(prior, z, t, r, overlap=10)
    assert (unseen.verdict.evidence, unseen.verdict.outcome) == ("population", "promoted")
    few = calibrate_regression(prior, z[:2], t[:2], r[:2])
    assert few.verdict.outcome == "insufficient"


def test_a_better_active_head_stays(prior):
    rng = np.random.default_rng(7)
    who, other = person(rng), person(rng, 3.0)
    z, t, r = recorded(rng, who, 40, 3)
    z2, t2, r2 = recorded(rng, other, 40, 3)
    before = calibrate_regression(prior, z2, t2, r2).sums
    verdict = calibrate_regression(prior, z, t, r, before=before, previous=who).verdict
    assert (verdict.outcome, verdict.remember) == ("kept", False)
    assert "the active head is better" in verdict.reason
    assert verdict.previous.r2 > verdict.candidate.r2


def test_streamed_is_batch_and_the_order_of_calls_is_none(prior):
    rng = np.random.default_rng(8)
    z, t, r = recorded(rng, person(rng), 30, 4)
    whole = calibrate_regression(prior, z, t, r).candidate
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        before = None
        for k in order:
            one = calibrate_regression(prior, z[r == k], t[r == k], r[r == k], before=before)
            before = one.sums
        assert np.allclose(one.candidate.weight, whole.weight, rtol=1e-9, atol=1e-9)
        assert np.allclose(one.candidate.bias, whole.bias, rtol=1e-9, atol=1e-9)
        stored = regression_sums.from_bytes(regression_sums.to_bytes(before), D, 3)
        again = calibrate_regression(prior, z[r == 0][:1], t[r == 0][:1], r[r == 0][:1], before=stored).candidate
        exact = calibrate_regression(prior, z[r == 0][:1], t[r == 0][:1], r[r == 0][:1], before=before).candidate
        assert np.allclose(again.weight, exact.weight, rtol=1e-4, atol=1e-4)


def test_what_is_sent_again_counts_once_however_aged(prior):
    rng = np.random.default_rng(9)
    z, t, r = recorded(rng, person(rng), 30, 3)
    first = calibrate_regression(prior, z, t, r)
    for factor in (1.0, 0.3):
        held = regression_sums.from_bytes(regression_sums.to_bytes(first.sums.scaled(factor)), D, 3)
        again = calibrate_regression(prior, z, t, r, before=held)
        assert (len(again.sums), again.sums.windows) == (3, 90)
        assert "3 of the repetitions were sent before" in again.warnings[-1]
    other = calibrate_regression(prior, z + 0.01, t, r, before=first.sums)
    assert len(other.sums) == 6


@pytest.mark.parametrize("d", [180, D])
def test_what_was_merged_and_is_sent_again_is_neither_added_nor_judged_by(d):
    """Many features, or many repetitions, leave one part or eight."""
    rng = np.random.default_rng(18)
    count = 2 if d > D else 12
    people = rng.standard_normal((900, d))
    noise = rng.standard_normal((900, 1))
    users = np.repeat(np.arange(9), 100)
    prior = fit_population(people, people[:, :1] + noise + users[:, None] % 3, users, targets=("elbow",))
    z, t = rng.standard_normal((40 * count, d)), rng.standard_normal((40 * count, 1))
    r = np.repeat(np.arange(count), 40)
    first = calibrate_regression(prior, z, t, r)
    held = first.sums
    for _ in range(2):
        held = regression_sums.from_bytes(regression_sums.to_bytes(held), d, 1)
        again = calibrate_regression(prior, z, t, r, before=held)
        held = again.sums
        assert held.windows == 40 * count
        assert f"{count} of the repetitions were sent before" in again.warnings[-1]
        assert (again.verdict.evidence == "none") == (d > D)  # of eight parts, seven can be left out still
    merged = z[:40], t[:40], r[:40]
    alone = calibrate_regression(prior, *merged, before=held)
    assert (alone.verdict.outcome, alone.verdict.evidence, alone.head) == ("insufficient", "none", None)
    assert not alone.verdict.remember
    assert alone.sums.windows == 40 * count
    shuffled = rng.permutation(40)
    assert calibrate_regression(prior, z[:40][shuffled], t[:40][shuffled], r[:40], before=held).head is None
    twice = np.concatenate([z[:40], z[:40]]), np.concatenate([t[:40], t[:40]]), np.repeat([0, 1], 40)
    assert calibrate_regression(prior, *twice).sums.windows == 40
    aged = calibrate_regression(prior, z, t, r, before=held.scaled(1e-170))
    assert aged.sums.windows == 40 * count
    assert aged.verdict.candidate.n == 40 * count


def test_digests_are_bounded_and_statistics_of_earlier_releases_are_read(prior):
    rng = np.random.default_rng(19)
    z, t, r = recorded(rng, person(rng), 2, 100)
    sums = calibrate_regression(prior, z, t, r).sums
    assert len(sums.seen) == regression_sums.MAX_SEEN
    tensors = safetensors.numpy.load(regression_sums.to_bytes(sums))
    old = {n: v if v.dtype == np.int64 else v.astype(np.float32) for n, v in tensors.items() if n != "seen"}
    back = regression_sums.from_bytes(safetensors.numpy.save(old), D, 3)
    assert (back.windows, dict(back.seen)) == (200, {})
    again = calibrate_regression(prior, z[-2:], t[-2:], r[-2:], before=back)
    assert again.sums.windows == 200


def test_sums_too_large_to_be_added_to_are_refused(prior):
    rng = np.random.default_rng(20)
    z, t, r = recorded(rng, person(rng))
    z[3, 1] = 1e20
    with pytest.raises(ValueError, match=r"features squared .* reach 1e.40"):
        calibrate_regression(prior, z, t, r)
    z[3, 1], t[5, 2] = 1.0, 1e31
    with pytest.raises(ValueError, match="features and targets"):
        calibrate_regression(prior, z, t, r)


BROKEN = {
    "ids of floats": ("repetitions", lambda v: v.astype(np.float64), "int64"),
    "ids beyond": ("repetitions", lambda v: np.array([0, 2**62]), "between"),
    "ids that wrap": ("repetitions", lambda v: np.array([2**63 - 1, -(2**63)]), "ascending"),
    "ids twice": ("repetitions", lambda v: v * 0, "ascending"),
    "no windows": ("count", lambda v: v * 0, "empty or huge"),
    "huge counts": ("count", lambda v: v + 2.0**53, "empty or huge"),
    "counts of other sums": ("count", lambda v: v * 1.01, "as many windows"),
    "whole counts": ("count", lambda v: v.astype(np.int64), "floats"),
    "not finite": ("cross", lambda v: v * np.nan, "not finite"),
    "huge": ("moment", lambda v: v * 1e30, "beyond 1e.30"),
    "negative squares": ("moment", lambda v: np.where(np.arange(v.shape[1]) == 0, -v, v), "negative"),
    "digests of nothing": ("seen", lambda v: v + 7, "digests"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_statistics_that_are_no_sums_over_windows_are_refused(name):
    rng = np.random.default_rng(21)
    sums = RepetitionSums.of(rng.standard_normal((6, 4)), rng.standard_normal((6, 2)), np.repeat([0, 1], 3))
    tensors = safetensors.numpy.load(regression_sums.to_bytes(sums))
    tensor, change, message = BROKEN[name]
    tensors[tensor] = change(tensors[tensor])
    with pytest.raises(ValueError, match=message):
        regression_sums.from_bytes(safetensors.numpy.save(tensors), 4, 2)


def test_large_offsets_lose_nothing_in_storage():
    rng = np.random.default_rng(22)
    weight, offset = rng.standard_normal((D, 1)), 1e4

    def windows(n, extra=0.0):
        z = rng.standard_normal((n, D)) + offset
        return z, (z - offset) @ weight + extra + offset + 0.3 * rng.standard_normal((n, 1))

    parts = [windows(60, rng.standard_normal()) for _ in range(8)]
    z, t = (np.concatenate(each) for each in zip(*parts, strict=True))
    prior = fit_population(z, t, np.repeat(np.arange(8), 60), targets=("elbow",))
    held = None
    for _ in range(6):
        result = calibrate_regression(prior, *windows(60, 2.0), np.zeros(60), before=held)
        held = regression_sums.from_bytes(regression_sums.to_bytes(result.sums), D, 1)
    assert held.windows == 360
    z, t = windows(500, 2.0)
    assert np.sqrt(np.mean((result.candidate.logits(z) - t) ** 2)) < 0.5


def test_what_is_judged_is_what_is_stored(prior):
    rng = np.random.default_rng(23)
    head = calibrate_regression(prior, *recorded(rng, person(rng))).candidate
    assert np.array_equal(head.weight, head.weight.astype(np.float32))
    assert np.array_equal(head.bias, head.bias.astype(np.float32))


def test_odd_targets_are_warned_of_and_need_held_out_evidence(prior):
    rng = np.random.default_rng(10)
    z, t, r = recorded(rng, person(rng), 5, 1)
    assert calibrate_regression(prior, z, t, r).verdict.outcome == "promoted"
    odd = calibrate_regression(prior, z, t[:, [1, 0, 2]], r)
    assert odd.verdict.outcome == "insufficient"
    assert not odd.verdict.remember
    assert "order and units" in odd.warnings[0]


def test_odd_targets_are_neither_served_nor_remembered_whatever_is_held_out(prior):
    rng = np.random.default_rng(24)
    z, t, r = recorded(rng, person(rng), 60, 2)
    odd = calibrate_regression(prior, z, t[:, [1, 0, 2]], r)
    assert (odd.verdict.outcome, odd.head, odd.verdict.remember) == ("kept", None, False)
    assert "another order or unit" in odd.verdict.reason
    before = odd.sums  # as `activate: always` would have them
    stuck = calibrate_regression(prior, z + 1e-3, t, r, before=before)
    assert stuck.verdict.outcome == "kept"
    assert "mode 'replace' begins anew" in stuck.verdict.reason


def test_a_single_posture_tells_nothing(prior):
    rng = np.random.default_rng(25)
    z, t, r = recorded(rng, person(rng), 5, 1)
    one = calibrate_regression(prior, z[[0] * 5], t[[0] * 5], r)
    assert (one.verdict.outcome, one.head) == ("insufficient", None)
    assert "hardly vary" in one.verdict.reason


def test_the_units_of_targets_change_nothing(prior):
    rng = np.random.default_rng(17)
    units = np.array([1e-6, 60.0, 1e6])
    other = population(units)
    assert other.settings.windows == prior.settings.windows
    for windows in (3, 10, 40):
        z, t, r = recorded(rng, person(rng), windows)
        one, two = calibrate_regression(prior, z, t, r), calibrate_regression(other, z, t * units, r)
        assert (one.verdict.outcome, one.verdict.weight) == (two.verdict.outcome, two.verdict.weight)
        assert one.verdict.transfer.gain == pytest.approx(two.verdict.transfer.gain, rel=1e-4)
        assert np.allclose(one.candidate.logits(z) * units, two.candidate.logits(z), rtol=1e-5, atol=1e-5 * units)


def test_a_flat_channel_is_named(prior):
    rng = np.random.default_rng(11)
    z, t, r = recorded(rng, person(rng))
    x = rng.standard_normal((len(z), 2, 16))
    x[:, 1] = 0.0
    assert "channel 1 is flat" in " ".join(calibrate_regression(prior, z, t, r, x=x).warnings)
    sensors = [Sensor("arm", 0 * x, np.zeros(len(x), bool)), Sensor("watch", x, np.ones(len(x), bool))]
    told = " ".join(calibrate_regression(prior, z, t, r, x=sensors).warnings)
    assert f"channel {x.shape[1] + 1} (1 of watch) is flat" in told
    assert "arm" not in told


@pytest.mark.parametrize(("d", "targets"), [(6, 3), (64, 5), (256, 20)])
def test_statistics_are_bounded_and_lose_nothing_by_it(d, targets):
    rng = np.random.default_rng(12)
    sums = None
    for r in range(12):
        z, t = rng.standard_normal((5, d)), rng.standard_normal((5, targets))
        new = RepetitionSums.of(z, t, np.full(5, r))
        sums = new if sums is None else (sums + new)
    kept = sums.within_budget()
    assert 1 <= len(kept) <= MAX_REPETITIONS
    assert kept.windows == 60
    assert max(kept.parts) == 11
    assert np.allclose(kept.total.moment, sums.total.moment)
    size = len(regression_sums.to_bytes(kept))
    assert size <= BYTES_AT_REST + 1024 or len(kept) == 1
    back = regression_sums.from_bytes(regression_sums.to_bytes(kept), d, targets)
    assert list(back.parts) == list(kept.parts)
    assert np.allclose(back.total.cross, kept.total.cross, rtol=1e-5, atol=1e-4)


def test_windows_that_have_aged_away_are_forgotten(prior):
    rng = np.random.default_rng(16)
    z, t, r = recorded(rng, person(rng))
    aged = calibrate_regression(prior, z, t, r).sums.scaled(1e-170)
    after = calibrate_regression(prior, *recorded(rng, person(rng)), before=aged).sums
    assert (len(after), after.windows) == (2, 80)
    assert len(regression_sums.from_bytes(regression_sums.to_bytes(after), D, 3)) == 2


def test_statistics_of_something_else_are_refused():
    rng = np.random.default_rng(13)
    data = regression_sums.to_bytes(
        RepetitionSums.of(rng.standard_normal((5, 4)), rng.standard_normal((5, 2)), np.zeros(5))
    )
    with pytest.raises(ValueError, match="5 features and 2 targets"):
        regression_sums.from_bytes(data, 5, 2)
    with pytest.raises(ValueError, match="3 targets"):
        regression_sums.from_bytes(data, 4, 3)
    with pytest.raises(ValueError, match="not a user's statistics"):
        regression_sums.from_bytes(b"nothing", 4, 2)


def test_the_pull_is_learned_from_how_much_people_differ():
    pulls = []
    for spread in (0.02, 1.0):
        rng = np.random.default_rng(14)
        parts = [recorded(rng, person(rng, spread), 30, 3) for _ in range(8)]
        arrays = [np.concatenate(each) for each in zip(*parts, strict=True)]
        found = fit_population(arrays[0], arrays[1], np.repeat(np.arange(8), 90), arrays[2], targets=TARGETS)
        pulls.append(found.settings.windows)
        assert np.allclose(found.residual_variance, UNITS**2 * (1 + 10 * spread**2), rtol=2.0)
        gains = [e.gain for e in found.settings.evidence]
        assert gains == sorted(gains) or spread < 0.1
        assert [(e.windows, e.repetitions) for e in found.settings.evidence] == [(5, 1), (20, 1), (30, 1), (60, 2)]
    assert pulls[0] > 10 * pulls[1]


def test_a_population_is_of_people_with_repetitions():
    rng = np.random.default_rng(15)
    z, t, r = recorded(rng, TRUTH, 20, 3)
    users = np.repeat(np.arange(3), 20)
    assert fit_population(z, t, users, targets=TARGETS).dim == D  # each person's windows count as four repetitions
    for change, message in (
        ({"user": np.zeros(60)}, "3 or more"),
        ({"repetition": r}, "one repetition only"),
        ({"t": t[:, :2]}, "do not fit"),
        ({"t": np.column_stack([t[:, :2], np.ones(60)])}, "'grip' never varies"),
        ({"z": np.full((60, D), np.nan)}, "finite"),
        ({"z": np.zeros((60, 257))}, "1 to 256"),
        ({"repetition": r[:5]}, "one a window"),
    ):
        given = {"z": z, "t": t, "user": users, **change}
        with pytest.raises(ValueError, match=message):
            fit_population(**given, targets=TARGETS)
