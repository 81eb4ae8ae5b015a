"""What many tests use: a small bundle with a real ONNX graph, and a service on it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.config import Settings
from service.engine.machine import few_arenas
from tests.postgres import Postgres, postgres
from tests.tiny import write_tiny_bundle

few_arenas()  # as a service has it: thousands of tests on changing threads would hold many times the memory
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "myo"


@pytest.fixture(scope="module", autouse=True)
def memory_given_back() -> Iterator[None]:
    """Let a file of tests leave no freed memory behind: encoders of half a gigabyte come in several copies."""
    yield
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def myo() -> Path:
    """Folder of the Myo recordings."""
    if not SHARED.is_dir():
        pytest.skip("the Myo recordings (../shared/data/myo) are not here")
    return SHARED


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one small bundle, `tiny`."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A real PostgreSQL server; `database()` makes an empty database."""
    with postgres() as server:
        yield server


@pytest.fixture
def settings(tiny_models: Path, tmp_path: Path) -> Settings:
    """Settings of a service on the tiny bundle."""
    return Settings(
        models=tiny_models, store=f"sqlite+aiosqlite:///{tmp_path}/headway.db", max_body_bytes=4 * 1024 * 1024
    )


@contextlib.asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Run an application's lifespan and yield a client of it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as c:
        yield c


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a running service."""
    async with running(create_app(settings)) as c:
        yield c


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(7)


Factory = Callable[..., None]
