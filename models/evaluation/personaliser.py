"""Whom an evaluation asks: something that calibrates users and predicts, in this process or over HTTP."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Bundle, InputSpec
from models.data.windows import shared_samples
from models.evaluation.protocols import EvaluationError
from models.heads import statistics
from models.heads.calibration import calibrate, shared_head
from models.heads.head import Head, softmax

__all__ = ["LocalPersonaliser", "Personaliser"]

BATCH = 64
ROWS_KEPT = 100_000


class Personaliser(Protocol):
    """Calibrates users and predicts for them.

    `labels` are the class names in the order of indices and probabilities; `spec` is the input that is taken.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names."""

    @property
    def spec(self) -> InputSpec:
        """The input: shape, rate, stride."""

    def features(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features `(n, d)` of windows `(n, C, T)`."""

    def calibrate(
        self,
        user: str,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        repetition: NDArray[np.int64],
        *,
        method: str = "map",
        activate: str = "if_better",
    ) -> dict[str, Any]:
        """Calibrate a user from windows `(n, C, T)`, class indices `(n,)` and repetition ids `(n,)`.

        Returns the report of the HTTP API: `outcome`, `evidence`, `weight`, `reason`, `metrics`, `warnings`, ….
        """

    def predict(self, user: str | None, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities `(n, K)` by the user's active head; by the shared one for None or a user without a head."""

    def erase(self, user: str) -> None:
        """Forget a user; not an error for one who is unknown."""


@dataclass(slots=True)
class _User:
    statistics: bytes | None = None
    head: Head | None = None
    version: int = 0
    active: int = 0


class LocalPersonaliser:
    """A bundle in this process, computing what the service computes: same features, fit, guard and float32 heads.

    Windows that were seen before are not run again.

    Raises:
        BundleError: the folder is not a bundle.
        EvaluationError: there is no ONNX Runtime, or it refuses the graph.
    """

    def __init__(self, path: Path) -> None:
        self.bundle: Bundle = bundles.load(bundles.resolve(path))
        self._session = _session(self.bundle.backbone)
        self._input = self._session.get_inputs()[0].name
        self._cache: dict[bytes, NDArray[np.float32]] = {}
        self._users: dict[str, _User] = {}
        self._shared = _float32(shared_head(self.bundle.prior))

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names."""
        return self.bundle.manifest.labels

    @property
    def spec(self) -> InputSpec:
        """The input: shape, rate, stride."""
        return self.bundle.manifest.input

    def features(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features `(n, d)` of windows `(n, C, T)`, in batches of 64.

        Raises:
            EvaluationError: windows of another shape than the model takes.
        """
        x = np.ascontiguousarray(x, np.float32)
        if x.shape[1:] != self.spec.window_shape:
            raise EvaluationError(f"The model takes windows of shape {self.spec.window_shape}, not {x.shape[1:]}.")
        if not len(x):
            return np.empty((0, self.bundle.manifest.feature_dim), np.float32)
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

    def calibrate(
        self,
        user: str,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        repetition: NDArray[np.int64],
        *,
        method: str = "map",
        activate: str = "if_better",
    ) -> dict[str, Any]:
        """Calibrate a user as `Personaliser.calibrate` says; later calls add to earlier ones.

        Raises:
            CalibrationError: one class only, or a method that does not fit.
        """
        held = self._users.get(user, _User())
        result = calibrate(
            self.bundle.prior,
            self.features(x),
            y,
            repetition,
            before=None if held.statistics is None else statistics.from_bytes(held.statistics),
            previous=held.head,
            method=method,
            overlap=shared_samples(x),
        )
        verdict = result.verdict
        outcome = "promoted" if activate == "always" else verdict.outcome
        head = {"always": result.candidate, "never": None}.get(activate, result.head)
        version = held.version + 1
        self._users[user] = _User(
            held.statistics if outcome == "kept" else statistics.to_bytes(result.statistics),
            held.head if head is None else _float32(head),
            version,
            held.active if head is None else version,
        )
        return {
            "calibration_id": str(uuid.uuid4()),
            "model": self.bundle.manifest.name,
            "model_version": str(self.bundle.manifest.version),
            "version": version,
            "active_version": self._users[user].active,
            "outcome": outcome,
            "evidence": verdict.evidence,
            "reason": verdict.reason,
            "method": result.method,
            "weight": verdict.weight,
            "metrics": {
                name: None if score is None else asdict(score)
                for name in ("shared", "previous", "candidate")
                for score in (getattr(verdict, name),)
            },
            "warnings": list(result.warnings),
            "timings_ms": {stage: 1e3 * seconds for stage, seconds in result.seconds.items()},
        }

    def predict(self, user: str | None, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities `(n, K)` by the user's active head; by the shared one for None or a user without a head."""
        held = self._users.get(user) if user is not None else None
        head = self._shared if held is None or held.head is None else held.head
        z = self.features(x)
        # The service applies heads batch by batch, in float32; so the last bits are the same.
        logits = [z[at : at + BATCH] @ head.weight.T + head.bias for at in range(0, len(z), BATCH)]
        return np.asarray(softmax(np.concatenate(logits)), np.float32)

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
        raise EvaluationError(
            "There is no ONNX Runtime here; install headway[cpu] (or [cuda]) to score bundles."
        ) from e
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises its own unexported classes
        raise EvaluationError(f"ONNX Runtime refuses the bundle's graph: {e}") from e
