"""Views of windows for test-time augmentation: fixed changes that leave a label as it is. Torch-free."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec, Views
from models.data.parts import places, present, unpack

MOST_VIEWS = 32
SEED = 20_110
"""Of what the views are: the same in every process and for ever, so that an answer can be given again."""
SIGNAL = Views(channel_gain=0.1, noise=0.05)
SOUND = Views(gain=0.3, noise=0.02, shift=0.05)
IMAGE = Views(shift=0.06, flip=True)


def usual(spec: InputSpec) -> Views | None:
    """Return what views of an input are made of: what its bundle says, or what is usual; None for tokens."""
    if spec.views is not None:
        return spec.views
    if spec.media is not None:
        return {"image": IMAGE, "audio": SOUND}.get(spec.media.kind)
    if spec.modality == "image":
        return IMAGE
    return None if spec.datatype == "INT64" else SIGNAL


def has_views(spec: InputSpec) -> bool:
    """Whether windows of an input, or some part of them, have views."""
    return any(usual(part) is not None for part in spec.parts or (spec,))


class _Axes(NamedTuple):
    """Axes of a batch: those that a shift is along, that a flip mirrors, and of the channels (None: there are none)."""

    shift: tuple[int, ...]
    flip: int
    channel: int | None


def _axes(x: NDArray[Any], spec: InputSpec) -> _Axes:
    if x.ndim == 4:  # an image: [n, height, width, 3], or channels first
        return _Axes((1, 2), 2, 3) if x.shape[3] in (1, 3) else _Axes((2, 3), 3, 1)
    timed = spec.sample_rate > 0
    return _Axes((x.ndim - 1,) if timed else (), x.ndim - 1, 1 if x.ndim > 2 else None)


def views(x: NDArray[Any], spec: InputSpec, count: int) -> NDArray[Any]:
    """Return `count` views of each window: `(n * count, …)`, those of a window together, the window itself first.

    View k is the same function of a window whatever else is in the batch. Of packed rows each part is viewed that has
    views; the others, as texts, stay as they are.

    Args:
        x: windows `(n, …)` as the model takes them.
        spec: of the model's input.
        count: views of a window, itself included.

    Raises:
        ValueError: the input has no views.

    Source: test-time augmentation, as in Krizhevsky et al. 2012; averaged features as prototypes, TILDA (2024).
    """
    if not has_views(spec):
        raise ValueError("windows of tokens have no views")
    if spec.parts:
        return _of_parts(x, spec, count)
    how = usual(spec)
    assert how is not None
    made = np.empty((len(x), count, *x.shape[1:]), x.dtype)
    made[:, 0] = x
    axes, rng = _axes(x, spec), np.random.default_rng(SEED)
    for k in range(1, count):
        made[:, k] = _view(x, how, axes, np.random.default_rng(rng.integers(2**63)))
    return made.reshape(-1, *x.shape[1:])


def _of_parts(x: NDArray[Any], spec: InputSpec, count: int) -> NDArray[Any]:
    made, there = np.repeat(x, count, 0), present(spec, x)
    for m, ((part, place), own) in enumerate(zip(places(spec), unpack(spec, x).values(), strict=True)):
        if usual(part) is not None and there[:, m].any():
            made[np.repeat(there[:, m], count), place] = views(own[there[:, m]], part, count).reshape(-1, part.row_size)
    return made


def varied(row: NDArray[Any], spec: InputSpec, how: Views, rng: np.random.Generator) -> NDArray[Any]:
    """Return one random view of a window `(…)`, by the generator: for the augmentation of training."""
    batch = row[None]
    changed: NDArray[Any] = _view(batch, how, _axes(batch, spec), rng)[0]
    return changed.astype(row.dtype)


def averaged(values: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Average `(n * count, m)` over the views of each window: `(n, m)`."""
    if count == 1:
        return values
    mean: NDArray[np.float32] = values.reshape(-1, count, values.shape[1]).mean(1, dtype=np.float64)
    return mean.astype(np.float32)


def _view(x: NDArray[Any], how: Views, axes: _Axes, rng: np.random.Generator) -> NDArray[Any]:
    moves = rng.uniform(-how.shift, how.shift, 2)
    mirrored = how.flip and rng.random() < 0.5
    level = float(np.exp(rng.normal() * how.gain))
    noise = float(rng.random() * how.noise)
    for axis, move in zip(axes.shift, moves, strict=False):
        x = _shifted(x, axis, round(move * x.shape[axis]))
    if mirrored:
        x = np.flip(x, axes.flip)
    if not (how.gain or how.channel_gain or noise):
        return x
    limits = np.finfo(x.dtype) if x.dtype.kind == "f" else np.iinfo(x.dtype)
    y = x.astype(np.float64) * level
    if how.channel_gain and axes.channel is not None:
        shape = [1] * x.ndim
        shape[axes.channel] = x.shape[axes.channel]
        y *= np.exp(rng.normal(size=shape) * how.channel_gain)
    if noise:
        over = tuple(a for a in range(1, x.ndim) if a != axes.channel)
        y += noise * y.std(over, keepdims=True) * rng.standard_normal((1, *x.shape[1:]), dtype=np.float32)
    return np.clip(y if x.dtype.kind == "f" else np.rint(y), limits.min, limits.max)


def _shifted(x: NDArray[Any], axis: int, by: int) -> NDArray[Any]:
    """Move along an axis by whole steps; what is missing at an edge is reflected."""
    size = x.shape[axis]
    if not by or size < 2:
        return x
    at = np.abs(np.arange(size) - by)
    at = np.where(at < size, at, 2 * (size - 1) - at)
    return np.take(x, at, axis)
