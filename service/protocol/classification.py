"""Triton's classification output: the top classes of a row as text, for clients that want no array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.errors import InvalidRequest
from service.protocol.tensors import Tensor

CLASSIFIABLE = ("logits", "probabilities")


def check(name: str) -> None:
    """Refuse `classification` of an output that has no column for each class.

    Raises:
        InvalidRequest: it has none.
    """
    if name.rpartition(".")[2] not in CLASSIFIABLE:
        raise InvalidRequest(f"output {name!r} cannot be classified; {' and '.join(CLASSIFIABLE)} can")


def top(tensor: Tensor, labels: Sequence[Sequence[str]], k: int) -> Tensor:
    """Turn scores `(n, K)` into BYTES `(n, min(k, K))` of `value:index:label`, the best class first; names a row."""
    scores = tensor.data
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    data = np.empty(order.shape, object)
    for row, names, values, indices in zip(data, labels, best.tolist(), order.tolist(), strict=True):
        row[:] = [
            f"{value:f}:{index}:{names[index] if index < len(names) else ''}".encode()
            for value, index in zip(values, indices, strict=True)
        ]
    return Tensor(tensor.name, "BYTES", data)
