"""Ray Serve: one HTTP proxy, a replica a core; raw bytes or JSON."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray
from personal_model import PersonalModel
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(num_replicas=int(os.environ["BENCH_WORKERS"]), max_ongoing_requests=128)
class Personal:
    """One forward a request."""

    def __init__(self) -> None:
        self.model = PersonalModel()

    async def __call__(self, request: Request) -> Any:
        """Answer in the body's own kind."""
        if request.url.path == "/dense":
            probabilities = self.model(*self.model.dense(await request.body()))
            return Response(probabilities.tobytes(), media_type="application/octet-stream")
        found = await request.json()
        return {"probabilities": self.model(*self.model.nested(found["input"], found["user"])).tolist()}


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    # A replica asks for a core: as many are declared as there are replicas.
    ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=200 * 2**20, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["BENCH_PORT"])})
    serve.run(Personal.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()
