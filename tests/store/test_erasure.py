"""What is left of an erased user in the bytes of a SQLite store: nothing."""

import os
import sqlite3

import numpy as np
import pytest

from models.heads.head import Head
from service.personal.records import NewVersion, Scope
from service.personal.store import Store

SCOPE = Scope("tiny", "space")
SEEDS = range(int(os.environ.get("HEADWAY_ERASURE_SEEDS", "1")))
"""More of them, once in a while, by hand."""


class Traces:
    """Random users with random histories, and the bytes that each has left somewhere."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.of = {f"user-{n:08d}-".ljust(self.rng.integers(14, 250), "x"): [] for n in self.rng.integers(0, 10**8, 80)}

    def some(self):
        return str(self.rng.choice(list(self.of)))

    def version(self, user, number):
        weight = self.rng.standard_normal((7, self.rng.choice([4, 16, 100])))
        statistics = self.rng.bytes(self.rng.choice([200, 3000, 60000])) if self.rng.random() < 0.8 else None
        mark = f"mark-{user[5:13]}-{number}"
        report = {"outcome": "promoted", "method": "map", "metrics": {}, "classes": {f"label-{mark}": 1}}
        self.of[user] += [user.encode(), mark.encode(), weight.astype(np.float32).tobytes()[:16]]
        self.of[user] += [] if statistics is None else [statistics[:20], statistics[-20:]]
        return NewVersion(f"id-{mark}", Head(weight, np.zeros(7)), statistics, report, True, True, f"key-{mark}", mark)


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_byte_of_an_erased_user_is_left(seed, tmp_path):
    traces, store = Traces(seed), await Store.open(f"sqlite:///{tmp_path}/headway.db")
    for number in range(160):
        user = traces.some()
        await store.commit(SCOPE, user, traces.version(user, number))
        if traces.rng.random() < 0.2:
            await store.activate(SCOPE, user, 0)
    users = [user for user, left in traces.of.items() if left]
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert all(traces.of[user][0] in held for user in users)
    for user in users[:20]:
        assert (await store.erase(user)).log_truncated is True
        held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        assert [trace for trace in traces.of[user] if trace in held] == []
        assert store.pseudonym(user).encode() in held
    assert all(traces.of[user][0] in held for user in users[20:])
    await store.close()


async def test_a_backup_that_reads_just_then_keeps_the_log_and_the_receipt_says_so(tmp_path):
    store = await Store.open(f"sqlite:///{tmp_path}/headway.db")
    traces = Traces(0)
    user = traces.some()
    await store.commit(SCOPE, user, traces.version(user, 1))
    backup = sqlite3.connect(tmp_path / "headway.db")
    backup.execute("BEGIN")
    backup.execute("SELECT * FROM users").fetchall()
    assert (await store.erase(user)).log_truncated is False
    backup.close()
    assert (await store.erase(user)).log_truncated is True
    assert user.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    await store.close()
