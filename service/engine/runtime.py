"""ONNX Runtime sessions that run where they were asked to, and can prove it."""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.bundle import Bundle, InputSpec, Padding
from service.engine import placement
from service.engine.placement import Placement

DEVICES: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
}
"""Providers asked for by device: the first must be bound; a second one takes what the first has no kernel for."""

BUFFERS_KEPT = 64


class RuntimeUnavailable(RuntimeError):
    """The graph cannot run as asked; the message says why."""


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Batch sizes 1, 2, 4, ... up to `largest`, which is the last one."""
    return (*(1 << i for i in range((largest - 1).bit_length())), largest)


class Runtime:
    """One session of a backbone: a batch of windows in the graph's datatype in, `(n, d)` float32 out.

    ONNX Runtime falls back to the CPU without an error when a provider cannot be loaded; here that is one. With
    `batch_sizes` every batch is filled up to the next of them and runs through buffers on the device that are made once
    a size: a GPU then meets no shape in service that `warm_up` has not shown it.

    Attributes:
        asked: the providers asked for, in order; `provider` is the one bound.
        batch_sizes: sizes that batches are filled up to, ascending, or None: any size, as it is.
        placement: where the nodes ran in the warm-up, if a `profile` of it was asked for (a path to write it to; what
            is slow with it ends with the first run of the warm-up).

    Raises:
        RuntimeUnavailable: the graph is invalid, or the session is bound to another provider than asked for.
    """

    def __init__(
        self,
        graph: bytes,
        *,
        device: str = "cpu",
        threads: int = 1,
        padding: Padding | None = None,
        batch_sizes: Sequence[int] | None = None,
        profile: Path | None = None,
    ) -> None:
        self.asked = DEVICES[device]
        self.batch_sizes = None if batch_sizes is None else tuple(sorted(set(batch_sizes)))
        self.placement: Placement | None = None
        self._profiled = profile is not None
        self._session = _session(graph, device, threads, profile)
        self.provider: str = self._session.get_providers()[0]
        self._memory = "cpu" if device == "cpu" else "cuda"
        lengths = None if padding is None else padding.lengths
        inputs: list[str] = [node.name for node in self._session.get_inputs()]
        if lengths is not None and lengths not in inputs:
            raise RuntimeUnavailable(f"the graph has no input {lengths!r} for lengths; it has {', '.join(inputs)}")
        others = [name for name in inputs if name != lengths]
        if len(others) != 1:
            raise RuntimeUnavailable(f"the graph must have one input beside the lengths; it has {', '.join(others)}")
        self._input, self._lengths, self._padding = others[0], lengths, padding
        self._output: str = self._session.get_outputs()[0].name
        self._buffers: dict[tuple[tuple[int, ...], np.dtype[Any]], _Buffers] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, bundle: Bundle, *, device: str = "cpu", threads: int = 1, max_batch: int = 64) -> Runtime:
        """Open a bundle's graph as a service does, and warm it up: what this returns is ready.

        Raises:
            RuntimeUnavailable: as the constructor and `warm_up`.
        """
        spec = bundle.manifest.input
        sizes = None if device == "cpu" else powers_of_two(max_batch)
        with tempfile.TemporaryDirectory(prefix="headway-") as folder:
            runtime = cls(
                bundle.backbone,
                device=device,
                threads=threads,
                padding=spec.padding,
                batch_sizes=sizes,
                profile=Path(folder) / "warm-up",
            )
            runtime.warm_up(spec, bundle.manifest.feature_dim, max_batch)
        return runtime

    def warm_up(self, spec: InputSpec, dim: int, max_batch: int = 64) -> None:
        """Run zeros of every batch size that will be run, and see where the nodes of the first run were placed.

        Raises:
            RuntimeUnavailable: the features are not `dim` finite numbers a row, or the costly nodes run elsewhere.
        """
        # Each padded length is a shape of its own; past a few, the shortest and the longest stand for all.
        lengths = [None] if spec.padding is None else [spec.padding.multiple_of, spec.padding.maximum]
        for rows in self.batch_sizes or (1, max_batch):
            for length in lengths:
                self._check(np.zeros((rows, *spec.sized(length)), spec.dtype), dim)
                if self._profiled:
                    self._place()

    def _check(self, zeros: NDArray[Any], dim: int) -> None:
        try:
            features = self.run(zeros)
        except Exception as e:  # onnxruntime raises its own unexported classes
            raise RuntimeUnavailable(f"the graph cannot run {zeros.dtype} of shape {zeros.shape}: {e}") from e
        if features.shape != (len(zeros), dim) or not np.isfinite(features).all():
            raise RuntimeUnavailable(
                f"the graph gives features of shape {features.shape} for {len(zeros)} windows of zeros; "
                f"finite ones of shape {(len(zeros), dim)} were expected"
            )

    def _place(self) -> None:
        self.placement = placement.read(Path(self._session.end_profiling()))
        self._profiled = False
        fault = self.placement.fault(self.asked)
        if fault:
            raise RuntimeUnavailable(fault)

    def run(self, x: NDArray[Any], lengths: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the features of a batch; `lengths (n,)` are the true ones of padded windows."""
        if self._padding is not None and self._lengths is not None and lengths is None:
            lengths = np.full(len(x), x.shape[self._padding.axis], np.int64)
        if self.batch_sizes is None:
            feeds = {self._input: x} if self._lengths is None else {self._input: x, self._lengths: lengths}
            result: NDArray[Any] = self._session.run([self._output], feeds)[0]
            return result.astype(np.float32, copy=False)
        most = self.batch_sizes[-1]
        with self._lock:  # the buffers are one caller's at a time
            parts = [
                self._buffered(x[at : at + most], None if lengths is None else lengths[at : at + most])
                for at in range(0, len(x), most)
            ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _buffered(self, x: NDArray[Any], lengths: NDArray[np.int64] | None) -> NDArray[np.float32]:
        rows = next(size for size in self.batch_sizes or () if size >= len(x))
        shape = (rows, *x.shape[1:])
        buffers = self._buffers.pop((shape, x.dtype), None)
        if buffers is None:
            buffers = _Buffers(self._session, self._memory, self._input, self._lengths, shape, x.dtype, self._output)
            if len(self._buffers) >= BUFFERS_KEPT:
                del self._buffers[next(iter(self._buffers))]  # the one unused for longest
        self._buffers[shape, x.dtype] = buffers
        return buffers.run(x, lengths)


class _Buffers:
    """Input and lengths of one batch shape in the device's memory, and the binding that uses them."""

    def __init__(
        self,
        session: Any,
        memory: str,
        name: str,
        lengths: str | None,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        output: str,
    ) -> None:
        self._session, self._binding = session, session.io_binding()
        self._rows: NDArray[Any] = np.zeros(shape, dtype)
        self._device_rows = ort.OrtValue.ortvalue_from_numpy(self._rows, memory, 0)
        self._binding.bind_ortvalue_input(name, self._device_rows)
        if lengths is not None:
            self._lengths = np.ones(shape[0], np.int64)
            self._device_lengths = ort.OrtValue.ortvalue_from_numpy(self._lengths, memory, 0)
            self._binding.bind_ortvalue_input(lengths, self._device_lengths)
        self._binding.bind_output(output, memory)

    def run(self, x: NDArray[Any], lengths: NDArray[np.int64] | None) -> NDArray[np.float32]:
        """Run a batch of at most this size; returns its features."""
        n = len(x)
        self._rows[:n] = x  # what fills the batch up may be of the batch before: rows do not see each other
        self._device_rows.update_inplace(self._rows)
        if lengths is not None:
            self._lengths[:n], self._lengths[n:] = lengths, 1
            self._device_lengths.update_inplace(self._lengths)
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        features = self._binding.copy_outputs_to_cpu()[0][:n]
        return np.array(features, np.float32)


def _session(graph: bytes, device: str, threads: int, profile: Path | None) -> Any:
    asked = DEVICES[device]
    lacking = [name for name in asked if name not in ort.get_available_providers()]
    if lacking:
        raise RuntimeUnavailable(
            f"{lacking[0]} is not in this ONNX Runtime build ({', '.join(ort.get_available_providers())})"
        )
    if device != "cpu":
        ort.preload_dlls()  # CUDA and cuDNN come as wheels, which the loader does not search
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        session = ort.InferenceSession(graph, options, providers=list(asked))
    except Exception as e:  # onnxruntime raises its own unexported classes
        raise RuntimeUnavailable(f"ONNX Runtime refuses the graph: {e}") from e
    session.disable_fallback()  # a device that fails in service is an error, not a slower answer
    bound: str = session.get_providers()[0]
    if bound != asked[0]:
        raise RuntimeUnavailable(f"{asked[0]} was asked for, but the session is bound to {bound}{_why(asked[0])}")
    return session


def _why(provider: str) -> str:
    """Ask the loader why a provider's library could not be used: ONNX Runtime only logs it."""
    folder = Path(ort.__file__).parent / "capi"
    name = provider.removesuffix("ExecutionProvider").lower()
    library = folder / f"libonnxruntime_providers_{name}.so"
    if not library.is_file():
        return f": {library.name} is not installed"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as e:
        return f": {e}"
    return ": its libraries load, so there is no device or driver that it can use"
