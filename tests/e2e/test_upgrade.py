"""A backbone upgrade with real processes: a bridge fitted on people, thirty users moved, and a SIGKILL on the way."""

import contextlib
import os
import signal
import time

import numpy as np

from exporters.bridge import bridge
from models.data.recordings import load_folder
from service.client import Client, ServiceError
from service.commands.process import running_service
from tests.tiny import tiny_windows, write_tiny_bundle
from tests.upgraded import write_people, write_upgraded_bundle

USERS = [f"user-{i:02d}" for i in range(30)]
STRANDED = ("user-07", "user-23")


def answer(client, user, x):
    message = {"outputs": [{"name": "label"}], "parameters": {"user_id": user}}
    entry = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    found = client.request("POST", "/v2/models/tiny/infer", json={**message, "inputs": [entry]}).json()
    return found["model_version"], found["parameters"]["head"], found["outputs"][0]["data"]


def progress(client, operation):
    return client.request("GET", f"/v2/operations/{operation}").json()


def test_users_survive_an_upgrade_and_a_kill(tmp_path, rng):
    models, store = tmp_path / "models", tmp_path / "store"
    write_tiny_bundle(models)
    write_people(tmp_path / "data", 6, rng)
    offsets = {user: np.array([1.2, 1.2, 0, 0]) * rng.uniform(-1, 1) for user in USERS}
    tests = {user: tiny_windows(20, rng, offsets[user]) for user in USERS}
    with running_service(models, store) as service, Client(service.url) as client:
        for user in USERS:
            x, labels = tiny_windows(20, rng, offsets[user])
            # Whatever the guard says: all have a head of their own, also those who are like the population.
            client.calibrate("tiny", user, x, labels, [i % 3 for i in range(len(x))], activate="always")
        for user in STRANDED:  # later calibrations push the statistics of the version that serves out of the store
            weights = client.request("GET", f"{client.user_path('tiny', user)}/versions/1/weights").content
            client.request("DELETE", client.user_path("tiny", user))
            client.request("POST", f"{client.user_path('tiny', user)}/versions?activate=always", content=weights)

        # The new backbone, and the same with a bridge, come while the old one serves.
        upgraded = write_upgraded_bundle(tmp_path / "new")
        bridge(models / "tiny" / "1", upgraded, load_folder(tmp_path / "data"), models)
        assert client.request("POST", "/v2/repository/models/tiny/load").json()["serving"] == [1, 3]
        before = {user: answer(client, user, tests[user][0]) for user in USERS}
        assert {b[:2] for b in before.values()} == {("1", "personal")}
        stale = client.request("GET", "/v2/models/tiny/users?state=stale").json()["users"]
        assert [u["user"] for u in stale] == USERS

        operation = client.request("POST", "/v2/models/tiny/users:recalibrate", json={}).json()["operation"]
        while (done := progress(client, operation)["progress"]["done"]) < 5:
            time.sleep(0.005)
        os.kill(service.pid, signal.SIGKILL)
        assert done < len(USERS)
        with contextlib.suppress(ServiceError):
            progress(client, operation)

    with running_service(models, store) as service, Client(service.url) as client:
        while (found := progress(client, operation))["state"] == "running":
            time.sleep(0.02)
        assert found["state"] == "done"
        assert found["progress"] == {"total": 30, "done": 30, "moved": 28, "needs_enrolment": 2, "failed": 0}
        listed = client.request("GET", f"/v2/operations/{operation}/users").json()["users"]
        assert [u["user"] for u in listed] == list(STRANDED)
        right = []
        for user in USERS:
            x, labels = tests[user]
            version, head, found = answer(client, user, x)
            assert (version, head) == ("1" if user in STRANDED else "3", "personal")
            if user in STRANDED:
                assert found == before[user][2]
                continue
            versions = client.request("GET", f"{client.user_path('tiny', user)}/versions").json()
            assert (versions["active"], len(versions["versions"])) == (1, 1)  # moved once
            right.append(np.mean([a == b for a, b in zip(found, labels, strict=True)]))
        assert np.mean(right) > 0.95
        x = np.concatenate([tests[user][0][:1] for user in (USERS[0], STRANDED[0], STRANDED[1])])
        entry = {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        named = {"name": "user_id", "datatype": "BYTES", "shape": [3], "data": [USERS[0], STRANDED[0], "nobody"]}
        batch = client.request("POST", "/v2/models/tiny/infer", json={"inputs": [entry, named]}).json()
        rows = {o["name"]: o["data"] for o in batch["outputs"]}
        assert (rows["model_version"], rows["head"]) == ([3, 1, 3], ["personal", "personal", "shared"])
        assert rows["label"][1] == before[STRANDED[0]][2][0]
        stale = client.request("GET", "/v2/models/tiny/users?state=stale").json()["users"]
        assert [u["user"] for u in stale] == list(STRANDED)
