"""The rule for labels not shown: safe for everyone it was chosen on, or none."""

import numpy as np
import pytest

from models.heads.prior import HyperParameters, Prior
from models.heads.tuning import LeftOut
from models.training.partial import partial_rule

K, D = 4, 6


def people(count, rng, *, spread):
    """People whose classes lie `spread` from the population's, with a common offset of their own."""
    means = 2 * rng.standard_normal((K, D))
    prior = Prior(
        labels=tuple("abcd"),
        generic_weight=means,
        generic_bias=-0.5 * (means**2).sum(1),
        means=means,
        within=np.eye(D),
        between=spread**2 * np.eye(D),
        repetition=0.1 * np.eye(D),
        whitening=np.eye(D),
        hyper=HyperParameters(window=1.0, offset=1.0),
    )
    found = []
    for _ in range(count):
        own = means + spread * (rng.standard_normal(D) + 0.2 * rng.standard_normal((K, D)))
        y = np.tile(np.repeat(np.arange(K), 25), 2)
        z = own[y] + rng.standard_normal((len(y), D))
        generic = z @ means.T - 0.5 * (means**2).sum(1)
        repetition = np.repeat(np.arange(2), 25 * K)
        found.append(LeftOut(prior, z, y, np.zeros(len(y), np.int64), repetition, generic))
    return found


def test_people_with_an_offset_gain_on_labels_that_they_did_not_show():
    rule = partial_rule(people(12, np.random.default_rng(0), spread=2.5), HyperParameters(window=1.0, offset=1.0), 0)
    assert rule is not None
    assert (rule.users, rule.shown) == (12, 2)
    assert rule.worst_unseen > 0
    assert rule.gain_shown > 0
    assert rule.gain_unseen >= rule.worst_unseen


def test_it_is_the_same_again(rng):
    crowd = people(11, rng, spread=2.5)
    hyper = HyperParameters(window=1.0, offset=1.0)
    assert partial_rule(crowd, hyper, 3) == partial_rule(crowd, hyper, 3)


@pytest.mark.parametrize(("count", "spread"), [(4, 2.5), (12, 0.001)])
def test_few_people_or_nothing_to_gain_is_no_rule(count, spread, rng):
    assert partial_rule(people(count, rng, spread=spread), HyperParameters(window=1.0, offset=1.0), 0) is None
