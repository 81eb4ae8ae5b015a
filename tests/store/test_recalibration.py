"""Two services on one PostgreSQL: what one begins to move, the other moves on."""

import asyncio

import numpy as np

from service.app import create_app
from service.config import Settings
from service.personal import recalibrate
from tests.conftest import running
from tests.service.test_users import body
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.upgraded import write_bridged_bundle

MODEL = "/v2/models/tiny"
OFFSET = np.array([1.0, 1.0, 0.0, 0.0])


async def test_another_service_goes_on(postgres_server, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(recalibrate, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(recalibrate, "SHARE", 0.02)  # slowly, so that the first does not come to the end
    write_tiny_bundle(tmp_path / "models")
    store = await asyncio.to_thread(postgres_server.database)
    settings = Settings(models=tmp_path / "models", store=store)
    names = [f"u{i:02d}" for i in range(12)]
    x, labels = tiny_windows(30, rng, OFFSET)

    async def answers(client, user):
        found = (await client.post(f"{MODEL}/predict?user_id={user}", json={"inputs": x.tolist()})).json()
        right = np.mean([p["label"] == label for p, label in zip(found["predictions"], labels, strict=True)])
        return found["model_version"], found["head"], right > 0.9

    async with running(create_app(settings)) as there:
        async with running(create_app(settings)) as here:
            for name in names:
                sent = body(rng, offset=OFFSET, repetitions=3)
                assert (await here.post(f"{MODEL}/users/{name}/calibrations", json=sent)).status_code == 201
            write_bridged_bundle(tmp_path / "models")
            for client in (here, there):
                assert (await client.post("/v2/repository/models/tiny/load")).status_code == 200
            assert {await answers(there, name) for name in names} == {("1", "personal", True)}
            begun = (await here.post(f"{MODEL}/users:recalibrate")).json()["operation"]
            while (await there.get(f"/v2/operations/{begun}")).json()["progress"]["done"] < 3:
                await asyncio.sleep(0.01)
        left = (await there.get(f"/v2/operations/{begun}")).json()
        assert (left["state"], left["progress"]["done"] < len(names)) == ("running", True)
        monkeypatch.setattr(recalibrate, "SHARE", 1.0)
        async with asyncio.timeout(30):
            while (found := (await there.get(f"/v2/operations/{begun}")).json())["state"] == "running":
                await asyncio.sleep(0.05)
        assert found["progress"] == {"total": 12, "done": 12, "moved": 12, "needs_enrolment": 0, "failed": 0}
        for name in names:
            versions = (await there.get(f"{MODEL}/users/{name}/versions")).json()
            assert (versions["active"], len(versions["versions"])) == (1, 1)
        async with asyncio.timeout(5):  # what it knew of those that the other moved, it follows
            while {await answers(there, name) for name in names} != {("2", "personal", True)}:
                await asyncio.sleep(0.1)
