"""ONNX Runtime sessions that run where they were asked to."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class RuntimeUnavailable(RuntimeError):
    """The graph cannot run as asked; the message says why."""


class Runtime:
    """One session of a backbone: `(n, C, T)` float32 in, `(n, d)` float32 out.

    ONNX Runtime falls back to the CPU without an error when a provider cannot be loaded; here that is one.

    Raises:
        RuntimeUnavailable: the graph is invalid, or the session is bound to another provider than asked for.
    """

    def __init__(self, graph: bytes, *, device: str = "cpu", threads: int = 1) -> None:
        if device == "cuda":
            ort.preload_dlls()  # CUDA and cuDNN come as wheels, which the loader does not search
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        wanted = PROVIDERS[device]
        if wanted not in ort.get_available_providers():
            raise RuntimeUnavailable(
                f"{wanted} is not in this ONNX Runtime build ({', '.join(ort.get_available_providers())})"
            )
        try:
            self._session = ort.InferenceSession(graph, options, providers=[wanted])
        except Exception as e:  # onnxruntime raises its own unexported classes
            raise RuntimeUnavailable(f"ONNX Runtime refuses the graph: {e}") from e
        self.provider: str = self._session.get_providers()[0]
        if self.provider != wanted:
            raise RuntimeUnavailable(f"{wanted} was asked for, but the session is bound to {self.provider}")
        self._input: str = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the features of a batch."""
        result: NDArray[np.float32] = self._session.run(self._outputs, {self._input: x})[0]
        return result
