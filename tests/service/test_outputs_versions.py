"""Versions with more and with fewer outputs side by side: a row is answered as alone, a user is carried as a whole."""

import io
import zipfile

import numpy as np
import pytest

from exporters import bundle as bundles
from models.heads import prior as priors
from service.app import create_app
from tests.conftest import running
from tests.service.test_multitask import ANA, MODEL, calibrate_angles, infer, ok, predicted, settings_on, tensors
from tests.tiny import LABELS, tiny_graph, tiny_manifest, tiny_prior, tiny_windows, write_tiny_bundle
from tests.tiny_outputs import SPEC, angles, gesture, write_tiny_outputs

LOAD = "/v2/repository/models/arm/load"


@pytest.fixture
def x(rng):
    return rng.standard_normal((4, 2, 4)).astype(np.float32)


def write_one_output(models, version=1, labels=LABELS):
    """The tiny labels alone, of the same input as the bundles of several outputs."""
    manifest = tiny_manifest("arm", version).model_copy(
        update={"input": SPEC.model_copy(update={"stride": 2}), "labels": labels}
    )
    bundles.write(models, manifest, {bundles.BACKBONE: tiny_graph(), bundles.PRIOR: priors.to_bytes(tiny_prior())})


def shown(rng, offset=1.5):
    windows, labels = tiny_windows(6, rng, offset)
    return {"inputs": windows.tolist(), "labels": labels, "activate": "always"}


@pytest.fixture
async def client(tmp_path, rng):
    """`ana` has a head in version 1, of one output; `ben` one of `gesture` in version 2, which has two."""
    folder = tmp_path / "models"
    write_one_output(folder)
    async with running(create_app(settings_on(folder, tmp_path))) as c:
        ok(await c.post(f"{ANA}/calibrations", json=shown(rng)), 201)
        write_tiny_outputs(folder, scale=2.0)
        ok(await c.post(LOAD))
        ok(await c.post(f"{MODEL}/users/ben/calibrations?task=gesture", json=shown(rng)), 201)
        yield c


async def same_as_alone(client, x, users, **query):
    """Rows of a batch against each user's alone; returns the batch's tensors."""
    got = tensors(await infer(client, x[: len(users)], users, **query))
    for i, user in enumerate(users):
        answer = await infer(client, x[i : i + 1], user_id=user, **query)
        assert answer.json()["model_version"] == str(got["model_version"][i])
        for name, value in tensors(answer).items():
            if value.dtype.kind == "f":
                assert np.allclose(got[name][i], value[0], atol=1e-5), (user, name)
            else:
                assert got[name][i] == value[0], (user, name)
    return got


@pytest.mark.parametrize(
    "query", [{"task": "gesture"}, {"outputs": ["gesture.probabilities", "label", "model_version"]}]
)
async def test_a_row_is_answered_as_alone_by_the_output_that_versions_have_in_common(client, x, query):
    users = ["ana", "ben", "nobody", "ana"]
    if "task" in query:
        got = await same_as_alone(client, x, users, **query)
        assert got["head"].tolist() == ["personal", "personal", "shared", "personal"]
    else:
        got = tensors(await infer(client, x, users, **query))
        for i, user in enumerate(users):
            alone = tensors(await infer(client, x[i : i + 1], user_id=user, outputs=query["outputs"][:2]))
            assert np.allclose(got["gesture.probabilities"][i], alone["gesture.probabilities"][0], atol=1e-5)
            assert got["label"][i] == alone["label"][0]
    assert got["model_version"].tolist() == [1, 2, 2, 1]


async def test_rows_of_one_version_are_answered_as_alone_with_what_it_has(client, x):
    got = await same_as_alone(client, x, ["ana", "ana"])
    assert list(got) == ["probabilities", "label", "head", "head_version", "model_version"]
    assert got["head"].tolist() == ["personal", "personal"]
    got = await same_as_alone(client, x, ["ben", "nobody"])
    assert "angles.value" in got


async def test_answers_that_do_not_fit_into_one_are_refused(client, x):
    refused = await infer(client, x, ["ana", "ben", "nobody", "ana"])
    assert refused.status_code == 409
    said = refused.json()["error"]
    assert "versions 1, 2, whose outputs differ" in said
    assert "name outputs that all have, by task or under outputs, or ask one version by its path" in said
    named = tensors(await infer(client, x, ["ana", "ben", "nobody", "ana"], url=f"{MODEL}/versions/2"))
    assert named["head"].tolist() == ["shared", "personal", "shared", "shared"]
    other = tensors(await infer(client, x, ["ana", "ben", "nobody", "ana"], task="angles"))
    assert set(other["model_version"].tolist()) == {2}
    wrong = await infer(client, x, ["ana", "ben"], task="gesture")
    assert (wrong.status_code, "one user a row" in wrong.json()["error"]) == (400, True)


async def test_a_version_with_some_of_the_outputs_answers_those(client, tmp_path, x):
    """Where a third version has three outputs, users of the second are answered by its two."""
    write_tiny_outputs(tmp_path / "models", gesture(), angles(), gesture("side"), scale=3.0)
    ok(await client.post(LOAD))
    listed = ok(await infer(client, x, user_id="ben"))
    assert listed["model_version"] == "2"
    assert [o["name"] for o in listed["outputs"]] == ["probabilities", "label", "angles.value"]
    assert set((await predicted(client, x, "ben"))["outputs"]) == {"gesture", "angles"}
    assert (await same_as_alone(client, x, ["ben", "ana", "nobody"], task="gesture"))["model_version"].tolist() == [
        2,
        1,
        3,
    ]
    assert (await infer(client, x[:2], ["ben", "nobody"])).status_code == 409


async def test_labels_that_differ_are_refused_too(tmp_path, rng, x):
    """Alone such a user is answered by their version; in a batch they were given another's shared head."""
    folder = tmp_path / "models"
    write_one_output(folder)
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        ok(await client.post(f"{ANA}/calibrations", json=shown(rng)), 201)
        write_one_output(folder, 2, (*LABELS[:2], "pinch"))
        ok(await client.post(LOAD))
        refused = await infer(client, x[:2], ["ana", "nobody"])
        assert (refused.status_code, "whose labels differ" in refused.json()["error"]) == (409, True)
        assert tensors(await infer(client, x[:2], ["ana", "ana"]))["model_version"].tolist() == [1, 1]


async def test_a_user_is_taken_along_with_heads_that_only_an_older_version_has(client, tmp_path, rng, x):
    await calibrate_angles(client, rng)
    ok(await client.put(ANA, json={"retention": "statistics"}))  # known to the newest gesture, without a head of it
    before = {task: await predicted(client, x, "ana", task=task) for task in ("gesture", "angles")}
    assert [answer["model_version"] for answer in before.values()] == ["1", "2"]
    file = (await client.get(f"{ANA}/export")).content
    assert (await client.get(f"{ANA}/export")).content == file
    entries = zipfile.ZipFile(io.BytesIO(file)).namelist()
    assert {"angles/user.json", "gesture/user.json", "gesture@1/user.json"} < set(entries)
    newest = (await client.get(f"{ANA}/export?model_version=2")).content
    assert not any("@" in name for name in zipfile.ZipFile(io.BytesIO(newest)).namelist())
    one = (await client.get(f"{ANA}/export?task=gesture")).content

    (tmp_path / "other").mkdir()
    async with running(create_app(settings_on(tmp_path / "models", tmp_path / "other"))) as other:
        cleo = f"{MODEL}/users/cleo"
        told = ok(await other.post(f"{cleo}/import", content=file), 201)["outputs"]
        assert {part: o["active"] for part, o in told.items()} == {"angles": 1, "gesture": "shared", "gesture@1": 1}
        for task, answer in before.items():
            assert await predicted(other, x, "cleo", task=task) == answer
        assert ok(await other.get(f"{cleo}?task=gesture"))["state"] == "stale"
        assert (await other.get(f"{cleo}/export")).content.count(b"gesture@1") == file.count(b"gesture@1")
        assert (await other.post(f"{cleo}/import", content=file)).status_code == 409
        ok(await other.post(f"{cleo}/import?replace=true", content=file), 201)
        dora = f"{MODEL}/users/dora"
        assert ok(await other.post(f"{dora}/import?task=gesture", content=one), 201)["active"] == 1
        answer = await predicted(other, x, "dora", task="gesture")
        assert (answer["model_version"], answer["predictions"]) == ("1", before["gesture"]["predictions"])


async def test_heads_of_a_version_that_is_not_served_there_are_refused_with_the_way_out(client, tmp_path, rng):
    await calibrate_angles(client, rng)
    file = (await client.get(f"{ANA}/export")).content
    some = (await client.get(f"{ANA}/export?model_version=2")).content
    write_one_output(tmp_path / "fewer")
    models = tmp_path / "fewer"
    (models / "arm" / "1").rename(tmp_path / "gone")
    (tmp_path / "models" / "arm" / "2").rename(models / "arm" / "2")
    (tmp_path / "other").mkdir()
    async with running(create_app(settings_on(models, tmp_path / "other"))) as other:
        refused = await other.post(f"{ANA}/import", content=file)
        assert refused.status_code == 409
        assert "output 'gesture' in feature space fs-" in refused.json()["error"]
        assert "serve version 1 here too, or export with model_version" in refused.json()["error"]
        assert (await other.get(ANA)).status_code == 404, "all or nothing"
        assert ok(await other.post(f"{ANA}/import", content=some), 201)["outputs"]["angles"]["active"] == 1


async def test_a_stale_user_of_one_output_is_taken_along_too(tmp_path, rng, x):
    folder = tmp_path / "models"
    write_tiny_bundle(folder, "arm")
    async with running(create_app(settings_on(folder, tmp_path))) as client:
        ok(await client.post(f"{ANA}/calibrations", json=shown(rng)), 201)
        write_tiny_bundle(folder, "arm", version=2, scale=2.0)
        ok(await client.post(LOAD))
        file = (await client.get(f"{ANA}/export")).content
        before = await predicted(client, x, "ana")
        ben = f"{MODEL}/users/ben"
        assert ok(await client.post(f"{ben}/import", content=file), 201)["active"] == 1
        after = await predicted(client, x, "ben")
        assert (after["model_version"], after["predictions"]) == ("1", before["predictions"])
        assert (await client.get(f"{ANA}/export?model_version=2")).json()["code"] == "unknown_user"
        wrong = await client.post(f"{MODEL}/users/cleo/import?model_version=2", content=file)
        assert (wrong.status_code, "never applied in another" in wrong.json()["error"]) == (409, True)
