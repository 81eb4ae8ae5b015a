"""A client of the service for the command line, evaluations and examples: binary tensors over HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

HEADER_LENGTH = "Inference-Header-Content-Length"
ROWS_A_REQUEST = 2048

Windows = NDArray[np.float32] | Mapping[str, NDArray[np.float32]]
"""Windows `(n, C, T)`; for a fused model those of each of its parts that is there, by name."""


class ServiceError(RuntimeError):
    """The service refused, or cannot be reached; the message is its sentence."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Calls of one service. Use it as a context manager.

    Args:
        url: base URL, as `headway serve` prints it.
        seconds: time that one call may take.
        key: sent with each call, where the service wants one; by default the environment's HEADWAY_KEY.
    """

    def __init__(self, url: str, seconds: float = 120.0, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        key = key or os.environ.get("HEADWAY_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=self.url, timeout=seconds, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, verb: str, path: str, **options: Any) -> httpx.Response:
        """Send a request.

        Raises:
            ServiceError: no connection, or an answer of 400 and above.
        """
        try:
            response = self._http.request(verb, path, **options)
        except httpx.HTTPError as e:
            raise ServiceError(
                f"no service answers at {self.url} ({e or type(e).__name__}); start one with `headway serve`"
            ) from e
        if response.status_code >= 400:
            try:
                message = response.json()["error"]
            except (ValueError, KeyError, TypeError):
                message = response.text[:200] or response.reason_phrase
            raise ServiceError(f"the service answered {response.status_code}: {message}", response.status_code)
        return response

    def metadata(self, model: str) -> dict[str, Any]:
        """Inputs, outputs and labels of a model."""
        found: dict[str, Any] = self.request("GET", f"/v2/models/{quote(model)}").json()
        return found

    def infer(
        self, model: str, x: Windows, *, user: str | None = None, output: str = "probabilities"
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Run windows `(n, C, T)`; returns one FP32 output `(n, …)` and the answer's parameters."""
        parts: list[NDArray[np.float32]] = []
        parameters: dict[str, Any] = {}
        named = _named(x)
        for at in range(0, max(map(len, named.values())), ROWS_A_REQUEST):
            message: dict[str, Any] = {"outputs": [{"name": output, "parameters": {"binary_data": True}}]}
            if user is not None:
                message["parameters"] = {"user_id": user}
            block = {name: rows[at : at + ROWS_A_REQUEST] for name, rows in named.items()}
            response = self._tensors(f"/v2/models/{quote(model)}/infer", message, block)
            length = int(response.headers[HEADER_LENGTH])
            head = orjson.loads(response.content[:length])
            parameters = head.get("parameters", {})
            parts.append(np.frombuffer(response.content[length:], "<f4").reshape(head["outputs"][0]["shape"]))
        return np.concatenate(parts), parameters

    def calibrate(
        self,
        model: str,
        user: str,
        x: Windows,
        labels: Sequence[str],
        repetitions: Sequence[int] | None = None,
        task: str | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
        """Calibrate a user from windows `(n, C, T)` and their labels; `fields` as the API names them.

        `task`: which output, of a model with several.
        """
        message: dict[str, Any] = {"labels": list(labels), **fields}
        if repetitions is not None:
            message["repetitions"] = [int(r) for r in repetitions]
        path = f"{self.user_path(model, user)}/calibrations" + (f"?task={quote(task)}" if task is not None else "")
        report: dict[str, Any] = self._tensors(path, message, x).json()
        return report

    def erase(self, model: str, user: str) -> dict[str, Any]:
        """Erase a user of a model."""
        receipt: dict[str, Any] = self.request("DELETE", self.user_path(model, user)).json()
        return receipt

    def rollback(self, model: str, user: str) -> dict[str, Any]:
        """Undo a user's last activation."""
        state: dict[str, Any] = self.request("POST", f"{self.user_path(model, user)}/rollback").json()
        return state

    @staticmethod
    def user_path(model: str, user: str) -> str:
        """Path of a user's resource."""
        return f"/v2/models/{quote(model)}/users/{quote(user, safe='')}"

    def _tensors(self, path: str, message: dict[str, Any], x: Windows) -> httpx.Response:
        blobs = {name: np.ascontiguousarray(rows, "<f4") for name, rows in _named(x).items()}
        entries = [
            {
                "name": name,
                "datatype": "FP32",
                "shape": list(rows.shape),
                "parameters": {"binary_data_size": rows.nbytes},
            }
            for name, rows in blobs.items()
        ]
        text = orjson.dumps({**message, "inputs": entries})
        headers = {HEADER_LENGTH: str(len(text)), "Content-Type": "application/octet-stream"}
        content = b"".join([text, *(rows.tobytes() for rows in blobs.values())])
        return self.request("POST", path, content=content, headers=headers)


def _named(x: Windows) -> Mapping[str, NDArray[np.float32]]:
    return x if isinstance(x, Mapping) else {"input": x}
