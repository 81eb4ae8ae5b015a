"""MLServer: a custom runtime; the Open Inference Protocol in JSON, the window as numbers or as base64."""

from __future__ import annotations

import base64

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from personal_model import PersonalModel


class Personal(MLModel):
    """One forward a request."""

    async def load(self) -> bool:
        """Load graph and heads."""
        self.model = PersonalModel()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer probabilities."""
        tensors = {tensor.name: tensor for tensor in payload.inputs}
        window = tensors["input"]
        data = window.data.root
        if window.datatype == "BYTES":
            data = np.frombuffer(base64.b64decode(data[0]), self.model.dtype)
        x, user = self.model.nested(data, int(tensors["user"].data.root[0]))
        output = NumpyCodec.encode_output("probabilities", self.model(x, user))
        return InferenceResponse(model_name=self.name, outputs=[output])
