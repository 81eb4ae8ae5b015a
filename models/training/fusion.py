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
from models.heads.tuning import LeftOut, Trial, with_settings
from models.training.fused_evidence import fit_modal_probe, fit_shares, left_out_probes
from models.training.fused_population import SHOTS, Kind, calibrations, joint_prior, settings
from models.training.fusion_sources import Joined, Source, Tick
from models.training.joining import Join, always, filled, kept, late, log_posterior, patterns, rows_with

__all__ = ["RIDGE", "Fused", "How", "fit_fusion"]

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
How = Literal["concatenated", "late"]

RIDGE = 0.1
"""Of features with variance 1 within a person and label; 0.01 to 1 do alike on a watch (docs/benchmarks/fusion.md)."""
PROTOCOLS: dict[Kind, str] = {
    "windows": "people of the population, each left out; windows of repetitions that did not calibrate",
    "items": "people of the population, each left out; items that did not calibrate",
    "pooled": "parts of every label, each left out; items that did not calibrate",
}


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
    kind: Kind = "windows",
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
        people: the windows' labels, of three people or more; without users, folds of the items.
        labels: of the members' heads, in this order.
        how: as above.
        personal: joint features that personal heads are fitted in, at most.
        ridge: pull to 0, the middle of the population, of what is said of a missing member's features.
        thinning: steps between two windows, as of `TrainConfig`.
        kind: what the population is.
        names: of the members, for the figures.
        tick: called with a stage, what is done of it, and its size.

    Raises:
        TrainingError: nobody's windows can calibrate a head and score it.
    """
    told = [[log_posterior(s.evidence(u)) for s in sources] for u in range(len(people))]
    sizes, ways = tuple(s.personal for s in sources), patterns(len(sources))[1:]
    there = [p.there(len(sources)) for p in people]
    tick("leave one out", 0, len(people))
    spaces = []
    for u in range(len(people)):
        spaces.append(_space(u, sources, people, labels, personal, ridge, kind))
        tick("leave one out", u + 1, len(people))
    if how == "late":
        shares = fit_shares(told, people, ways)
        logits = [[log_posterior(late(e, m, shares)) for m in _sets(t, ways)] for e, t in zip(told, there, strict=True)]
        probe = None
    else:
        shares = None
        pull, logits = left_out_probes(sources, people, told, ways, len(labels), tick)
        final = [np.concatenate([s.final(u)[:, : s.personal] for s in sources], 1) for u in range(len(people))]
        probe = fit_modal_probe(final, told, people, ways, sizes, len(labels), pull)
    whole = [own[-1] for own in logits]
    left = [
        LeftOut(space.prior, space.z[-1], p.y, p.session, p.repetition, g)
        for space, p, g in zip(spaces, people, whole, strict=True)
    ]
    trials = calibrations(kind, left)
    hyper, records, figures = settings(kind, left, trials, thinning)
    floors = population_floors([(softmax(g), p.y) for g, p in zip(whole, people, strict=True)])
    told_hyper = hyper.model_copy(
        update={
            "window": hyper.window * thinning,
            "evidence": records,
            "set_floors": tuple(round(float(f), 6) for f in floors),
        }
    )
    join, prior = _whole(sources, people, labels, personal, ridge, kind, told_hyper)
    join = replace(join, shares=shares, probe=probe)
    evaluation = {
        "protocol": PROTOCOLS[kind],
        "how": how,
        "users": 0 if kind == "pooled" else len(people),
        "zero_shot": _spread([_right(g, p.y) for g, p in zip(whole, people, strict=True)]),
        "personal": figures,
        "present": _by_presence(names, ways, logits, spaces, people, left, trials, hyper, SHOTS[kind]),
    }
    return Fused(join, prior, evaluation)


def _sets(there: Mask, ways: Mask) -> list[Mask]:
    """Which members count in a person's rows `(n, M)`, by way; and last, those that are there."""
    return [*(always(way, len(there)) for way in ways), there]


@dataclass(frozen=True, eq=False)
class _Space:
    """The space that a person had no part in: its prior, and the person's features `(n, p)` by way of presence.

    The last ones are with the members that are there.
    """

    prior: Prior
    z: list[Array]


def _space(
    u: int,
    sources: Sequence[Source],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    personal: int,
    ridge: float,
    kind: Kind,
) -> _Space:
    sizes = [s.personal for s in sources]
    z = [np.concatenate([s.without(u, v) for s in sources], 1) for v in range(len(people))]
    there = [p.there(len(sources)) for p in people]
    others = [v for v in range(len(people)) if v != u]
    impute = _imputation([z[v] for v in others], [there[v] for v in others], sizes, ridge)
    known = [filled(z[v], there[v], sizes, impute) for v in others]
    prior, centre, a = joint_prior(kind, known, [people[v] for v in others], labels, personal)
    sets = _sets(there[u], patterns(len(sources))[1:])
    return _Space(prior, [(filled(z[u], some, sizes, impute) - centre) @ a for some in sets])


def _whole(
    sources: Sequence[Source],
    people: Sequence[Joined],
    labels: tuple[str, ...],
    personal: int,
    ridge: float,
    kind: Kind,
    hyper: HyperParameters,
) -> tuple[Join, Prior]:
    """The space and the prior of everybody, in the members that will be served."""
    sizes = tuple(s.personal for s in sources)
    z = [np.concatenate([s.final(v)[:, : s.personal] for s in sources], 1) for v in range(len(people))]
    there = [p.there(len(sources)) for p in people]
    impute = _imputation(z, there, sizes, ridge)
    known = [filled(own, some, sizes, impute) for own, some in zip(z, there, strict=True)]
    prior, centre, a = joint_prior(kind, known, people, labels, personal, hyper)
    k = len(labels)
    generic = np.concatenate([np.zeros((k, prior.personal)), np.eye(k)], 1)
    prior = replace(prior, generic_weight=generic, generic_bias=np.zeros(k))
    return Join(sizes, tuple(s.head for s in sources), impute, centre, a), prior


def _imputation(z: Sequence[Array], there: Sequence[Mask], sizes: Sequence[int], ridge: float) -> Array:
    """Matrix `(P, P)` by which members that are there predict those that are not, by ridge regression over people."""
    rows, present = np.concatenate(z), np.concatenate(there)
    found = np.zeros((rows.shape[1],) * 2)
    edges = np.cumsum([0, *sizes])
    ways = patterns(len(sizes))[1:-1]
    for m in range(len(sizes)):
        own = slice(edges[m], edges[m + 1])
        seen, some = rows[present[:, m]], present[present[:, m]]
        without = [kept(seen, some & way, sizes) for way in ways if not way[m]]
        if without and len(seen):
            gram = sum(x.T @ x for x in without) / len(seen) + ridge * np.eye(len(found))
            found[:, own] = np.linalg.solve(gram, sum(x.T @ seen[:, own] for x in without) / len(seen))
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
    shots: dict[str, tuple[int, int]],
) -> list[dict[str, Any]]:
    """Accuracy by which members are there: of the generic head, and of heads calibrated with all that was there.

    A set of members is judged on the rows that have all of them; one that no row has is left out.
    """
    table = []
    for w, way in enumerate(ways):
        rows = [rows_with(p.there(ways.shape[1]), way) for p in people]
        judged = [u for u, some in enumerate(rows) if some.any()]
        if not judged:
            continue
        row: dict[str, Any] = {"there": [n for n, some in zip(names, way, strict=True) if some]}
        row["generic"] = _spread([_right(logits[u][w][rows[u]], people[u].y[rows[u]]) for u in judged])
        for name, shot in shots.items():
            found: dict[int, list[float]] = {}
            for t in trials:
                scored = t.scored[rows[t.person][t.scored]]
                if t.shot == shot and not t.hidden and len(scored):
                    one = left[t.person]
                    head = fit_map(t.stats, with_settings(one.prior, hyper))
                    own = head.logits(spaces[t.person].z[w][scored])
                    own = own + shared_share(t.stats, hyper) * logits[t.person][w][scored]
                    found.setdefault(t.person, []).append(_right(own, one.y[scored]))
            if found:
                row[name] = _spread([float(np.mean(v)) for v in found.values()])
        table.append(row)
    return table


def _right(logits: Array, y: Labels) -> float:
    return float((logits.argmax(1) == y).mean())


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "sd": float(np.std(values)), "worst": float(np.min(values))}
