"""ONNX Runtime sessions that run where they were asked to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.bundle import Padding

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class RuntimeUnavailable(RuntimeError):
    """The graph cannot run as asked; the message says why."""


class Runtime:
    """One session of a backbone: a batch of windows in the graph's datatype in, `(n, d)` float32 out.

    ONNX Runtime falls back to the CPU without an error when a provider cannot be loaded; here that is one.

    Raises:
        RuntimeUnavailable: the graph is invalid, or the session is bound to another provider than asked for.
    """

    def __init__(self, graph: bytes, *, device: str = "cpu", threads: int = 1, padding: Padding | None = None) -> None:
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
        lengths = None if padding is None else padding.lengths
        inputs: list[str] = [node.name for node in self._session.get_inputs()]
        if lengths is not None and lengths not in inputs:
            raise RuntimeUnavailable(f"the graph has no input {lengths!r} for lengths; it has {', '.join(inputs)}")
        others = [name for name in inputs if name != lengths]
        if len(others) != 1:
            raise RuntimeUnavailable(f"the graph must have one input beside the lengths; it has {', '.join(others)}")
        self._input, self._lengths, self._padding = others[0], lengths, padding
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, x: NDArray[Any], lengths: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the features of a batch; `lengths (n,)` are the true ones of padded windows."""
        feeds: dict[str, NDArray[Any]] = {self._input: x}
        if self._padding is not None and self._lengths is not None:
            whole = x.shape[self._padding.axis]
            feeds[self._lengths] = np.full(len(x), whole, np.int64) if lengths is None else lengths
        result: NDArray[np.float32] = self._session.run(self._outputs, feeds)[0]
        return result
