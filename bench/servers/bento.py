"""BentoML: a service with workers; raw bytes or JSON."""

import os
from typing import Annotated, Any

import bentoml
from bentoml.validators import ContentType
from personal_model import PersonalModel

Octets = Annotated[bytes, ContentType("application/octet-stream")]


@bentoml.service(workers=int(os.environ["BENCH_WORKERS"]))
class Personal:
    """One forward a request, on the worker's event loop: its thread pool costs more."""

    def __init__(self) -> None:
        self.model = PersonalModel()

    @bentoml.api(route="/dense")
    async def dense(self, body: Octets, /) -> Octets:
        """Answer float32 probabilities to a dense body."""
        return self.model(*self.model.dense(body)).tobytes()

    @bentoml.api(route="/json")
    async def nested(self, user: int, input: list[Any]) -> dict[str, Any]:  # noqa: A002 - the body's field
        """Answer JSON to JSON."""
        return {"probabilities": self.model(*self.model.nested(input, user)).tolist()}
