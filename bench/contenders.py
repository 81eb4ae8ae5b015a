"""The servers that are compared: how each is set up, and what it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import protocols
from bench.bundles import Case
from bench.launch import Contender, headway, served
from bench.places import HOME, SERVERS
from bench.protocols import Protocol
from bench.triton import triton

MOST_SESSIONS = 1000
"""Users that the server with a session each is measured with at most: they take a megabyte or more each."""


def _uvicorn(application: str) -> Callable[[int, int], list[str]]:
    def arguments(port: int, workers: int) -> list[str]:
        options = ["--port", str(port), "--workers", str(workers), "--no-access-log", "--log-level", "warning"]
        return ["-m", "uvicorn", application, *options]

    return arguments


def _script(name: str) -> Callable[[int, int], list[str]]:
    return lambda _port, _workers: [str(SERVERS / name)]


def _bentoml(port: int, _workers: int) -> list[str]:
    return ["-m", "bentoml", "serve", "bento:Personal", "--port", str(port), "--host", "127.0.0.1"]


def _mlserver(_port: int, _workers: int) -> list[str]:
    start = "import os, json; from pathlib import Path; from mlserver.cli import main; "
    settings = "p = Path('settings.json'); s = json.loads(p.read_text()); "
    own = "s.update(http_port=int(os.environ['BENCH_PORT']), parallel_workers=int(os.environ['BENCH_WORKERS'])); "
    return ["-c", f"{start}{settings}{own}p.write_text(json.dumps(s)); main()", "start", "."]


def _mlserver_folder(_model: Case) -> Path:
    folder = HOME / "mlserver"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"host": "127.0.0.1", "grpc_port": 0, "metrics_endpoint": None, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    described = {"name": "personal", "implementation": "seldon.Personal"}
    (folder / "model-settings.json").write_text(json.dumps(described))
    return folder


def _plain(_model: Case) -> dict[str, Protocol]:
    return {"binary": protocols.DENSE, "json": protocols.NESTED}


def _lit(_model: Case) -> dict[str, Protocol]:
    return {"binary": protocols.TEXT, "json": protocols.TEXT_NUMBERS}


def _dense(_model: Case) -> dict[str, Protocol]:
    return {"binary": protocols.DENSE}


ORT = ("onnxruntime", "numpy")


def with_frontends(number: int) -> Contender:
    """Return Headway with so many front ends, as a server of its own."""
    return replace(
        CONTENDERS["headway"],
        name=f"headway-{number}",
        setup=f"headway serve --frontends {number}, heads in a SQLite store",
        start=partial(headway, frontends=number),
    )


ALL = (
    Contender(
        "headway",
        "headway serve, heads in a SQLite store",
        lambda m: protocols.headway(m.name),
        headway,
        None,
        ("headway", "uvicorn", *ORT),
    ),
    Contender(
        "naive",
        "FastAPI on uvicorn, one forward a request",
        _plain,
        served("naive", _uvicorn("naive:app"), "/docs"),
        "naive",
        ("fastapi", "uvicorn", *ORT),
    ),
    Contender(
        "triton-python",
        "Triton, Python backend: nvidia-pytriton's tritonserver, dynamic batching with no delay",
        lambda _: protocols.triton(),
        triton,
        "triton",
        ("nvidia-pytriton", *ORT),
    ),
    Contender(
        "litserve",
        "LitServe, no batching",
        _lit,
        served("litserve", _script("lit.py"), "/health"),
        "litserve",
        ("litserve", "fastapi", "uvicorn", *ORT),
    ),
    Contender(
        "bentoml",
        "BentoML, async endpoints",
        _plain,
        served("bentoml", _bentoml, "/readyz"),
        "bentoml",
        ("bentoml", "uvicorn", *ORT),
    ),
    Contender(
        "mlserver",
        "MLServer, a custom runtime in its inference pool",
        lambda _: protocols.mlserver(),
        served("mlserver", _mlserver, "/v2/models/personal/ready", _mlserver_folder),
        "mlserver",
        ("mlserver", "fastapi", "uvicorn", *ORT),
    ),
    Contender(
        "ray-serve",
        "Ray Serve, one HTTP proxy, a replica a worker",
        _plain,
        served("ray", _script("ray_serve.py"), "/-/healthz"),
        "ray",
        ("ray", "uvicorn", *ORT),
    ),
    Contender(
        "session-a-user",
        "FastAPI on uvicorn, an ONNX session for every user in every worker",
        _dense,
        served("naive", _uvicorn("copies:app"), "/docs"),
        "naive",
        ("fastapi", "uvicorn", "onnx", *ORT),
        MOST_SESSIONS,
    ),
)
CONTENDERS = {contender.name: contender for contender in ALL}
