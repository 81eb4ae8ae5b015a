"""The model as every other server runs it: the same ONNX file, one thread, and a table of heads; numpy only."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

USER_DIGITS = 8
"""A dense body is the user's number in so many digits, then the windows' bytes."""


class PersonalModel:
    """Backbone and head table, named by the environment: BENCH_GRAPH (ONNX), BENCH_HEADS (.npy)."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["BENCH_GRAPH"], options, providers=["CPUExecutionProvider"])
        described = self.session.get_inputs()[0]
        self.input = described.name
        self.dtype = np.dtype(np.uint8 if "uint8" in described.type else np.float32)
        self.shape: tuple[int, ...] = tuple(described.shape[1:])
        # Mapped, so that the workers of a server share one copy.
        self.heads = np.load(os.environ["BENCH_HEADS"], mmap_mode="r")

    def __call__(self, x: NDArray[Any], users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the probabilities `(n, K)` of windows `(n, ...)`, each with its user's head."""
        features = self.session.run(None, {self.input: x})[0]
        heads = self.heads[users]
        logits = np.einsum("nkd,nd->nk", heads[:, :, :-1], features) + heads[:, :, -1]
        e = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True), np.float32)

    def dense(self, body: bytes) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Read a dense body."""
        x = np.frombuffer(body, self.dtype, offset=USER_DIGITS).reshape(-1, *self.shape)
        return x, np.full(len(x), int(body[:USER_DIGITS]))

    def nested(self, windows: list[Any], user: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Read a JSON body's fields."""
        x = np.asarray(windows, self.dtype).reshape(-1, *self.shape)
        return x, np.full(len(x), user)
