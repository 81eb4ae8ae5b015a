"""What comes behind an encoder: generic head, space of personal heads, population prior, and how they did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbones.module import EncoderModule
from models.backbones.probe import ProbeConfig, ProbedEncoder, recorded
from models.data.collections import Collection, Items
from models.data.media import reader_of
from models.heads.head import log_loss
from models.heads.prior import HyperParameters, Prior
from models.heads.tuning import LeftOut, Trial, evidence, trials_of, tune
from models.training.config import TrainingError
from models.training.pooling import Space, pooled_temperature, probe_prior, space_of
from models.training.probe_fit import fit_probe, folds_of, left_out_logits, stacked

__all__ = [
    "FEWEST_PEOPLE",
    "WHAT",
    "Fitted",
    "Head",
    "Judge",
    "assembled",
    "by_user",
    "fit_top",
    "left_out",
    "parity_items",
    "unit",
    "usable",
]

Array = NDArray[np.float64]
Tick = Callable[[str, int, int], None]
PARITY_ITEMS = 64
FEWEST_PEOPLE = 3
"""Users from which on they are a population: with fewer, all their items are pooled."""
TEMPERATURES = (0.7, 1.0, 1.4, 2.0, 2.8)
POOLED = {"window": 1.0, "between": 3.0, "novelty": 1.0, "pooled": True}
"""Settings of heads where no users tell: a label may be anywhere. Chosen on draws of people with five own labels among
Tux Paint's stamps, other draws than those of docs/benchmarks.md; the settings of signals did 4 to 10 points worse."""
WHAT = {
    "image": "Images are turned upright, put on white, resized and cut by the service as the manifest's media say; "
    "in the graph: scaling, the network, its projection and a linear probe. Send JPEG or PNG files.",
    "text": "The service tokenises by the bundle's tokenizer; in the graph: the mask of what is filled up, the "
    "network, pooling, its projection and a linear probe. Send plain text.",
    "audio": "The service decodes, mixes down and resamples; in the graph: scaling by clip, the network, pooling, "
    "its projection and a linear probe. Send WAV, FLAC or OGG files.",
}


@dataclass(frozen=True, eq=False)
class Judge:
    """A network that has not seen what is `out (n,)`: features of everything `(n, d)` and logits `(n, K)` by it."""

    out: NDArray[np.bool_]
    features: Array
    logits: Array


@dataclass(frozen=True, eq=False)
class Head:
    """A trained linear head on features of length 1, weight `(K, d)` and bias `(K,)`, and networks that judge it."""

    weight: Array
    bias: Array
    judges: tuple[Judge, ...]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is put on an encoder: space, generic head `(d, K)` and `(K,)`, prior, and how it did on what was left out.

    The head is on features of length 1 less the space's centre.
    """

    space: Space
    weight: Array
    bias: Array
    prior: Prior
    evaluation: dict[str, Any]


def by_user(collection: Items) -> bool:
    """Whether the collection's users are a population."""
    return len(collection.users) >= FEWEST_PEOPLE


def usable(collection: Collection) -> None:
    """Raise `TrainingError` where nobody, or no label, has enough examples to be learned from and scored."""
    y = collection.y
    if not by_user(collection):
        if min(np.bincount(y)) < 2:
            lonely = collection.labels[int(np.bincount(y).argmin())]
            raise TrainingError(f"'{lonely}' has one example; two are the least.")
        return
    for u in range(len(collection.users)):
        own = collection.user == u
        if (np.bincount(y[own]) >= 2).sum() >= 2:
            return
    raise TrainingError("No user has enough examples of two labels to be calibrated and scored.")


def unit(z: Array) -> Array:
    """Features brought to length 1."""
    return np.asarray(z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12))


def fit_top(
    features: Array,
    collection: Collection,
    personal: int,
    seed: int,
    tick: Tick,
    head: Head | None = None,
    space: Space | None = None,
) -> Fitted:
    """Fit all that comes behind an encoder on its features `(n, d)` of a collection, or `(n, views, d)`.

    Of several views of each example all but the generic head see the first one only, which is the example as it is.

    Without a `head` the encoder has not seen the collection: a linear probe is the generic head, chosen on what folds
    leave out. With one the encoder was trained on it: temperature, settings of personal heads and all figures are then
    from networks that had left the examples out, in their own features. A `space` is given where several tasks share
    it; else it is made of these features.

    Raises:
        TrainingError: a class has one example, or no user has enough examples.
    """
    views, y = unit(features), collection.y
    z = views if views.ndim == 2 else views[:, 0]
    people = by_user(collection)
    usable(collection)
    space = space or space_of(z, y, personal)
    tick("generic head", 0, 1)
    if head is None:
        folds = folds_of(y, collection.user, people, seed)
        reduced = space.reduced(views)
        pull, temperature, logits = left_out_logits(reduced, y, len(collection.labels), folds)
        weight, bias = fit_probe(*stacked(reduced, y), len(collection.labels), pull)
        weight, told = space.basis @ weight.T, {"pull": pull}
        judged = np.ones(len(y), bool)
        judges = [Judge(judged, z, logits)]
    else:
        judges = [Judge(j.out, unit(j.features), j.logits) for j in head.judges]
        judged, logits, temperature = left_out(judges, y)
        weight, bias, told = head.weight.T, head.bias + space.centre @ head.weight.T, {}
    tick("generic head", 1, 1)
    if people:
        hyper, figures = _personal(judges, logits, collection, personal, tick)
    else:
        spaces = [(space if head is None else space_of(j.features[~j.out], y[~j.out], personal), j) for j in judges]
        seen = [(s.personal(j.features), j.out) for s, j in spaces]
        hyper, figures = pooled_temperature(seen, collection, HyperParameters.model_validate(POOLED), seed), []
    user = collection.user if people else np.zeros(len(y), np.int64)
    prior = probe_prior(space.personal(z), y, user, collection.repetition, collection.labels, hyper)
    evaluation = {**_figures(logits, judged, collection, people), "personal": figures}
    evaluation["zero_shot"] |= {**told, "temperature": temperature}
    return Fitted(space, weight / temperature, bias / temperature, prior, evaluation)


def left_out(judges: Sequence[Judge], y: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Array, float]:
    """Which examples some network had left out, everyone's logits by theirs, tempered, and the temperature."""
    judged = np.any([j.out for j in judges], 0)
    logits = np.zeros_like(judges[0].logits)
    for j in judges:
        logits[j.out] = j.logits[j.out]
    losses = [float(log_loss(logits[judged] / t, y[judged]).mean()) for t in TEMPERATURES]
    temperature = TEMPERATURES[int(np.argmin(losses))]
    return judged, logits / temperature, temperature


def _figures(logits: Array, judged: NDArray[np.bool_], collection: Collection, people: bool) -> dict[str, Any]:
    hit = logits.argmax(1) == collection.y
    group = collection.user if people else collection.y
    shares = np.array([hit[judged & (group == g)].mean() for g in np.unique(group[judged])])
    return {
        "protocol": _protocol(len(shares), len(collection.users)) if people else "parts of every class, each left out",
        "zero_shot": {
            "mean": float(shares.mean() if people else hit[judged].mean()),
            "sd": float(shares.std()),
            "worst": float(shares.min()),
            "of": "users" if people else "classes",
        },
        "users": len(shares) if people else 0,
    }


def _protocol(judged: int, users: int) -> str:
    """Who was left out: everyone in turn, or (one fold) some."""
    return "people of the population, each left out" + (f"; {judged} of {users} judged" if judged < users else "")


def _personal(
    judges: Sequence[Judge], logits: Array, collection: Collection, personal: int, tick: Tick
) -> tuple[HyperParameters, list[dict[str, float]]]:
    """Settings and record of personal heads, each person's in the space and under the prior of all the others."""
    left: list[LeftOut] = []
    trials: list[Trial] = []
    y, user, repetition = collection.y, collection.user, collection.repetition
    for u in range(len(collection.users)):
        tick("leave one out", u, len(collection.users))
        own = user == u
        judge = next((j for j in judges if j.out[own].all()), None)
        if judge is None:  # in no part that was left out
            continue
        # A network that left others out with this person: they are strangers to it, and would be to the prior.
        known = ~own if judge.out.all() else ~judge.out
        space = space_of(judge.features[known], y[known], personal)
        kept = space.personal(judge.features[known])
        prior = probe_prior(kept, y[known], user[known], repetition[known], collection.labels, HyperParameters())
        mine = space.personal(judge.features[own])
        left.append(LeftOut(prior, mine, y[own], np.zeros(own.sum(), np.int64), repetition[own], logits[own]))
        trials += trials_of(len(left) - 1, left[-1])
    if not trials:
        raise TrainingError("No user has enough examples of two labels to be calibrated and scored.")
    hyper = tune(left, trials, HyperParameters(growth=1.0, window=1.0, novelty=1.0))
    records, figures = evidence(left, trials, hyper, 1, place=False)
    tick("leave one out", 1, 1)
    return hyper.model_copy(update={"evidence": records}), figures


def assembled(name: str, encoder: EncoderModule, fitted: Fitted) -> ProbedEncoder:
    """The encoder with all that was fitted behind it, in inference mode."""
    space = fitted.space
    sizes = {"width": len(space.centre), "personal": space.projection.shape[1], "classes": len(fitted.bias)}
    cfg = ProbeConfig.model_validate({**recorded(name, encoder), **sizes})
    probed = ProbedEncoder(encoder, cfg)
    for buffer, value in (
        (probed.centre, space.centre),
        (probed.projection, space.projection),
        (probed.weight, fitted.weight),
        (probed.bias, fitted.bias),
    ):
        buffer.copy_(torch.from_numpy(value.astype(np.float32)))
    return probed.eval()


def parity_items(probed: EncoderModule, collection: Items) -> NDArray[Any]:
    """Real inputs of the collection, spread evenly, as the model takes them."""
    reader = reader_of(probed.input, probed.files)
    assert reader is not None
    picked = np.linspace(0, len(collection) - 1, min(PARITY_ITEMS, len(collection))).astype(int)
    return reader.read([collection.read(int(i)) for i in picked])
