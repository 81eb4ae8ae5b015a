"""Rows of several modalities: what a fused bundle's one input tensor holds, and back again. Torch-free.

A row is `[present (M) | part 1 | … | part M]` in float32: for each of the M parts 1 where it is there and 0 where it is
missing, then the parts, flattened, at their longest. A missing part is zeros, which nothing reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.input_spec import InputSpec
from models.heads.inputs import Sensor

__all__ = ["fused_input", "pack", "places", "present", "signals", "unpack", "with_missing", "without"]

LARGEST_INTEGER = 2**24
"""Up to here float32 has every integer."""


def fused_input(parts: Sequence[InputSpec]) -> InputSpec:
    """The input that takes these parts, packed.

    Raises:
        ValueError: their names clash, or one cannot be a part.
    """
    size = len(parts) + sum(part.row_size for part in parts)
    return InputSpec(
        shape=(-1, size), unit="see parts", modality="+".join(part.modality for part in parts), parts=tuple(parts)
    )


def places(spec: InputSpec) -> Iterator[tuple[InputSpec, slice]]:
    """The parts of a fused input, and where each is in a row."""
    at = len(spec.parts)
    for part in spec.parts:
        yield part, slice(at, at + part.row_size)
        at += part.row_size


def pack(spec: InputSpec, given: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Pack windows `(n, …)` of some parts, by name, into rows `(n, size)`; parts that are not given are missing.

    Parts of variable length are filled up as their padding says.

    Raises:
        ValueError: no part is given, one is not the input's, does not fit it, has another number of rows, or holds
            integers that float32 does not.
    """
    named = ", ".join(part.name for part in spec.parts)
    unknown = sorted(set(given) - {part.name for part in spec.parts})
    if unknown or not given:
        raise ValueError(f"{f'there is no part {unknown[0]!r}' if unknown else 'no part is given'}; there are {named}")
    counts = {name: len(x) for name, x in given.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"all parts must have as many rows as each other; there are {told}")
    rows = np.zeros((next(iter(counts.values())), spec.shape[1]), np.float32)
    for number, (part, place) in enumerate(places(spec)):
        if part.name not in given:
            continue
        x = given[part.name]
        misfit = part.misfit(x.shape)
        if misfit:
            raise ValueError(f"part {part.name!r} {misfit}")
        if x.dtype.kind in "iu" and x.size and max(abs(int(x.min())), abs(int(x.max()))) > LARGEST_INTEGER:
            raise ValueError(f"part {part.name!r} holds integers beyond ±{LARGEST_INTEGER}")
        rows[:, number] = 1
        if part.padding is None:
            rows[:, place] = x.reshape(len(x), -1)
        else:
            block = rows[:, place].reshape(len(x), *part.sized(part.padding.maximum))
            block[...] = part.padding.value
            block[tuple(slice(0, size) for size in x.shape)] = x
            rows[:, place] = block.reshape(len(x), -1)
    return rows


def present(spec: InputSpec, rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which parts each row has, `(n, M)`."""
    return np.asarray(rows[:, : len(spec.parts)] > 0.5)


def unpack(spec: InputSpec, rows: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The parts of packed rows by name, each `(n, …)` at its longest and of its own datatype; zeros where missing."""
    return {
        part.name: rows[:, place]
        .reshape(len(rows), *part.sized(None if part.padding is None else part.padding.maximum))
        .astype(part.dtype)
        for part, place in places(spec)
    }


def signals(spec: InputSpec, x: NDArray[Any]) -> list[Sensor]:
    """Windows as the sensors gave them: those of all parts, with which rows have each; else the one sensor's, `x`."""
    if not spec.parts:
        return [Sensor("", x, np.ones(len(x), bool))]
    there = present(spec, x)
    return [Sensor(name, windows, there[:, m]) for m, (name, windows) in enumerate(unpack(spec, x).items())]


def with_missing(spec: InputSpec, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same rows, of which every second one lacks a part, each part in turn."""
    rows = rows.copy()
    where = list(places(spec))
    for i in range(1, len(rows), 2):
        number = (i // 2) % len(where)
        if present(spec, rows[i : i + 1])[0].sum() > 1:
            rows[i, number] = 0
            rows[i, where[number][1]] = 0
    return rows


def without(spec: InputSpec, rows: NDArray[np.float32], part: int) -> NDArray[np.float32]:
    """The rows that have other parts, too, without the part of a number; there may be none."""
    there = present(spec, rows)
    found: NDArray[np.float32] = rows[there[:, part] & (there.sum(1) > 1)].copy()
    found[:, part] = 0
    found[:, list(places(spec))[part][1]] = 0
    return found
