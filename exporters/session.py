"""A graph opened by ONNX Runtime on the device asked for, as a function from raw input to features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.bundle import InputSpec

Forward = Callable[[NDArray[Any]], NDArray[np.float32]]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class SessionError(ValueError):
    """A graph cannot run, or not on the device asked for; the message says why."""


def opened(graph: bytes, spec: InputSpec, *, device: str = "cpu", threads: int = 0) -> Forward:
    """Open a graph; `threads` 0 leaves their number to ONNX Runtime. Rows are whole: lengths are their axis's.

    ONNX Runtime falls back to the CPU without an error when a provider cannot be loaded; here that is one.

    Raises:
        SessionError: there is no such device here, or ONNX Runtime refuses the graph; later, if it cannot run.
    """
    asked = PROVIDERS.get(device)
    there = ort.get_available_providers()
    if asked is None or asked not in there:
        usable = [name for name, provider in PROVIDERS.items() if provider in there]
        raise SessionError(f"the device {device!r} cannot be used by this ONNX Runtime; it has: {', '.join(usable)}")
    if device == "cuda":
        ort.preload_dlls()  # CUDA and cuDNN come as wheels, which the loader does not search
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        session = ort.InferenceSession(graph, options, providers=[asked])
    except Exception as e:  # onnxruntime raises its own unexported classes
        raise SessionError(f"ONNX Runtime refuses the graph: {e}") from e
    bound = session.get_providers()[0]
    if bound != asked:
        raise SessionError(f"{asked} was asked for, but the session is bound to {bound}: is there a driver and a GPU?")
    session.disable_fallback()
    lengths = None if spec.padding is None else spec.padding.lengths
    name = next(node.name for node in session.get_inputs() if node.name != lengths)

    def forward(x: NDArray[Any]) -> NDArray[np.float32]:
        """Run the graph on whole windows."""
        feeds = {name: x}
        if spec.padding is not None and lengths is not None:
            feeds[lengths] = np.full(len(x), x.shape[spec.padding.axis], np.int64)
        try:
            return np.asarray(session.run(None, feeds)[0], np.float32)
        except Exception as e:  # as above
            raise SessionError(f"the graph cannot run on {device}: {e}") from e

    return forward
