"""What joins the features of several members, fitted on people that each had no part in what they are judged by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.heads.confidence import population_floors
from models.heads.fit import fit_map, shared_share
from models.heads.head import softmax
from models.heads.prior import HyperParameters, Prior
from models.heads.tuning import LeftOut, Trial, evidence, trials_of, tune, with_settings
from models.training.config import TrainingError
from models.training.fused_evidence import fit_modal_probe, fit_shares, left_out_probes
from models.training.fusion_sources import Joined, Source, Tick
from models.training.joining import Join, always, filled, kept, late, log_posterior, patterns
from models.training.population import moments, population_prior

__all__ = ["Fused", "How", "fit_fusion"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
How = Literal["concatenated", "late"]

RIDGE = 0.1
"""Of features with variance 1 within a person and label; 0.01 to 1 do alike on a watch (docs/benchmarks/fusion.md)."""


@dataclass(frozen=True, eq=False)
class Fused:
    """The join, the prior of the joint features with its record, and figures on left-out people."""

    join: Join
    prior: Prior
    evaluation: dict[str, Any]


def fit_fusion(
    sources: Sequence[Source],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    *,
    how: How = "late",
    personal: int = 64,
    ridge: float = RIDGE,
    thinning: int = 1,
    names: Sequence[str] = (),
    tick: Tick = lambda stage, done, total: None,
) -> Fused:
    """Fit what joins the members: evidence by `how`, a space for personal heads, and the population in it.

    Concatenated: a linear probe on all members' personal features and log posteriors, which has seen every window with
    each of its parts missing, too. Late: a sum of log posteriors, its weights chosen for every set of members that can
    be there. Personal heads are fitted in the members' personal features, projected together; those of a missing member
    are what the others predict.

    Args:
        sources: the members.
        people: the windows' labels, of three people or more.
        labels: of the members' heads, in this order.
        how: as above.
        personal: joint features that personal heads are fitted in, at most.
        ridge: pull to 0, the middle of the population, of what is said of a missing member's features.
        thinning: steps between two windows, as of `TrainConfig`.
        names: of the members, for the figures.
        tick: called with a stage, what is done of it, and its size.

    Raises:
        TrainingError: nobody's windows can calibrate a head and score it.
    """
    told = [[log_posterior(s.evidence(u)) for s in sources] for u in range(len(people))]
    ways = patterns(len(sources))[1:]
    sizes = tuple(s.personal for s in sources)
    tick("leave one out", 0, len(people))
    spaces = [_space(u, sources, people, labels, personal, ridge, tick) for u in range(len(people))]
    tick("leave one out", len(people), len(people))
    if how == "late":
        shares = fit_shares(told, people, ways)
        logits = [[log_posterior(late(e, always(way, len(e[0])), shares)) for way in ways] for e in told]
        probe = None
    else:
        shares = None
        pull, logits = left_out_probes(sources, people, told, ways, len(labels), tick)
        final = [np.concatenate([s.final(u)[:, : s.personal] for s in sources], 1) for u in range(len(people))]
        probe = fit_modal_probe(final, told, [p.y for p in people], ways, sizes, len(labels), pull)
    whole = [own[-1] for own in logits]
    left = [
        LeftOut(space.prior, space.z[-1], p.y, p.session, p.repetition, g)
        for space, p, g in zip(spaces, people, whole, strict=True)
    ]
    trials = [t for u, one in enumerate(left) for t in trials_of(u, one)]
    if not trials:
        raise TrainingError("Nobody has windows enough of two labels to be calibrated and scored.")
    hyper = tune(left, trials, HyperParameters(growth=1.0, window=30.0 / thinning, shrinkage=100.0))
    records, figures = evidence(left, trials, hyper, thinning, place=False)
    floors = population_floors([(softmax(g), p.y) for g, p in zip(whole, people, strict=True)])
    told_hyper = hyper.model_copy(
        update={
            "window": hyper.window * thinning,
            "evidence": records,
            "set_floors": tuple(round(float(f), 6) for f in floors),
        }
    )
    join, prior = _whole(sources, people, labels, personal, ridge, told_hyper)
    join = replace(join, shares=shares, probe=probe)
    evaluation = {
        "protocol": "people of the population, each left out; windows of repetitions that did not calibrate",
        "how": how,
        "users": len(people),
        "zero_shot": _spread([_right(g, p.y) for g, p in zip(whole, people, strict=True)]),
        "personal": figures,
        "present": _by_presence(names, ways, logits, spaces, people, left, trials, hyper),
    }
    return Fused(join, prior, evaluation)


@dataclass(frozen=True, eq=False)
class _Space:
    """The space that a person had no part in: its prior, and the person's features `(n, p)` by way of presence."""

    prior: Prior
    z: list[Array]


def _space(
    u: int,
    sources: Sequence[Source],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    personal: int,
    ridge: float,
    tick: Tick,
) -> _Space:
    tick("leave one out", u, len(people))
    sizes = [s.personal for s in sources]
    z = [np.concatenate([s.without(u, v) for s in sources], 1) for v in range(len(people))]
    others = [v for v in range(len(people)) if v != u]
    impute = _imputation([z[v] for v in others], sizes, ridge)
    found = [moments(z[v], people[v].y, people[v].repetition, len(labels)) for v in others]
    prior, centre, a = population_prior([found], range(len(others)), labels, min(personal, z[u].shape[1]))
    ways = patterns(len(sources))[1:]
    return _Space(prior, [(filled(z[u], always(way, len(z[u])), sizes, impute) - centre) @ a for way in ways])


def _whole(
    sources: Sequence[Source],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    personal: int,
    ridge: float,
    hyper: HyperParameters,
) -> tuple[Join, Prior]:
    """The space and the prior of everybody, in the members that will be served."""
    sizes = tuple(s.personal for s in sources)
    z = [np.concatenate([s.final(v)[:, : s.personal] for s in sources], 1) for v in range(len(people))]
    found = [moments(own, p.y, p.repetition, len(labels)) for own, p in zip(z, people, strict=True)]
    k, p = len(labels), min(personal, sum(sizes))
    prior, centre, a = population_prior([found], range(len(people)), labels, p, k, hyper)
    generic = np.concatenate([np.zeros((k, p)), np.eye(k)], 1)
    prior = replace(prior, generic_weight=generic, generic_bias=np.zeros(k))
    return Join(sizes, tuple(s.head for s in sources), _imputation(z, sizes, ridge), centre, a), prior


def _imputation(z: Sequence[Array], sizes: Sequence[int], ridge: float) -> Array:
    """Matrix `(P, P)` by which members that are there predict those that are not, by ridge regression over people."""
    rows = np.concatenate(z)
    found = np.zeros((rows.shape[1],) * 2)
    edges = np.cumsum([0, *sizes])
    ways = patterns(len(sizes))[1:-1]
    for m in range(len(sizes)):
        own = slice(edges[m], edges[m + 1])
        without = [kept(rows, always(way, len(rows)), sizes) for way in ways if not way[m]]
        if without:
            gram = sum(x.T @ x for x in without) / len(rows) + ridge * np.eye(len(found))
            found[:, own] = np.linalg.solve(gram, sum(x.T @ rows[:, own] for x in without) / len(rows))
    return found


def _by_presence(
    names: Sequence[str],
    ways: Mask,
    logits: Sequence[Sequence[Array]],
    spaces: Sequence[_Space],
    people: Sequence[Joined],
    left: Sequence[LeftOut],
    trials: Sequence[Trial],
    hyper: HyperParameters,
) -> list[dict[str, Any]]:
    """Accuracy by which members are there: of the generic head, and of heads calibrated with all of them there."""
    shots = {"1 window": (1, 1), "5 windows": (5, 1), "1 repetition": (0, 1)}
    table = []
    for w, way in enumerate(ways):
        row: dict[str, Any] = {"there": [n for n, some in zip(names, way, strict=True) if some]}
        row["generic"] = _spread([_right(own[w], p.y) for own, p in zip(logits, people, strict=True)])
        for name, shot in shots.items():
            found: dict[int, list[float]] = {}
            for t in trials:
                if t.shot == shot and not t.hidden:
                    one = left[t.person]
                    head = fit_map(t.stats, with_settings(one.prior, hyper))
                    own = head.logits(spaces[t.person].z[w][t.scored])
                    own = own + shared_share(t.stats, hyper) * logits[t.person][w][t.scored]
                    found.setdefault(t.person, []).append(_right(own, one.y[t.scored]))
            if found:
                row[name] = _spread([float(np.mean(v)) for v in found.values()])
        table.append(row)
    return table


def _right(logits: Array, y: Labels) -> float:
    return float((logits.argmax(1) == y).mean())


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "worst": float(np.min(values))}
