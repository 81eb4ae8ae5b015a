"""Triton, Python backend: all requests that the batcher put together in one forward and one gather."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from personal_model import PersonalModel


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load graph and heads."""
        self.model = PersonalModel()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer a batch of requests."""
        windows = [pb.get_input_tensor_by_name(r, "input").as_numpy() for r in requests]
        users = [pb.get_input_tensor_by_name(r, "user").as_numpy() for r in requests]
        probabilities = self.model(np.concatenate(windows), np.concatenate(users)[:, 0])
        parts = np.split(probabilities, np.cumsum([len(w) for w in windows])[:-1])
        return [pb.InferenceResponse([pb.Tensor("probabilities", part)]) for part in parts]
