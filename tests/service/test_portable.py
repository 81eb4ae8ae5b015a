"""Heads and users leave the service as files and come back, whole or not at all."""

import asyncio
import hashlib
import io
import json
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import safetensors.numpy

from exporters.precision import convert
from service.app import create_app
from service.config import Settings
from service.personal import userfile
from tests.conftest import running
from tests.service.test_users import OFFSET, URL, body, calibrate, who
from tests.tiny import LABELS, tiny_windows, write_tiny_bundle


def service_on(models, folder, name):
    folder = folder / name
    folder.mkdir(exist_ok=True)
    return create_app(Settings(models=models, store=f"sqlite+aiosqlite:///{folder}/headway.db"))


async def infer(client, x, user=None, model="tiny"):
    body = {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
        "outputs": [{"name": "logits"}, {"name": "probabilities"}, {"name": "label"}],
        "parameters": {"user_id": user} if user else {},
    }
    answer = (await client.post(f"/v2/models/{model}/infer", json=body)).json()
    found = {o["name"]: o["data"] for o in answer["outputs"]}
    k = len(LABELS)
    return np.reshape(found["logits"], (-1, k)), np.reshape(found["probabilities"], (-1, k)), found["label"]


async def agrees(client, content, rng, user, model="tiny"):
    """Whether an ONNX file answers as the service does, to 1e-5."""
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    x, _ = tiny_windows(7, rng, OFFSET)
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    _, logits, probabilities, label = session.run(None, {"input": x})
    theirs = await infer(client, x, user, model)
    assert np.abs(logits - theirs[0]).max() < 1e-5 * max(1, np.abs(logits).max())
    assert np.abs(probabilities - theirs[1]).max() < 1e-5
    assert [LABELS[i] for i in label] == theirs[2]
    return session.get_modelmeta().custom_metadata_map


async def test_a_standalone_model_answers_as_the_service(client, rng):
    await calibrate(client, rng)
    answer = await client.get(f"{URL}/versions/1/onnx")
    told = await agrees(client, answer.content, rng, "ana")
    version = (await client.get(f"{URL}/versions/1")).json()
    assert answer.headers["etag"] == f'"{version["digest"]}"'
    assert told["headway.head_digest"] == version["digest"]
    assert json.loads(told["headway.labels"]) == list(LABELS)
    assert (told["headway.model"], told["headway.head_version"]) == ("tiny", "1")
    assert told["headway.licence"] == "Apache-2.0"
    assert b"ana" not in answer.content
    shared = await agrees(client, (await client.get(f"{URL}/versions/shared/onnx")).content, rng, None)
    assert (shared["headway.head"], shared["headway.head_version"]) == ("shared", "0")
    missing = await client.get(f"{URL}/versions/9/onnx")
    assert (missing.status_code, missing.json()["code"]) == (404, "unknown_version")
    assert (await client.get(f"{URL}/versions/0/onnx")).status_code == 400


async def test_a_standalone_model_of_a_half_precision_bundle(tmp_path, rng):
    write_tiny_bundle(tmp_path / "models")
    convert(tmp_path / "models" / "tiny", tmp_path / "models")
    async with running(service_on(tmp_path / "models", tmp_path, "a")) as client:
        await calibrate(client, rng)
        assert (await client.get("/v2/models/tiny")).json()["versions"] == ["1", "2"]
        told = await agrees(client, (await client.get(f"{URL}/versions/1/onnx")).content, rng, "ana")
        assert told["headway.model_version"] == "2"
        old = await client.get(f"{URL}/versions/shared/onnx", params={"model_version": "1"})
        assert b"headway.model_version" in old.content


async def test_exported_weights_come_back_as_a_version(client, rng):
    report = await calibrate(client, rng)
    exported = await client.get(f"{URL}/versions/1/weights")
    bare = await client.post("/v2/models/tiny/users/bob/versions", content=exported.content)
    assert bare.status_code == 201
    assert bare.json()["outcome"] == "kept"
    assert bare.json()["origin"] == "import"
    assert "not judged" in bare.json()["reason"]
    assert await who(client, "bob") == ("shared", 0)
    assert (await client.put("/v2/models/tiny/users/bob/active", json={"version": 1})).status_code == 200
    assert await who(client, "bob") == ("personal", 1)
    x, _ = tiny_windows(3, rng, OFFSET)
    assert np.array_equal((await infer(client, x, "bob"))[0], (await infer(client, x, "ana"))[0])
    again = await client.get("/v2/models/tiny/users/bob/versions/1/weights")
    assert again.content == exported.content
    assert report["outcome"] == "promoted"


async def test_weights_with_statistics_are_judged_and_updated(client, rng):
    await calibrate(client, rng, offset=np.array([1.0, 1.0, 0.0, 0.0]))
    exported = await client.get(f"{URL}/versions/1/weights", params={"statistics": True})
    made = (await client.post("/v2/models/tiny/users/bob/versions", content=exported.content)).json()
    assert (made["outcome"], made["evidence"], made["active_version"]) == ("promoted", "population", 1)
    assert await who(client, "bob") == ("personal", 1)
    second = await calibrate(client, rng, "/v2/models/tiny/users/bob", offset=np.array([1.0, 1.0, 0.0, 0.0]))
    assert second["classes"]["fist"]["samples"] == 40  # the imported windows and the new ones
    never = await client.post("/v2/models/tiny/users/eve/versions?activate=never", content=exported.content)
    assert never.json()["active_version"] == "shared"
    always = await client.post("/v2/models/tiny/users/joe/versions?activate=always", content=exported.content)
    assert always.json()["active_version"] == 1


async def test_a_head_that_is_activated_as_demanded_is_not_said_to_wait(client, rng):
    await calibrate(client, rng)
    bare = (await client.get(f"{URL}/versions/1/weights")).content
    waits = (await client.post("/v2/models/tiny/users/eve/versions", content=bare)).json()
    assert (waits["active_version"], waits["reason"].endswith("PUT …/active serves it")) == ("shared", True)
    serves = (await client.post("/v2/models/tiny/users/joe/versions?activate=always", content=bare)).json()
    assert (serves["outcome"], serves["active_version"]) == ("promoted", 1)
    assert serves["reason"] == "activated as demanded, not judged: no statistics came with it"


async def test_what_a_file_may_not_relax_is_said(client, rng):
    await client.put(URL, json={"retention": "inputs"})
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/export")).content
    bob = "/v2/models/tiny/users/bob"
    await client.put(bob, json={"metadata": {"arm": "left"}})  # and so the default retention holds
    made = (await client.post(f"{bob}/import?replace=true", content=file)).json()
    assert made["retention"] == "statistics"
    assert made["warnings"] == [
        "retention stays 'statistics', as this user has it here; the file's is 'inputs': PUT …/users/bob sets another"
    ]
    new = (await client.post("/v2/models/tiny/users/new/import", content=file)).json()
    assert (new["retention"], new["warnings"]) == ("inputs", [])


def altered(content, **change):
    """A weights file with tensors or metadata changed; None takes one away."""
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors = safetensors.numpy.load(content)
    for name, value in change.items():
        where = tensors if name in ("weight", "bias") or "." in name else metadata
        where.pop(name, None)
        if value is not None:
            where[name] = value
    return safetensors.numpy.save(tensors, metadata)


REFUSED = {
    "not safetensors": (lambda c: b"PK\x03\x04" + bytes(60), 400, "not safetensors"),
    "cut off": (lambda c: c[:-4], 400, "not safetensors"),
    "no weight": (lambda c: altered(c, weight=None), 400, "no tensor 'weight'"),
    "another space": (lambda c: altered(c, feature_space="fs-other"), 409, "fs-other"),
    "other labels": (lambda c: altered(c, labels='["a", "b", "c"]'), 409, "['rest', 'fist', 'open']"),
    "no space": (lambda c: altered(c, feature_space=None), 422, "feature_space"),
    "a bit flipped": (lambda c: c[:-1] + bytes((c[-1] ^ 1,)), 422, "damaged"),
    "another shape": (lambda c: altered(c, weight=np.zeros((3, 5), np.float32)), 422, "[3, 4]"),
    "integers": (lambda c: altered(c, bias=np.zeros(3, np.int32)), 422, "int32"),
    "infinite": (lambda c: altered(c, bias=np.full(3, np.inf, np.float32)), 422, "finite"),
    "half statistics": (
        lambda c: altered(c, **{"statistics.total": np.zeros((3, 0, 2**40), np.float32)}), 422, "statistics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.replace(" ", "-"))
async def test_weights_that_do_not_fit_are_refused(client, rng, case):
    await calibrate(client, rng)
    change, status, words = REFUSED[case]
    exported = (await client.get(f"{URL}/versions/1/weights")).content
    answer = await client.post("/v2/models/tiny/users/bob/versions", content=change(exported))
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert (await client.get("/v2/models/tiny/users/bob")).status_code == 404


async def test_if_match_pins_the_head(client, rng):
    await calibrate(client, rng)
    exported = await client.get(f"{URL}/versions/1/weights")
    post = {"url": "/v2/models/tiny/users/bob/versions", "content": exported.content}
    wrong = await client.post(**post, headers={"If-Match": '"' + "0" * 64 + '"'})
    assert (wrong.status_code, "If-Match" in wrong.json()["error"]) == (422, True)
    assert (await client.post(**post, headers={"If-Match": exported.headers["etag"]})).status_code == 201


async def test_a_user_moves_to_another_cluster(tiny_models, tmp_path, rng):
    async with (
        running(service_on(tiny_models, tmp_path, "a")) as here,
        running(service_on(tiny_models, tmp_path, "b")) as there,
    ):
        for _ in range(4):
            await calibrate(here, rng)
        await here.put(f"{URL}/active", json={"version": 3})
        file = (await here.get(f"{URL}/export")).content
        assert (await here.get(f"{URL}/export")).content == file
        made = await there.post("/v2/models/tiny/users/ana/import", content=file)
        assert made.status_code == 201, made.text
        assert made.json() == {
            "user": "ana", "versions": 4, "statistics": 2, "retention": "statistics", "active": 3,
            "feature_space": (await here.get(URL)).json()["feature_space"], "warnings": [],
        }  # fmt: skip
        x, _ = tiny_windows(3, rng, OFFSET)
        assert np.array_equal((await infer(there, x, "ana"))[0], (await infer(here, x, "ana"))[0])
        assert (await there.get(f"{URL}/versions")).json() == (await here.get(f"{URL}/versions")).json()
        twice = await there.post("/v2/models/tiny/users/ana/import", content=file)
        assert (twice.status_code, twice.json()["code"]) == (409, "conflict")
        assert (await there.post("/v2/models/tiny/users/ana/import?replace=true", content=file)).status_code == 201
        with (
            zipfile.ZipFile(io.BytesIO(file)) as one,
            zipfile.ZipFile(io.BytesIO((await there.get(f"{URL}/export")).content)) as two,
        ):
            assert {n: one.read(n) for n in one.namelist()[1:]} == {n: two.read(n) for n in two.namelist()[1:]}
        # What follows an update, and a rollback, is the same in both.
        seed = np.random.default_rng(5).bit_generator.state
        reports = []
        for client in (here, there):
            same = np.random.default_rng()
            same.bit_generator.state = seed
            report = await calibrate(client, same, activate="always")
            reports.append({k: report[k] for k in ("version", "classes", "metrics", "outcome")})
            assert (await client.post(f"{URL}/rollback")).json()["active"] == 3
            assert (await client.post(f"{URL}/rollback")).json()["active"] == 4
        assert reports[0] == reports[1]


async def test_another_feature_space_takes_no_users(tiny_models, tmp_path, rng):
    write_tiny_bundle(tmp_path / "other", scale=2.0)
    async with (
        running(service_on(tiny_models, tmp_path, "a")) as here,
        running(service_on(tmp_path / "other", tmp_path, "b")) as there,
    ):
        await calibrate(here, rng)
        file = (await here.get(f"{URL}/export")).content
        answer = await there.post(f"{URL}/import", content=file)
        assert answer.status_code == 409
        for client in (here, there):
            space = (await client.get("/v2/models/tiny")).json()["parameters"]["feature_space"]
            assert space in answer.json()["error"]
        assert (await there.get(URL)).status_code == 404
        assert (await there.get(f"{URL}/export")).json()["code"] == "unknown_user"


def rewritten(file, change):
    """A user's file with its entries changed by `change(name, data)`; None leaves one out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return buffer.getvalue()


def deflated(file):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("user.json", bytes(10_000_000))
    return buffer.getvalue()


def only(entry, make):
    return lambda f: rewritten(f, lambda n, d: make(d) if n.endswith(entry) else d)


DAMAGED = {
    "nothing": (lambda f: b"", 422, "damaged"),
    "no zip": (lambda f: b"PK" + bytes(100), 422, "damaged"),
    "cut off": (lambda f: f[: len(f) // 2], 422, "damaged"),
    "a bomb": (deflated, 400, "stored entries only"),
    "a flipped bit": (lambda f: f.replace(b"bias", b"bjas", 1), 422, "damaged"),
    "another head": (only("head.safetensors", lambda d: d[:-1] + bytes((d[-1] ^ 1,))), 422, "digest"),
    "no statistics": (only("statistics.safetensors", lambda d: None), 422, "missing"),
    "no index": (only("user.json", lambda d: None), 400, "user.json"),
    "another format": (only("user.json", lambda d: d.replace(b"user-1", b"user-9")), 422, "headway-user-9"),
    "active elsewhere": (
        only("user.json", lambda d: d.replace(b'"active": 1', b'"active": 7')),
        422,
        "not in the file",
    ),
    "a report of nothing": (lambda f: _consistent(f, "report.json", b"{}"), 422, "outcome, method, metrics, classes"),
    "a head of nothing": (lambda f: _consistent(f, "head.safetensors", b"x"), 422, "version 1"),
    "an entry more": (lambda f: rewritten(f, lambda n, d: d) and _with(f, "evil", b"x"), 422, "evil"),
}


def _consistent(file, entry, data):
    """A user's file with one entry replaced, and its digest in the index with it."""
    with zipfile.ZipFile(io.BytesIO(file)) as old:
        (name,) = [n for n in old.namelist() if n.endswith(entry)]
        before, after = (hashlib.sha256(d).hexdigest().encode() for d in (old.read(name), data))
    return rewritten(file, lambda n, d: data if n == name else d.replace(before, after))


def _with(file, name, data):
    buffer = io.BytesIO(file)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("case", DAMAGED, ids=lambda c: c.replace(" ", "-"))
async def test_a_damaged_file_changes_nothing(client, rng, case):
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/export")).content
    change, status, words = DAMAGED[case]
    before = (await client.get(URL)).json()
    answer = await client.post(f"{URL}/import?replace=true", content=change(file))
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert (await client.get(URL)).json() == before
    assert await who(client) == ("personal", 1)


async def test_an_import_waits_for_no_calibration(client, rng):
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/export")).content
    answers = await asyncio.gather(
        client.post(f"{URL}/import?replace=true", content=file),
        client.post(f"{URL}/import?replace=true", content=file),
    )
    assert sorted(a.status_code for a in answers) in ([201, 201], [201, 409])
    assert await who(client) == ("personal", 1)


async def test_settings_go_along_and_windows_do_not(client, rng):
    await client.put(URL, json={"retention": "inputs", "metadata": {"arm": "left"}})
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/export")).content
    bob = "/v2/models/tiny/users/bob"
    await client.put(bob, json={"retention": "inputs"})
    await client.post(f"{bob}/samples", json={**body(rng), "accept": ["off_distribution"]})
    assert (await client.post(f"{bob}/import?replace=true", content=file)).status_code in (200, 201)
    found = (await client.get(bob)).json()
    assert (found["retention"], found["metadata"], found["active"]) == ("inputs", {"arm": "left"}, 1)
    assert (await client.get(f"{bob}/samples")).json()["samples"] == 0  # what was bob's is gone
    # The file has no windows: a method that needs features of all of them says so.
    refused = await client.post(f"{bob}/calibrations", json=body(rng, method="logistic"))
    assert refused.status_code == 422


def changed(content, report=None, dump=userfile.report_bytes, **index):
    """A user's file with another index or other reports, and digests that fit."""
    file = userfile.read(content)
    reports = {n: dump({**c.report, **(report or {})}) for n, c in file.contents.items()}
    versions = tuple(v.model_copy(update={"report": userfile.digest(reports[v.version])}) for v in file.index.versions)
    edited = file.index.model_copy(update={"versions": versions, **index})
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("report.json"):
                data = reports[int(name.split("/")[1])]
            new.writestr(name, edited.model_dump_json() if name == "user.json" else data)
    return buffer.getvalue()


DEEP = b'{"outcome":"a","method":"b","metrics":{},"classes":{},"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "edit",
    [
        {"created": 1e300},
        {"report": {"anchor": "x"}},
        {"report": {"anchor": 7}},
        {"report": {"x": "\ud83d"}, "dump": lambda report: json.dumps(report).encode()},
        {"dump": lambda report: DEEP},
        {"settings": {"attributes": {"x": 10**30}}},
        {"own_labels": ("more", "than", "fit")},
    ],
)
async def test_a_file_that_could_not_be_answered_with_is_refused(client, rng, edit):
    await calibrate(client, rng)
    content = (await client.get(f"{URL}/export")).content
    answer = await client.post("/v2/models/tiny/users/eve/import", content=changed(content, **edit))
    assert answer.status_code == 422, answer.text
    assert (await client.get("/v2/models/tiny/users/eve")).status_code == 404


@pytest.mark.parametrize("own", ["[" * 100_000, '["\\ud800"]', '["a\\nb"]', f'["{"x" * 65}"]', '["fist"]', '["a"]'])
async def test_labels_that_cannot_be_are_refused(client, rng, own):
    await calibrate(client, rng)
    tensors = safetensors.numpy.load((await client.get(f"{URL}/versions/1/weights")).content)
    metadata = {"feature_space": (await client.get(URL)).json()["feature_space"], "own_labels": own}
    file = safetensors.numpy.save(tensors, {**metadata, "labels": json.dumps(LABELS)})
    assert (await client.post(f"{URL}/versions", content=file)).status_code == 422
    file = safetensors.numpy.save(tensors, {**metadata, "labels": "[" * 100_000, "own_labels": "[]"})
    assert (await client.post(f"{URL}/versions", content=file)).status_code == 422


@pytest.mark.parametrize("own", [(), ("wave", "wave"), ("fist",), ("tap",), ("a", "b", "c", "d")])
async def test_a_users_labels_must_be_those_of_their_heads(tmp_path, rng, own):
    models = tmp_path / "open"
    write_tiny_bundle(models, user_labels=3)
    sent = body(rng, offset=np.array([1.0, 0.5, 0.0, 0.0]))
    sent["labels"][:20] = ["wave"] * 20
    async with running(service_on(models, tmp_path, "a")) as client:
        assert (await client.post(f"{URL}/calibrations", json=sent)).status_code == 201
        content = (await client.get(f"{URL}/export")).content
        eve = "/v2/models/tiny/users/eve/import"
        assert (await client.post(eve, content=changed(content, own_labels=own))).status_code == 422
        assert (await client.post(eve, content=changed(content, own_labels=("wave", "tap")))).status_code == 201


async def test_a_file_does_not_relax_what_was_chosen_here(client, rng):
    await client.put(URL, json={"retention": "inputs", "metadata": {"arm": "left"}})
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/export")).content
    bob = "/v2/models/tiny/users/bob"
    await client.put(bob, json={"retention": "none"})
    made = (await client.post(f"{bob}/import?replace=true", content=file)).json()
    assert (made["retention"], made["statistics"]) == ("none", 0)
    found = (await client.get(bob)).json()
    assert (found["retention"], found["metadata"]) == ("none", {"arm": "left"})
    kept = await client.get(f"{bob}/versions/1/weights?statistics=true")
    assert set(safetensors.numpy.load(kept.content)) == {"weight", "bias", "floors"}


async def test_who_lets_nothing_be_kept_imports_heads_only(client, rng):
    await calibrate(client, rng)
    file = (await client.get(f"{URL}/versions/1/weights?statistics=true")).content
    whole = (await client.get(f"{URL}/export")).content
    bo = "/v2/models/tiny/users/bo"
    await client.put(bo, json={"retention": "none"})
    made = await client.post(f"{bo}/versions", content=file)
    assert (made.json()["outcome"], made.json()["remembered"]) == ("promoted", False)
    kept = await client.get(f"{bo}/versions/1/weights?statistics=true")
    assert set(safetensors.numpy.load(kept.content)) == {"weight", "bias", "floors"}
    settings = {"retention": "none", "adapt": "off", "attributes": {}}
    assert (await client.post(f"{URL}/import?replace=true", content=changed(whole, settings=settings))).is_success
    kept = await client.get(f"{URL}/versions/1/weights?statistics=true")
    assert set(safetensors.numpy.load(kept.content)) == {"weight", "bias", "floors"}


async def test_an_imported_choice_to_be_followed_holds_at_once(settings, rng):
    app = create_app(settings)
    async with running(app) as client:
        wanted = app.state.services.following.observations.wanted
        await calibrate(client, rng)
        off = (await client.get(f"{URL}/export")).content
        await client.put(URL, json={"adapt": "on"})
        on = (await client.get(f"{URL}/export")).content
        await client.post(f"{URL}/import?replace=true", content=off)
        assert not wanted
        await client.post(f"{URL}/import?replace=true", content=on)
        assert wanted == {("tiny", "ana")}


@pytest.mark.parametrize(
    ("name", "factor", "import_status", "status"),
    [
        ("statistics.count", 1e24, 422, 0),
        ("statistics.total", 1e25, 201, 422),
        ("bias", 0.0, 201, 201),
    ],
)
async def test_numbers_that_no_windows_give_are_refused_by_what_needs_them(
    client, rng, name, factor, import_status, status
):
    await calibrate(client, rng)
    tensors = safetensors.numpy.load((await client.get(f"{URL}/versions/1/weights?statistics=true")).content)
    tensors[name] = (tensors[name] * factor - 9e29 * (name == "bias")).astype(np.float32)
    space = (await client.get(URL)).json()["feature_space"]
    file = safetensors.numpy.save(tensors, {"feature_space": space, "labels": json.dumps(LABELS)})
    eve = "/v2/models/tiny/users/eve"
    assert (await client.post(f"{eve}/versions?activate=always", content=file)).status_code == import_status
    if import_status == 201:
        x, _ = tiny_windows(5, rng, OFFSET)
        assert (await client.post(f"{eve}/adaptations", json={"inputs": x.tolist()})).status_code == status
