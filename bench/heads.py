"""Heads of users by the thousand: the same wherever they are made, in a SQLite store or as a table for others.

`python bench/heads.py FILE --users 100000` fills a store.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from sqlalchemy import insert
from sqlalchemy.dialects import sqlite

from bench.bundles import Case, case
from bench.places import HEADS
from models.heads.head import Head, softmax
from service.personal.records import head_to_bytes
from service.personal.schema import activations, users, versions
from service.personal.store import Store

CHUNK = 2000


def user_name(index: int) -> str:
    """Return the id of user `index`: always seven characters, so that a request's header has one length."""
    return f"u{index:06d}"


def head(index: int, classes: int, dim: int) -> Head:
    """Return the head of user `index`: the same wherever and whenever it is made."""
    values = np.random.default_rng([7, index]).standard_normal((classes, dim + 1), np.float32)
    return Head(values[:, :dim] / np.float32(np.sqrt(dim)), values[:, dim])


def expected(features: NDArray[np.float32], indices: list[int], classes: int) -> NDArray[np.floating]:
    """Return the probabilities `(n, K)` that users must be answered with, for features `(n, d)`."""
    rows = zip(features, indices, strict=True)
    return np.stack([softmax(head(i, classes, len(z)).logits(z[None])[0]) for z, i in rows])


def table(model: Case, count: int) -> Path:
    """Return a .npy file of the heads of users 0 to count - 1, `(count, K, d + 1)`, bias last; made on first use."""
    HEADS.mkdir(parents=True, exist_ok=True)
    file = HEADS / f"{model.name}-{count}.npy"
    if not file.exists():
        partial = file.with_suffix(".part")
        heads = open_memmap(partial, "w+", np.float32, (count, model.classes, model.dim + 1))
        for i in range(count):
            own = head(i, model.classes, model.dim)
            heads[i, :, :-1], heads[i, :, -1] = own.weight, own.bias
        heads.flush()
        partial.rename(file)
    return file


def fill(file: Path, model: Case, count: int) -> float:
    """Write `count` calibrated users into a store; returns the seconds it took.

    Raises:
        ValueError: the store exists already.
    """
    if file.exists():
        raise ValueError(f"{file} exists; a benchmark's store is filled once: delete it or choose another")
    start = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    for leftover in file.parent.glob(f"{partial.name}*"):
        leftover.unlink()

    async def create() -> None:
        await (await Store.open(f"sqlite+aiosqlite:///{partial}")).close()

    asyncio.run(create())
    connection = sqlite3.connect(partial)
    statements = [str(insert(t).compile(dialect=sqlite.dialect(paramstyle="named"))) for t in (users, versions)]
    pointer = str(
        insert(activations)
        .values(dict.fromkeys(_pointer(model, 0)))
        .compile(dialect=sqlite.dialect(paramstyle="named"))
    )
    # Nothing to lose but a file that is made anew: durability would cost most of the time.
    connection.executescript("PRAGMA synchronous=OFF; PRAGMA journal_mode=MEMORY;")
    for chunk in _chunks(count):
        with connection:
            connection.executemany(statements[0], [_user(model, i) for i in chunk])
            connection.executemany(statements[1], [_version(model, i) for i in chunk])
            connection.executemany(pointer, [_pointer(model, i) for i in chunk])
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    partial.rename(file)
    return time.monotonic() - start


def _chunks(count: int) -> Iterator[range]:
    for first in range(0, count, CHUNK):
        yield range(first, min(first + CHUNK, count))


def _scope(model: Case, index: int) -> dict[str, Any]:
    scope = model.scope
    where = {"tenant": scope.tenant, "model": scope.model, "feature_space": scope.feature_space}
    return where | {"user": user_name(index)}


def _user(model: Case, index: int) -> dict[str, Any]:
    pointers = {"active": 1, "base": 1, "last": 1}
    return {**_scope(model, index), **pointers, "created": 0.0, "updated": 0.0, "revision": 1}


def _pointer(model: Case, index: int) -> dict[str, Any]:
    return {**_scope(model, index), "version": 1, "at": 0.0}


def _version(model: Case, index: int) -> dict[str, Any]:
    blob = head_to_bytes(head(index, model.classes, model.dim))
    return {
        **_scope(model, index),
        "version": 1,
        "calibration_id": f"bench-{index}",
        "created": 0.0,
        "head": blob,
        "digest": hashlib.sha256(blob).hexdigest(),
        "statistics": None,
        "report": "{}",
        "idempotency_key": None,
        "request_digest": None,
    }


def main() -> None:
    """Fill a store from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="SQLite file to make")
    parser.add_argument("--model", default="fixed", help="benchmark model the heads are for")
    parser.add_argument("--users", type=int, default=100_000)
    chosen = parser.parse_args()
    seconds = fill(chosen.store, case(chosen.model), chosen.users)
    print(f"{chosen.users} users in {seconds:.1f} s, {chosen.store.stat().st_size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
