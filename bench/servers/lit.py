"""LitServe: its workers and its HTTP servers are processes; a request is JSON."""

import base64
import os
from typing import Any

import litserve
import numpy as np
from personal_model import PersonalModel


class Personal(litserve.LitAPI):
    """One forward a request: its batching waits, and gains nothing for a small net on a CPU."""

    def setup(self, device: str) -> None:
        """Load graph and heads."""
        self.model = PersonalModel()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Read base64 or numbers."""
        window = request["input"]
        if isinstance(window, str):
            window = np.frombuffer(base64.b64decode(window), self.model.dtype)
        return self.model.nested(window, request["user"])

    def predict(self, x: Any) -> Any:
        """Run the model."""
        return self.model(*x)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Answer JSON."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    server = litserve.LitServer(Personal(), accelerator="cpu", workers_per_device=workers)
    options = {"generate_client_file": False, "log_level": "warning"}
    server.run(host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), num_api_servers=workers, **options)
