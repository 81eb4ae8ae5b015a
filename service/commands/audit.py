"""`headway db audit`: the audit trail of a store, as lines of JSON."""

from __future__ import annotations

import asyncio
import datetime
import sys
from dataclasses import asdict

import orjson

from service.personal.audit import Event
from service.personal.store import Store


def run_audit(url: str, user: str | None, limit: int) -> None:
    """Print the newest lines of one user or of all, oldest first; a SQLite store must not be in use."""
    for event in asyncio.run(_read(url, user, limit)):
        at = datetime.datetime.fromtimestamp(event.at, datetime.UTC).isoformat()
        sys.stdout.write(orjson.dumps({**asdict(event), "at": at}).decode() + "\n")


async def _read(url: str, user: str | None, limit: int) -> list[Event]:
    store = await Store.open(url, existing=True)
    try:
        return await store.audit_trail(user, limit)
    finally:
        await store.close()
