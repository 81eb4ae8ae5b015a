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
    if name not in CLASSIFIABLE:
        raise InvalidRequest(f"output {name!r} cannot be classified; {' and '.join(CLASSIFIABLE)} can")


def top(tensor: Tensor, labels: Sequence[str], k: int) -> Tensor:
    """Turn scores `(n, K)` into BYTES `(n, min(k, K))` of `value:index:label`, the best class first."""
    scores = tensor.data
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    data = np.empty(order.shape, object)
    data.reshape(-1)[:] = [
        f"{value:f}:{index}:{labels[index]}".encode()
        for value, index in zip(best.reshape(-1).tolist(), order.reshape(-1).tolist(), strict=True)
    ]
    return Tensor(tensor.name, "BYTES", data)
