"""Heads across processes: each row is answered by the head that its user had while it was asked, whatever moves."""

import asyncio
import contextlib

import httpx
import numpy as np
import pytest

from models.heads.head import Head
from service.commands.process import running_service
from service.loaded import scope_of
from service.personal.records import NewVersion
from service.personal.store import Store
from tests.tiny import DIM, LABELS, tiny_manifest

USERS, VERSIONS = 24, 3
X = np.ones((1, 2, 4), np.float32)
BASE = "/v2/models/tiny"


def bias(user, version):
    """What identifies the head of a user's version in its logits; the weights are zero."""
    return np.array([user, version, 7.0 * user + version])


async def fill(folder):
    """Give every user all versions, the first one active."""
    store, scope = await Store.open(f"sqlite+aiosqlite:///{folder}/headway.db"), scope_of(tiny_manifest())
    try:
        for user in range(USERS):
            for version in range(1, VERSIONS + 1):
                head = Head(np.zeros((len(LABELS), DIM)), bias(user, version))
                report = {"outcome": "promoted", "method": "map", "metrics": {}, "classes": {}}
                await store.commit(scope, f"u{user}", NewVersion("id", head, None, report, True, False))
            await store.activate(scope, f"u{user}", 1)
    finally:
        await store.close()


@pytest.fixture(params=[2, 100], ids=["two-heads-fit", "all-heads-fit"])
async def service(request, tiny_models, tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    await fill(folder)
    options = ("--frontends", "3", "--resident-heads", str(request.param))
    with running_service(tiny_models, folder, *options) as service:
        yield service


def asked(users):
    tensors = [{"name": "input", "datatype": "FP32", "shape": [len(users), 2, 4], "data": [1.0] * 8 * len(users)}]
    tensors.append({"name": "user_id", "datatype": "BYTES", "shape": [len(users)], "data": [f"u{u}" for u in users]})
    return {"inputs": tensors, "outputs": [{"name": "logits"}, {"name": "head_version"}]}


class Served:
    """What each user was served since when: the versions that an answer may have, given when it was asked."""

    def __init__(self):
        self.versions = {user: [{1}] for user in range(USERS)}

    def mark(self, user):
        return len(self.versions[user]) - 1

    def since(self, user, mark):
        return set().union(*self.versions[user][mark:])

    @contextlib.contextmanager
    def moving(self, user, version):
        before = self.versions[user][-1]
        self.versions[user].append(before | {version})
        yield
        self.versions[user].append({version})


async def predict(client, served, rng, until):
    count = 0
    while not until.is_set():
        users = rng.choice(USERS, rng.integers(1, 6)).tolist()
        marks = [served.mark(user) for user in users]
        answer = await client.post(f"{BASE}/infer", json=asked(users))
        assert answer.status_code == 200, answer.text
        logits, versions = (output["data"] for output in answer.json()["outputs"])
        for user, mark, row, version in zip(users, marks, np.reshape(logits, (-1, 3)), versions, strict=True):
            assert version in served.since(user, mark), (user, version, served.versions[user][mark:])
            if version:
                np.testing.assert_allclose(row, bias(user, version))
        count += len(users)
    return count


async def move(client, served, rng, until):
    while not until.is_set():
        user = int(rng.integers(USERS))
        if rng.random() < 0.05 and served.versions[user][-1] != {0}:
            with served.moving(user, 0):
                erased = await client.delete(f"{BASE}/users/u{user}")
                assert erased.status_code == 200, erased.text
        elif 0 not in served.versions[user][-1]:
            version = int(rng.integers(1, VERSIONS + 1))
            with served.moving(user, version):
                moved = await client.put(f"{BASE}/users/u{user}/active", json={"version": version})
                assert moved.status_code == 200, moved.text
        await asyncio.sleep(0.005)


async def test_every_row_is_answered_by_the_head_its_user_had(service, rng):
    served, until = Served(), asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=service.url, timeout=30)) for _ in range(9)
        ]
        work = [predict(c, served, r, until) for c, r in zip(clients, rng.spawn(8), strict=False)]
        tasks = [asyncio.create_task(w) for w in (*work, move(clients[8], served, rng, until))]
        await asyncio.wait(tasks, timeout=3, return_when=asyncio.FIRST_EXCEPTION)
        until.set()
        counts = await asyncio.gather(*tasks)
        stats = (await clients[0].get(f"{BASE}/stats")).json()["model_stats"][0]
        assert stats["inference_count"] == sum(counts[:8]) > 200
        metrics = (await clients[0].get(service.metrics_url)).text
    labels = '{model="tiny",task=""} '
    hits, misses = (
        float(metrics.split(f"headway_head_cache_{w}_total{labels}")[1].split()[0]) for w in ("hits", "misses")
    )
    assert hits > 0
    assert misses > 0


async def test_an_explicit_version_and_a_demanded_head(service):
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:

        async def ask(**parameters):
            body = {"inputs": asked([3])["inputs"][:1], "outputs": [{"name": "logits"}], "parameters": parameters}
            return await client.post(f"{BASE}/infer", json=body)

        for version in (3, 1, 2, 3):
            answer = await ask(user_id="u3", head_version=version)
            np.testing.assert_allclose(answer.json()["outputs"][0]["data"], bias(3, version))
        missing = await ask(user_id="u3", head_version=9)
        assert (missing.status_code, missing.json()["code"]) == (409, "conflict")
        nobody = await ask(user_id="nobody", fallback="error")
        assert (nobody.status_code, nobody.json()["code"]) == (404, "unknown_user")
        assert (await ask(user_id="nobody")).json()["parameters"]["head"] == "shared"
        assert (await client.delete(f"{BASE}/users/u3/versions/3")).status_code == 200
        assert (await ask(user_id="u3", head_version=3)).status_code == 409
        await client.delete(f"{BASE}/users/u3")
        for version in (1, 2):
            assert (await ask(user_id="u3", head_version=version)).status_code == 409
        assert (await ask(user_id="u3", fallback="error")).status_code == 404
