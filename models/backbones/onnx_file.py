"""Encoders that are ONNX already: `onnx:<file>`. Nothing of them can be trained; prior and head are fitted on top."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from exporters.input_spec import InputSpec
from models.backbones.module import EncoderModule
from models.backbones.registry import BackboneError, register_family

__all__ = ["OnnxConfig", "OnnxEncoder"]


class OnnxConfig(BaseModel):
    """Settings of an ONNX encoder: what its one input means, which output has the features, and how to pool them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: bool = True
    input: InputSpec
    output: str | None = None
    tokenizer: str | None = None


class OnnxEncoder(EncoderModule):
    """An ONNX graph as a backbone; its bytes are part of the state, so that a run holds them."""

    default_cfg: OnnxConfig
    graph: Tensor

    def __init__(self, graph: bytes, cfg: OnnxConfig, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.default_cfg, self.input, self.files = cfg, cfg.input, dict(files)
        self.register_buffer("graph", torch.from_numpy(np.frombuffer(graph, np.uint8).copy()))
        self._session: Any = None
        self._features = 0

    @property
    def num_features(self) -> int:
        """Number of features d."""
        if not self._features:
            spec = self.input
            self._features = self.forward_features(torch.zeros((1, *spec.sized()), dtype=_torch_type(spec))).shape[1]
        return self._features

    @property
    def graph_bytes(self) -> bytes:
        """The graph as it was read."""
        return bytes(self.graph.numpy().tobytes())

    def forward_features(self, x: Tensor) -> Tensor:
        """Features `(n, d)` by ONNX Runtime on the CPU; no gradient passes."""
        session = self._opened()
        (taken,) = session.get_inputs()
        names = [o.name for o in session.get_outputs()]
        output = self.default_cfg.output or names[0]
        if output not in names:
            raise BackboneError(f"The graph has no output '{output}'; it has: {', '.join(names)}.")
        z = np.asarray(session.run([output], {taken.name: x.numpy()})[0], np.float32)
        if z.ndim != 2:
            raise BackboneError(f"The output '{output}' has shape {z.shape}; features (n, d) were expected.")
        return torch.from_numpy(z)

    def _opened(self) -> Any:
        if self._session is None:
            import onnxruntime as ort

            try:
                session = ort.InferenceSession(self.graph_bytes, providers=["CPUExecutionProvider"])
            except Exception as e:  # onnxruntime raises its own unexported classes
                raise BackboneError(f"ONNX Runtime refuses the graph: {e}") from e
            if len(session.get_inputs()) != 1:
                raise BackboneError("An ONNX encoder must have one input; merge the others into the graph first.")
            self._session = session
        return self._session

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # The size of the graph is not known before it is loaded.
        loaded = state_dict.get(f"{prefix}graph")
        if loaded is not None and loaded.shape != self.graph.shape:
            self.graph = torch.empty_like(loaded)
        self._session, self._features = None, 0
        super()._load_from_state_dict(dict(state_dict), prefix, *args)


def _torch_type(spec: InputSpec) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, spec.dtype)).dtype


@register_family("onnx")
def _onnx(name: str, **settings: Any) -> nn.Module:
    """The graph in the file `name`; what its input means is in `name.json` beside it, or in the settings."""
    file = Path(name)
    described = file.with_suffix(".json")
    if "input" not in settings and described.is_file():
        try:
            settings = {**json.loads(described.read_text()), **settings}
        except ValueError as e:
            raise BackboneError(f"{described} is not JSON: {e}") from e
    if "input" not in settings:
        raise BackboneError(f"onnx:{name} needs {described}, which says what the graph takes: see docs/training.md.")
    cfg = OnnxConfig.model_validate(settings)
    if not cfg.weights:
        return OnnxEncoder(b"", cfg, {})
    try:
        files = {} if cfg.tokenizer is None else {"tokenizer.json": (file.parent / cfg.tokenizer).read_bytes()}
        return OnnxEncoder(file.read_bytes(), cfg, files)
    except OSError as e:
        raise BackboneError(f"{e.filename} cannot be read: {e.strerror}") from e
