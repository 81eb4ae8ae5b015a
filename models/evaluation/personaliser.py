"""Whom an evaluation asks: something that calibrates users and predicts, in this process or over HTTP."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle, Manifest
from models.data.parts import signals
from models.data.windows import shared_samples
from models.evaluation.protocols import ProtocolError
from models.heads import statistics
from models.heads.calibration import calibrate, shared_head
from models.heads.head import Head, softmax
from models.heads.statistics import Statistics

__all__ = ["LocalPersonaliser", "Outcome", "Personaliser"]

BATCH = 64
DEFAULT_METHOD = "map"
ROWS_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a calibration came to, in the words of the HTTP API's report."""

    outcome: str
    evidence: str


class Personaliser(Protocol):
    """Calibrates users of one bundle, whose `manifest` it knows, and predicts for them."""

    manifest: Manifest

    def calibrate(
        self,
        user: str,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        repetition: NDArray[np.int64],
        method: str = DEFAULT_METHOD,
    ) -> Outcome:
        """Calibrate a user from windows `(n, C, T)`, class indices `(n,)` and repetition ids `(n,)`."""

    def predict(self, user: str | None, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities `(n, K)` by the user's active head; by the shared one for None or a user without a head."""

    def erase(self, user: str) -> None:
        """Forget a user; not an error for one who is unknown."""


@dataclass(slots=True)
class _User:
    statistics: bytes | None = None
    head: Head | None = None


class LocalPersonaliser:
    """A bundle in this process, computing what the service computes: same features, fit, guard and float32 heads.

    Windows that were seen before are not run again.

    Raises:
        BundleError: the folder is not a bundle.
        ProtocolError: there is no ONNX Runtime, or it refuses the graph.
    """

    def __init__(self, path: Path) -> None:
        self.bundle: Bundle = bundles.load(bundles.resolve(path))
        if self.bundle.manifest.features:
            self.bundle = self.bundle.of_one_output("evaluations are of")
        self.manifest: Manifest = self.bundle.manifest
        self._session = _session(self.bundle.backbone)
        self._input = self._session.get_inputs()[0].name
        self._cache: dict[bytes, NDArray[np.float32]] = {}
        self._users: dict[str, _User] = {}
        self._shared = _float32(shared_head(self.bundle.prior))

    def features(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features `(n, d)` of windows `(n, C, T)`, in batches of 64.

        Raises:
            ProtocolError: windows of another shape than the model takes.
        """
        x = np.ascontiguousarray(x, np.float32)
        if x.shape[1:] != self.manifest.input.window_shape:
            raise ProtocolError(
                f"The model takes windows of shape {self.manifest.input.window_shape}, not {x.shape[1:]}."
            )
        if not len(x):
            return np.empty((0, self.manifest.feature_dim), np.float32)
        keys = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
        if len(self._cache) + len(x) > ROWS_KEPT:
            self._cache.clear()
        new = {key: i for i, key in enumerate(keys) if key not in self._cache}
        where = np.sort(np.fromiter(new.values(), np.int64, len(new)))
        for at in range(0, len(where), BATCH):
            rows = where[at : at + BATCH]
            z = self._session.run(None, {self._input: x[rows]})[0]
            self._cache.update(zip([keys[i] for i in rows], z, strict=True))
        return np.stack([self._cache[key] for key in keys])

    def forget_features(self) -> None:
        """Drop the features of windows seen so far; a protocol calls it between users."""
        self._cache.clear()

    def calibrate(
        self,
        user: str,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        repetition: NDArray[np.int64],
        method: str = DEFAULT_METHOD,
    ) -> Outcome:
        """Calibrate a user; later calls add to earlier ones, as the service's do.

        Raises:
            CalibrationError: one class only.
        """
        held, seen = self._users.get(user, _User()), signals(self.manifest.input, x)
        result = calibrate(
            self.bundle.prior,
            self.features(x),
            y,
            repetition,
            before=None if held.statistics is None else statistics.from_bytes(held.statistics),
            previous=held.head,
            method=method,
            overlap=max((shared_samples(s.x[s.there]) for s in seen if s.there.any()), default=0),
            x=seen if self.manifest.input.parts else x,
        )
        verdict = result.verdict
        self._users[user] = _User(
            held.statistics if verdict.outcome == "kept" else statistics.to_bytes(result.statistics),
            held.head if result.head is None else _float32(result.head),
        )
        return Outcome(verdict.outcome, verdict.evidence)

    def predict(self, user: str | None, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities `(n, K)` by the user's active head; by the shared one for None or a user without a head."""
        held = self._users.get(user) if user is not None else None
        head = self._shared if held is None or held.head is None else held.head
        z = self.features(x)
        # The service applies heads batch by batch, in float32; so the last bits are the same.
        logits = [z[at : at + BATCH] @ head.weight.T + head.bias for at in range(0, len(z), BATCH)]
        return np.asarray(softmax(np.concatenate(logits)), np.float32)

    def state(self, user: str) -> tuple[Statistics, Head]:
        """A user's labelled statistics and active head; empty ones and the shared head where the guard kept it."""
        held, prior = self._users.get(user, _User()), self.bundle.prior
        if held.statistics is None or held.head is None:
            return Statistics.empty(prior.classes, prior.personal), self._shared
        return statistics.from_bytes(held.statistics), held.head

    def erase(self, user: str) -> None:
        """Forget a user; not an error for one who is unknown."""
        self._users.pop(user, None)


def _float32(head: Head) -> Head:
    """The head as the store keeps it and the service applies it."""
    return Head(np.asarray(head.weight, np.float32), np.asarray(head.bias, np.float32))


def _session(graph: bytes) -> Any:
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise ProtocolError("There is no ONNX Runtime here; install headway[cpu] (or [cuda]) to score bundles.") from e
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises its own unexported classes
        raise ProtocolError(f"ONNX Runtime refuses the bundle's graph: {e}") from e
