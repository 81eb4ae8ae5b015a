"""Statistics over a bridge: what an affine map does to windows, done to their sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads import bridge as bridges
from models.heads.bridge import Bridge, BridgeParity, Pairs, fit_bridge
from models.heads.fit import FITS
from models.heads.refit import refit
from models.heads.statistics import Statistics
from tests.tiny import tiny_prior


def windows(rng, n, dim, classes=3, repetitions=3):
    return rng.standard_normal((n, dim)) * 3 + 1, rng.integers(0, classes, n), rng.integers(0, repetitions, n)


def same(a, b, tolerance=1e-9):
    assert a.repetitions == b.repetitions
    for name in ("count", "total", "class_moment", "repetition_moment"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.shape == two.shape
        assert np.allclose(one, two, rtol=tolerance, atol=tolerance * (1 + np.abs(two).max()))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), p=st.integers(1, 9), q=st.integers(1, 9), seed=st.integers(0))
def test_statistics_of_mapped_windows_are_mapped_statistics(n, p, q, seed):
    rng = np.random.default_rng(seed)
    z, y, repetition = windows(rng, n, p)
    bridge = Bridge(rng.standard_normal((q, p)), 10 * rng.standard_normal(q), np.zeros((q, q)))
    here = bridge.statistics(Statistics.of(z, y, repetition, 3))
    same(here, Statistics.of(bridge.features(z), y, repetition, 3))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0))
def test_mapping_commutes_with_adding(n, seed):
    rng = np.random.default_rng(seed)
    z, y, repetition = windows(rng, n, 4)
    root = rng.standard_normal((3, 3))
    bridge = Bridge(rng.standard_normal((3, 4)), rng.standard_normal(3), root @ root.T)
    parts = [Statistics.of(z[s], y[s], repetition[s], 3) for s in (slice(0, n // 2), slice(n // 2, None))]
    same(bridge.statistics(parts[0] + parts[1]), bridge.statistics(parts[0]) + bridge.statistics(parts[1]))


def test_the_residual_is_what_the_map_leaves(rng):
    z, y, repetition = windows(rng, 40_000, 4)
    noise = rng.standard_normal((len(z), 2)) * (0.5, 2.0)
    bridge = Bridge(rng.standard_normal((2, 4)), np.array([3.0, -1.0]), np.diag([0.25, 4.0]))
    here = bridge.statistics(Statistics.of(z, y, repetition, 3))
    same(here, Statistics.of(bridge.features(z) + noise, y, repetition, 3), tolerance=0.02)


def people_of(rng, number, weight, offset, noise=0.0, n=120):
    people = []
    for _ in range(number):
        z, y, repetition = windows(rng, n, weight.shape[1])
        z = z + rng.standard_normal((3, weight.shape[1]))[y]
        new = z @ weight.T + offset + noise * rng.standard_normal((n, len(offset)))
        people.append(Pairs.of(z, new, y * 3 + repetition))
    return people


@pytest.mark.parametrize("between", [0.1, 0.5, 1.0])
def test_an_affine_change_is_found(rng, between):
    weight, offset = rng.standard_normal((5, 4)), rng.standard_normal(5)
    found = fit_bridge(people_of(rng, 6, weight, offset), ridge=1e-9, between=between)
    assert np.allclose(found.weight, weight, atol=1e-4)
    assert np.allclose(found.offset, offset, atol=1e-3)
    assert np.abs(found.residual).max() < 1e-6


def test_heads_that_come_over_an_exact_bridge_decide_alike(rng):
    """A head refitted from mapped statistics decides as one refitted from the windows: the map hides nothing."""
    prior = tiny_prior()
    weight, offset = np.eye(4) + 0.3 * rng.standard_normal((4, 4)), rng.standard_normal(4)
    bridge = fit_bridge(people_of(rng, 6, weight, offset), ridge=1e-10)
    y = np.repeat(np.arange(3), 30)
    z = np.linalg.solve(weight, (prior.means[y] + rng.standard_normal((90, 4)) - offset).T).T
    old, new = (Statistics.of(f, y, np.arange(90) % 3, 3) for f in (z, z @ weight.T + offset))
    for method in FITS:
        here, there = refit(bridge.statistics(old), prior, method), refit(new, prior, method)
        assert here.verdict.outcome == there.verdict.outcome == "promoted"
        assert np.allclose(here.candidate.weight, there.candidate.weight, atol=1e-3)


def test_bytes_and_back(rng):
    bridge = Bridge(rng.standard_normal((3, 2)), rng.standard_normal(3), np.eye(3))
    back = bridges.from_bytes(bridges.to_bytes(bridge))
    assert all(np.array_equal(getattr(bridge, name), getattr(back, name)) for name in bridges.TENSORS)
    for damaged in (b"", bridges.to_bytes(bridge)[:-8], bridges.to_bytes(Bridge(np.eye(2), np.ones(3), np.eye(3)))):
        with pytest.raises(ValueError, match="bridge"):
            bridges.from_bytes(damaged)
    with pytest.raises(ValueError, match="takes 2 features"):
        bridge.statistics(Statistics.empty(3, 4))


@pytest.mark.parametrize(
    ("change", "passes"),
    [({}, True), ({"mean_loss": 0.011}, False), ({"worst_loss": 0.06}, False), ({"harmed": 1}, False)],
)
def test_parity_has_a_bound(change, passes):
    figures = {
        "users": 9,
        "bridged": 0.9,
        "inputs": 0.9,
        "generic": 0.8,
        "mean_loss": 0.0,
        "worst_loss": 0.0,
        "harmed": 0,
    }
    assert BridgeParity(**{**figures, **change}).passes == passes
