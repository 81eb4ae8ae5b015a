"""A model of several tasks from the command line: trained, exported, served, one task calibrated, an output added."""

import asyncio
import base64

import numpy as np
import pytest
from typer.testing import CliRunner

from exporters import bundle as bundles
from service.app import create_app
from service.cli import app
from service.config import Settings
from tests import tiny_media
from tests.conftest import running
from tests.tiny_tasks import lit_picture, write_table

pytest.importorskip("PIL.Image")
MODEL = "/v2/models/lamp"
USER = f"{MODEL}/users/ana"


def headway(*arguments):
    """Run a command; what it prints, or the exception that it ends in."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lamp")
    table, encoder = write_table(folder / "data", own=20), tiny_media.image_encoder(folder)
    said = headway(
        "train", "--backbone", encoder, "--data", table, "--out", folder / "lamp", "--personal", "16",
        "--task", "colour", "--task", "part=lit",
    )  # fmt: skip
    headway("export", folder / "lamp", "--models", folder / "models")
    return folder, table, said


@pytest.fixture
async def client(made, tmp_path):
    settings = Settings(models=made[0] / "models", store=f"sqlite+aiosqlite:///{tmp_path}/h.db", frontends=1)
    async with running(create_app(settings)) as c:
        yield c


def ok(answer, status=200):
    assert answer.status_code == status, answer.text
    return answer.json()


async def predicted(client, picture, user=None, **query):
    params = {**query, **({"user_id": user} if user else {})}
    return ok(
        await client.post(f"{MODEL}/predict", params=params, content=picture, headers={"content-type": "image/png"})
    )


def test_training_says_what_it_understood_and_how_each_task_did(made):
    assert "part: lit [%]" in made[2]
    assert "colour, left out: shared head" in made[2]
    assert "part, left out: lit [%] wrong by" in made[2]


async def test_one_forward_answers_every_output(client, rng):
    for colour, part in (("red", 0.2), ("green", 0.8)):
        answer = await predicted(client, lit_picture(colour, part, rng))
        assert answer["outputs"]["colour"]["predictions"][0]["label"] == colour
        assert answer["outputs"]["part"]["predictions"][0]["values"]["lit"] == pytest.approx(100 * part, abs=25)
    await asyncio.gather(*(predicted(client, lit_picture("red", 0.5, rng)) for _ in range(4)))
    (stats,) = ok(await client.get(f"{MODEL}/stats"))["model_stats"]
    assert stats["inference_count"] == 6


async def test_one_task_is_calibrated_and_the_other_stays_shared(client, rng):
    parts = rng.uniform(0, 1, 24)  # by someone who says 40 more than is lit
    pictures = [base64.b64encode(lit_picture("blue", p, rng)).decode() for p in parts]
    body = {
        "inputs": pictures,
        "targets": (100 * parts + 40)[:, None].tolist(),
        "repetitions": [i // 6 for i in range(24)],
    }
    done = ok(await client.post(f"{USER}/calibrations?task=part", json=body), 201)
    assert done["outcome"] == "promoted"
    answer = await predicted(client, lit_picture("blue", 0.5, rng), "ana")
    assert answer["outputs"]["part"]["head"] == "personal"
    assert answer["outputs"]["part"]["predictions"][0]["values"]["lit"] == pytest.approx(90, abs=15)
    assert answer["outputs"]["colour"]["head"] == "shared"
    refused = await client.post(f"{USER}/calibrations", json=body)
    assert refused.status_code == 400, "which task is not said"


def test_an_output_is_added_to_a_bundle_that_is_there(made):
    folder, table, _ = made
    old = bundles.load(folder / "models" / "lamp" / "1")
    said = headway("bundle", "add-task", folder / "models" / "lamp", "--data", table, "--task", "again=colour")
    assert "again: 3 labels" in said
    assert "left-out people: 100" in said or "left-out people: 9" in said
    new = bundles.load(folder / "models" / "lamp" / "2")
    assert new.manifest.names == ("colour", "part", "again")
    assert new.backbone == old.backbone
    assert [o.manifest.feature_space for o in new.outputs[:2]] == [o.manifest.feature_space for o in old.outputs]
    assert np.isfinite(new.outputs[2].prior.generic_weight).all()


@pytest.mark.parametrize(
    ("task", "more", "says"),
    [
        ("colour", (), "has an output 'colour' already"),
        ("again=colour", ("--called", "first"), "is named 'colour'"),
        ("again=length", (), "has no column 'length'"),
    ],
)
def test_what_cannot_be_added_is_a_sentence(made, task, more, says):
    folder, table, _ = made
    with pytest.raises(ValueError, match=says):
        headway("bundle", "add-task", folder / "models" / "lamp" / "1", "--data", table, "--task", task, *more)


def test_one_task_of_labels_is_trained_as_ever(made, tmp_path):
    folder, table, _ = made
    encoder = f"onnx:{folder / 'colours.onnx'}"
    said = headway("train", "--backbone", encoder, "--data", table, "--out", tmp_path / "run", "--task", "kind=colour")
    assert "3 labels, 4 users" in said
    assert bundles.load(_exported(tmp_path)).manifest.names == ()


def _exported(folder):
    headway("export", folder / "run", "--models", folder / "models")
    return folder / "models" / "run" / "1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "colour=paint"), "has no column 'paint'"),
        (("--task", "colour", "--task", "lit", "--set", "task_weights={\"a\":1}", "--recipe", "full"), "task_weights"),
        (("--task", "colour", "--task", "lit", "--set", "augment=true"), "computes the features of an example once"),
        (("--task", "colour", "--task", "lit", "--resume"), "has nothing to resume"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_a_sentence(made, tmp_path, arguments, says):
    folder, table, _ = made
    encoder = f"onnx:{folder / 'colours.onnx'}"
    with pytest.raises(ValueError, match=says):
        headway("train", "--backbone", encoder, "--data", table, "--out", tmp_path / "run", *arguments)


def test_a_page_is_of_one_task_and_what_cannot_be_said_is_refused(made, tmp_path):
    folder, table, _ = made
    page = tmp_path / "page.html"
    headway("report", folder / "lamp", "--task", "colour", "--out", page)
    text = page.read_text()
    assert "colour, one of the tasks colour, part" in text
    assert "100.0" in text
    for arguments, says in (
        ((), "has the tasks colour, part: say by --task"),
        (("--task", "part"), "part is a regression, and a page is of labels"),
        (("--task", "size"), "has no task 'size'"),
        (("--task", "colour", "--data", table), "leave --data away"),
    ):
        with pytest.raises(ValueError, match=says):
            headway("report", folder / "lamp", *arguments)
    with pytest.raises(ValueError, match="evaluations are of bundles with one"):
        headway("evaluate", "--model", folder / "models" / "lamp" / "1", "--data", table)
