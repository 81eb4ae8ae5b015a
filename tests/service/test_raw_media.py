"""Raw images, texts and sounds to a running service: predictions, calibrations, and what is refused."""

import base64
import json
import shutil
import subprocess
import sys

import httpx
import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.export import export_run
from exporters.media_spec import TextMedia
from models.data.collections import load_collection
from models.data.media import reader_of
from models.training.linear_probe import LinearProbeConfig, train_probe
from service.app import create_app
from service.commands.process import running_service
from service.commands.welcome import welcome
from service.config import Settings
from tests import tiny_media, torchvision_ops
from tests.conftest import running
from tests.tiny import tiny_manifest

for package in ("PIL.Image", "soundfile", "tokenizers", "transformers"):
    pytest.importorskip(package)

torchvision_ops.prepare()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A models folder with `colours` (pooled), `slots` (users), `words` and `pitch`."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(1)
    users = {
        f"user{i}": dict(zip("abc", order, strict=True))
        for i, order in enumerate(
            [("red", "green", "blue"), ("blue", "red", "green"), ("green", "blue", "red"), ("red", "blue", "green")]
        )
    }
    words = folder / "words.csv"
    rows = [(tiny_media.sentence(label, rng), label) for label in tiny_media.WORDS for _ in range(20)]
    words.write_text("text,label\n" + "\n".join(",".join(row) for row in rows))
    for label, pitch in tiny_media.PITCHES.items():
        (folder / "sounds" / label).mkdir(parents=True)
        for i in range(8):
            (folder / "sounds" / label / f"{i}.wav").write_bytes(tiny_media.sound(pitch, rng))
    image, models = tiny_media.image_encoder(folder), folder / "models"
    for name, encoder, data in (
        ("colours", image, tiny_media.write_pictures(folder / "colours", 10)),
        ("slots", image, tiny_media.write_pictures(folder / "slots", 12, users)),
        ("words", tiny_media.text_encoder(folder), words),
        ("pitch", tiny_media.audio_encoder(folder), folder / "sounds"),
    ):
        run = train_probe(load_collection(data), LinearProbeConfig(backbone=encoder), folder / "runs" / name)
        export_run(run.folder, models)
    return models


@pytest.fixture
async def client(models, tmp_path):
    settings = Settings(
        models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db", max_body_bytes=1024 * 1024, frontends=1
    )
    async with running(create_app(settings)) as c:
        yield c


async def predicted(client, model, body, kind, **query) -> str:
    url = httpx.URL(f"/v2/models/{model}/predict", params=query)
    answer = await client.post(url, content=body, headers={"content-type": kind})
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["predictions"]
    return row["label"]


async def refused(client, model, body, kind) -> tuple[int, str]:
    answer = await client.post(f"/v2/models/{model}/predict", content=body, headers={"content-type": kind})
    return answer.status_code, answer.json()["error"]


def pictures(colours, seed=3):
    rng = np.random.default_rng(seed)
    return [tiny_media.picture(tiny_media.COLOURS[c], rng) for c in colours]


def base64_of(files):
    return [base64.b64encode(f).decode() for f in files]


@pytest.mark.parametrize(("form", "kind"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("JPEG", "Image/JPEG; q=1")])
async def test_an_image_file_is_predicted_as_it_is(client, form, kind, rng):
    for colour, rgb in tiny_media.COLOURS.items():
        assert await predicted(client, "colours", tiny_media.picture(rgb, rng, form), kind) == colour


async def test_texts_and_sounds_are_predicted_as_they_are(client, rng):
    for label in tiny_media.WORDS:
        assert await predicted(client, "words", tiny_media.sentence(label, rng).encode(), "text/plain") == label
    for label, pitch in tiny_media.PITCHES.items():
        for form, kind in (("WAV", "audio/wav"), ("FLAC", "audio/flac"), ("OGG", "audio/ogg")):
            assert await predicted(client, "pitch", tiny_media.sound(pitch, rng, form=form), kind) == label


async def test_json_takes_one_or_many(client, rng):
    files = pictures(["red", "blue", "green"])
    for inputs in (base64_of(files), [f"data:image/png;base64,{b}" for b in base64_of(files)]):
        answer = await client.post("/v2/models/colours/predict", json={"inputs": inputs})
        assert [p["label"] for p in answer.json()["predictions"]] == ["red", "blue", "green"]
    answer = await client.post("/v2/models/words/predict", json={"inputs": "the soup a bread"})
    assert [p["label"] for p in answer.json()["predictions"]] == ["food"]
    answer = await client.post("/v2/models/words/features", json={"inputs": ["soup", "the wave and the boat sail"]})
    assert np.array(answer.json()["features"]).shape[0] == 2


async def test_a_text_has_the_same_features_alone_and_beside_a_longer_one(client):
    alone = (await client.post("/v2/models/words/features", json={"inputs": ["soup"]})).json()["features"][0]
    long = "the wave " * 20
    beside = (await client.post("/v2/models/words/features", json={"inputs": ["soup", long]})).json()["features"][0]
    assert np.allclose(alone, beside, atol=1e-4)


async def test_tensors_and_media_give_the_same_answer(client, models):
    from exporters import bundle as bundles

    files = pictures(["red", "green"])
    bundle = bundles.load(models / "colours" / "1")
    x = reader_of(bundle.manifest.input, bundle.file).read(files)
    url = "/v2/models/colours/features"
    by_file = (await client.post(url, json={"inputs": base64_of(files)})).json()["features"]
    by_tensor = (await client.post(url, json={"inputs": x.tolist()})).json()["features"]
    assert by_file == by_tensor
    tensor = {"name": "input", "datatype": "BYTES", "shape": [2], "data": ["the soup a bread", "the boat a sail"]}
    answer = await client.post("/v2/models/words/infer", json={"inputs": [tensor]})
    assert answer.json()["outputs"][1]["data"] == ["food", "sea"]


async def test_encoded_images_travel_as_binary_tensors(client):
    import orjson

    files = pictures(["red", "blue"])
    data = b"".join(len(f).to_bytes(4, "little") + f for f in files)
    for rows, shape in ((2, [2]), (2, [2, 1])):
        tensor = {
            "name": "input", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)},
        }  # fmt: skip
        head = orjson.dumps({"inputs": [tensor], "outputs": [{"name": "label"}]})
        headers = {"inference-header-content-length": str(len(head))}
        answer = await client.post("/v2/models/colours/infer", content=head + data, headers=headers)
        assert answer.json()["outputs"][0]["data"] == ["red", "blue"][:rows]


async def test_metadata_say_what_is_read(client):
    told = (await client.get("/v2/models/colours")).json()["parameters"]
    assert told["content_types"] == ["application/json", "application/x-npy", "image/jpeg", "image/png"]
    assert told["media"]["kind"] == "image"


async def test_another_media_type_is_a_415_that_names_what_is_read(client):
    for model, kind in (("colours", "text/plain"), ("words", "image/png"), ("pitch", "image/jpeg")):
        status, error = await refused(client, model, b"x", kind)
        assert status == 415
        assert f"this model does not read {kind}; send application/json" in error
    assert "image/jpeg or image/png" in (await refused(client, "colours", b"x", "video/mp4"))[1]


@pytest.mark.parametrize(
    ("model", "body", "kind", "status", "words"),
    [
        ("colours", b"no image", "image/png", 422, "image 0 is neither a JPEG nor a PNG"),
        ("colours", b"", "image/png", 422, "image 0 is neither"),
        ("colours", b'{"inputs": ["%%%"]}', "application/json", 400, "input 0 is not base64"),
        ("colours", b'{"inputs": ["data:image/png,x"]}', "application/json", 400, "without ;base64"),
        ("words", b'{"inputs": ["soup", 3]}', "application/json", 400, "number 1 is of type int"),
        ("words", b'{"inputs": ["soup", " "]}', "application/json", 422, "text 1 is empty"),
        ("words", b"\xff\xff", "text/plain", 422, "text 0 is not UTF-8"),
        ("pitch", b"RIFF", "audio/wav", 422, "sound 0 is damaged"),
        ("pitch", b"ID3", "audio/ogg", 422, "sound 0 is not a WAV, FLAC or OGG file"),
        ("colours", b'{"inputs": []}', "application/json", 400, "must have shape"),
    ],
)
async def test_what_cannot_be_read_is_refused_in_the_one_shape(client, model, body, kind, status, words):
    found, error = await refused(client, model, body, kind)
    assert (found, words in error) == (status, True), error


async def test_small_files_that_become_too_many_rows_are_refused(client):
    (file,) = base64_of([tiny_media.picture((0, 0, 0), np.random.default_rng(0), size=1)])
    answer = await client.post("/v2/models/colours/predict", json={"inputs": [file] * 2000})
    assert answer.status_code == 413
    assert "at most 1365 are accepted at a time" in answer.json()["error"]


async def calibrated(client, model, user, inputs, labels, repetitions, **fields):
    body = {"inputs": inputs, "labels": labels, "repetitions": repetitions, **fields}
    answer = await client.post(f"/v2/models/{model}/users/{user}/calibrations", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_persons_own_labels_from_images_in_base64(client):
    """One shot a label: what is between the population's users carries a label to another colour."""
    mine = {"a": "blue", "b": "green", "c": "red"}
    report = await calibrated(client, "slots", "ana", base64_of(pictures(mine.values())), list(mine), [0, 0, 0])
    assert (report["outcome"], report["evidence"]) == ("promoted", "population"), report["reason"]
    for label, colour in mine.items():
        (file,) = pictures([colour], seed=17)
        assert await predicted(client, "slots", file, "image/png", user_id="ana") == label


async def test_a_pooled_model_is_judged_by_shots_left_out(client):
    mine = {"blue": "red", "green": "blue", "red": "green"}
    files = [f for k in range(4) for f in pictures(mine.values(), seed=k)]
    names, shots = list(mine) * 4, [k for k in range(4) for _ in mine]
    one = await calibrated(client, "colours", "bo", base64_of(files), names, [0] * 12)
    assert one["outcome"] == "insufficient"
    assert "no users" in one["reason"]
    report = await calibrated(client, "colours", "bo", base64_of(files), names, shots, mode="replace")
    assert (report["outcome"], report["evidence"]) == ("promoted", "held_out"), report["reason"]
    (file,) = pictures(["red"], seed=31)
    assert await predicted(client, "colours", file, "image/png", user_id="bo") == "blue"
    assert await predicted(client, "colours", file, "image/png") == "red"


async def test_a_persons_own_meaning_of_texts(client, rng):
    swapped = {"food": "sea", "sea": "food"}
    texts = [tiny_media.sentence(swapped[label], rng) for _ in range(4) for label in swapped]
    await calibrated(client, "words", "ana", texts, list(swapped) * 4, [k for k in range(4) for _ in swapped])
    assert await predicted(client, "words", b"the soup a cheese", "text/plain", user_id="ana") == "sea"
    assert await predicted(client, "words", b"the soup a cheese", "text/plain") == "food"


async def test_calibrations_refuse_what_cannot_be_read(client):
    answer = await client.post(
        "/v2/models/colours/users/ana/calibrations", json={"inputs": ["bm8=", "bm8="], "labels": ["red", "blue"]}
    )
    assert answer.status_code == 422
    assert "image 0 is neither" in answer.json()["error"]


async def test_without_the_package_tensors_are_served_and_files_are_refused(models, tmp_path, monkeypatch):
    (file,) = pictures(["red"])
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if it were not installed
    settings = Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db", frontends=1)
    async with running(create_app(settings)) as client:
        status, error = await refused(client, "colours", file, "image/png")
        assert status == 415
        assert "pip install 'headway[image]'" in error
        zeros = np.zeros((1, tiny_media.SIDE, tiny_media.SIDE, 3), int).tolist()
        answer = await client.post("/v2/models/colours/predict", json={"inputs": zeros})
        assert answer.status_code == 200


async def test_a_damaged_tokenizer_makes_a_model_not_ready(models, tmp_path):
    import shutil

    shutil.copytree(models / "words", tmp_path / "models" / "words")
    (tmp_path / "models" / "words" / "1" / "tokenizer.json").write_text("{}")
    settings = Settings(models=tmp_path / "models", store=f"sqlite+aiosqlite:///{tmp_path}/h.db", frontends=1)
    async with running(create_app(settings)) as client:
        (row,) = (await client.get("/v2/models")).json()["models"]
        assert not row["ready"]
        assert "tokenizer.json has been altered" in row["reason"]


def test_front_ends_read_media_too(models, tmp_path):
    """Two processes: the one that answers reads the file, and calibrations are read by the primary."""
    with (
        running_service(models, tmp_path, "--frontends", "2") as service,
        httpx.Client(base_url=service.url, timeout=30) as client,
    ):
        (file,) = pictures(["red"])
        for _ in range(4):
            answer = client.post(
                "/v2/models/colours/predict", content=file, headers={"content-type": "image/png", "connection": "close"}
            )
            assert answer.json()["predictions"][0]["label"] == "red"
        mine = {"a": "blue", "b": "green", "c": "red"}
        body = {"inputs": base64_of(pictures(mine.values())), "labels": list(mine)}
        report = client.post("/v2/models/slots/users/ana/calibrations", json=body).json()
        assert report["outcome"] == "promoted"
        answer = client.post("/v2/models/slots/predict?user_id=ana", json={"inputs": base64_of([file])}).json()
        assert (answer["head"], answer["predictions"][0]["label"]) == ("personal", "c")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_that_serve_prints_answer(models, tmp_path, rng):
    """As they are printed, in a shell; pictures and sounds are the user's, under the names that the lines have."""
    for label, colour in tiny_media.COLOURS.items():
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "photos" / label / f"{i}.jpg").write_bytes(tiny_media.picture(colour, rng, "JPEG"))
    for label, pitch in tiny_media.PITCHES.items():
        (tmp_path / "clips" / label).mkdir(parents=True)
        for i in range(6):
            (tmp_path / "clips" / label / f"{i}.wav").write_bytes(tiny_media.sound(pitch, rng))
    shutil.copy(tmp_path / "photos" / "red" / "0.jpg", tmp_path / "photo.jpg")
    shutil.copy(tmp_path / "clips" / "low" / "0.wav", tmp_path / "clip.wav")
    with running_service(models, tmp_path / "store", "--frontends", "1") as service:
        for name, expected in (("colours", "red"), ("pitch", "low"), ("words", None)):
            told = welcome(service.url, "", models, [name])
            lines = [line for line in told.splitlines() if "curl -s -w" in line]
            shared, calibrated, own = (
                json.loads(subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, check=True).stdout)
                for line in lines
            )
            assert shared["head"] == "shared", shared
            assert calibrated["outcome"] in ("promoted", "kept", "insufficient"), calibrated
            assert expected in (None, own["predictions"][0]["label"])


def test_the_lines_survive_labels_that_a_shell_would_read(tmp_path):
    odd = ["it's", '"two" $HOME `id`', "back\\slash"]
    manifest = tiny_manifest()
    media = manifest.input.model_copy(update={"media": TextMedia(max_tokens=8)})
    manifest = manifest.model_copy(update={"labels": tuple(odd), "input": media})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bundles, "resolve", lambda path: path)
        patched.setattr(bundles, "read_manifest", lambda _path: (manifest, ""))
        lines = [line for line in welcome("", "", tmp_path, ["m"]).splitlines() if "curl -s -w" in line]
    made = subprocess.run(["bash", "-c", lines[1].split(" | curl")[0]], capture_output=True, check=True).stdout
    assert json.loads(made)["labels"][:3] == odd
    said = subprocess.run(["bash", "-c", lines[0].split(" | curl")[0]], capture_output=True, check=True).stdout
    assert said.decode().strip() == f"this is {odd[0]}"


async def test_samples_and_evaluations_take_texts(client, rng):
    texts = [tiny_media.sentence(label, rng) for label in tiny_media.WORDS for _ in range(4)]
    labels = [label for label in tiny_media.WORDS for _ in range(4)]
    user = "/v2/models/words/users/ana"
    answer = await client.post(f"{user}/samples", json={"inputs": texts, "labels": labels})
    assert answer.status_code == 201, answer.text
    assert answer.json()["accepted"] == 8, answer.json()
    answer = await client.post(f"{user}/evaluations", json={"inputs": texts, "labels": labels, "versions": ["shared"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["versions"][0]["accuracy"] > 0.9


async def test_texts_of_different_lengths_are_kept_as_far_as_they_can_be(client):
    """Inputs of one shape are kept; of several calls with longer and shorter texts, the features are."""
    user = "/v2/models/words/users/kim"
    assert (await client.put(user, json={"retention": "inputs"})).status_code < 300
    for text in ("the soup", "the wave and the boat and the harbour and the fish and a sail in the sea"):
        body = {"inputs": [text, "the boat"], "labels": ["food", "sea"]}
        answer = await client.post(f"{user}/samples", json=body)
        assert answer.status_code == 201, answer.text
    answer = await client.post(f"{user}/calibrations", json={"activate": "always"})
    assert answer.status_code == 201, answer.text
    assert await predicted(client, "words", b"the soup a bread", "text/plain", user_id="kim") == "food"
