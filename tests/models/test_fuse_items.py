"""Fusing models of images, texts, sounds and tensors on a table: who judges what, missing cells, what is refused."""

import base64
import csv
import io
import shutil

import numpy as np
import pytest

from exporters import bundle as bundles
from exporters.export import export_run, onnx_forward
from exporters.fuse_items import features_of, fit_items, fuse_items, gate_rows
from exporters.fusion import Member
from models.data.collections import CollectionError, load_collection
from models.data.pairs import load_pairs
from models.data.parts import present
from models.training.config import TrainingError
from models.training.fine_tuning import fine_tune
from models.training.linear_probe import LinearProbeConfig, train_probe
from models.training.tuned import TuneConfig
from service.app import create_app
from service.commands.conversion import run_conversion
from service.config import Settings
from tests import tiny_media
from tests.conftest import running
from tests.tiny import LABELS, tiny_windows, write_tiny_bundle

pytest.importorskip("PIL.Image")
pytest.importorskip("soundfile")
pytest.importorskip("tokenizers")

ENCODERS = {"picture": "image_encoder", "caption": "word_encoder", "sound": "audio_encoder"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {name: getattr(tiny_media, make)(folder) for name, make in ENCODERS.items()}


def trained(folder, table, encoders, *names):
    """A run a column, with a frozen encoder."""
    runs = {}
    for name in names:
        runs[name] = folder / "runs" / name
        data = load_collection(table, column=name)
        train_probe(data, LinearProbeConfig(backbone=encoders[name], personal=12), runs[name])
    return runs


@pytest.fixture(scope="module")
def pooled(encoders, tmp_path_factory):
    """Rows without users, of which one in five cells is missing; runs of all three columns, and what is fused."""
    folder = tmp_path_factory.mktemp("pooled")
    table = tiny_media.write_table(folder / "data", 24, missing=0.2)
    runs = trained(folder, table, encoders, *ENCODERS)
    return table, runs, fuse_items(runs, table, folder / "models", name="three", personal=16)


@pytest.fixture(scope="module")
def members(pooled):
    """Bundles of the runs, as members."""
    table, runs, _ = pooled
    return [Member(n, bundles.load(export_run(run, table.parent / "members", name=n))) for n, run in runs.items()]


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A larger table, of strangers."""
    return tiny_media.write_table(tmp_path_factory.mktemp("more"), 66, missing=0.1, seed=3)


def accuracy(bundle):
    """Mean accuracy of the generic head by what is there."""
    return {tuple(row["there"]): row["generic"]["mean"] for row in bundle.manifest.evaluation["present"]}


def test_pictures_captions_and_sounds_without_users_tell_together_what_none_tells(pooled):
    bundle = bundles.load(pooled[2])
    manifest, found = bundle.manifest, accuracy(bundles.load(pooled[2]))
    assert len(found) == 7
    assert found["picture", "caption", "sound"] > 0.95
    assert max(found["picture",], found["caption",], found["sound",]) < 0.8
    assert found["picture", "caption"] > found["picture", "sound"] > found["sound",]
    assert manifest.head.pooled
    assert not manifest.head.evidence
    assert manifest.provenance["population"] == "pooled"
    assert all(manifest.provenance["data"]["missing"][name] > 8 for name in ENCODERS)
    assert [p.media.kind for p in manifest.input.parts] == ["image", "text", "audio"]
    assert manifest.parity["max_error"] < 1e-4
    whole = manifest.evaluation["present"][-1]
    assert whole["5 items"]["mean"] > 0.9
    assert whole["5 items"]["mean"] > manifest.evaluation["present"][0]["5 items"]["mean"] + 0.2


def test_rows_of_the_gate_are_real_with_what_they_lack(pooled, members):
    table, _, path = pooled
    bundle = bundles.load(path)
    items = load_pairs(table, {"picture": "image", "caption": "text", "sound": "audio"})
    rows = gate_rows(members, items, len(items))
    assert (present(bundle.manifest.input, rows) == items.present).all()
    z = onnx_forward(bundle.backbone)(rows)
    labels = bundle.manifest.labels
    right = np.array([labels.index(items.labels[y]) for y in items.y]) == z[:, -len(labels) :].argmax(1)
    whole = items.present.all(1)
    assert right[whole].mean() > 0.95


def test_users_give_a_record_and_each_is_left_out(encoders, tmp_path):
    table = tiny_media.write_table(tmp_path / "data", 6, users=4, columns="picture,caption")
    runs = trained(tmp_path, table, encoders, "picture", "caption")
    members = [Member(n, bundles.load(export_run(run, tmp_path / "members", name=n))) for n, run in runs.items()]
    items = load_pairs(table, {"picture": "image", "caption": "text"})
    for how in ("late", "concatenated"):
        fused = fit_items(members, runs, items, how=how, personal=12)
        assert fused.evaluation["users"] == 4
        assert fused.prior.hyper.evidence[0].users == 4
        assert not fused.prior.hyper.pooled
        found = {tuple(row["there"]): row["generic"]["mean"] for row in fused.evaluation["present"]}
        assert found["picture", "caption"] > max(found["picture",], found["caption",]) + 0.2


def test_a_run_that_learned_its_encoder_is_judged_by_its_folds_networks(encoders, tmp_path):
    pytest.importorskip("transformers")
    table = tiny_media.write_table(tmp_path / "data", 5, users=4, columns="picture,caption")
    runs = trained(tmp_path, table, encoders, "caption")
    settings = {"steps": 12, "folds": 2, "batch": 8, "evaluate_every": 4, "personal": 8, "patience": 20}
    vit = tiny_media.vision_encoder(tmp_path)
    runs["picture"] = tmp_path / "runs" / "tuned"
    config = TuneConfig.model_validate({"backbone": vit, "recipe": "full", **settings})
    run = fine_tune(load_collection(table, column="picture"), config, runs["picture"])
    weights = (runs["picture"] / "weights.safetensors").read_bytes()
    bundle = bundles.load(fuse_items(runs, table, tmp_path / "models", name="pair", personal=8))
    alone = {tuple(row["there"]): row["generic"] for row in bundle.manifest.evaluation["present"]}["picture",]
    # The same networks and temperature as the run's own figures, by a weight that changes no decision.
    assert alone["mean"] == pytest.approx(run.evaluation["zero_shot"]["mean"])
    assert (runs["picture"] / "weights.safetensors").read_bytes() == weights
    (runs["picture"] / "checkpoints" / "fold-1-of-2.safetensors").unlink()
    with pytest.raises(TrainingError, match="is gone"):
        fuse_items(runs, table, tmp_path / "models", name="pair")


def test_members_that_know_some_of_the_items_are_refused(pooled, members, tmp_path):
    table, runs, _ = pooled
    own = members[0].bundle.path
    with pytest.raises(TrainingError, match=r"'picture' was trained on \d+ of the table's items"):
        fuse_items({**runs, "picture": own}, table, tmp_path / "models", name="three")
    rows = list(csv.reader(io.StringIO(table.read_text(), newline="")))
    fewer = table.parent / "fewer.csv"
    with fewer.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:1] + rows[1::2])
    with pytest.raises(TrainingError, match=r"of which \d+ are among"):
        fuse_items(runs, fewer, tmp_path / "models", name="three")
    (tmp_path / "old").mkdir()
    for file in runs["picture"].iterdir():
        if file.name != "items.json":
            shutil.copy(file, tmp_path / "old" / file.name)
    with pytest.raises(TrainingError, match="runs of earlier releases"):
        fuse_items({**runs, "picture": tmp_path / "old"}, table, tmp_path / "models", name="three")


def test_a_fused_bundle_says_what_it_was_trained_on(pooled):
    known = bundles.load(pooled[2]).manifest.provenance["data"]["digests"]
    table, runs, _ = pooled
    for name in runs:
        data = load_collection(table, column=name)
        assert {data.digest_of(i)[:16] for i in range(len(data))} <= set(known)


def test_bundles_that_know_nobody_are_members_as_they_are(members, tmp_path):
    table = tiny_media.write_table(tmp_path / "strange", 8, seed=9, columns="picture,sound")
    paths = {m.name: m.bundle.path for m in members if m.name != "caption"}
    bundle = bundles.load(fuse_items(paths, table, tmp_path / "models", name="both", personal=8))
    found = accuracy(bundle)
    assert found["picture", "sound"] > max(found["picture",], found["sound",])
    renamed = table.with_name("renamed.csv")
    renamed.write_text("\n".join([*table.read_text().splitlines(), ",0-a-0.wav,other"]))
    with pytest.raises(TrainingError, match="'other' is one that the members do not know"):
        fuse_items(paths, renamed, tmp_path / "models", name="both")


def test_windows_of_signals_are_a_part_too(encoders, tmp_path):
    rng = np.random.default_rng(0)
    arm, labels = tiny_windows(20, rng)
    rows = [["arm", "caption", "label"]]
    (tmp_path / "data").mkdir()
    for i, (window, label) in enumerate(zip(arm, labels, strict=True)):
        np.save(tmp_path / "data" / f"{i}.npy", window)
        text = tiny_media.sentence("food" if label == LABELS[0] else "sea", rng)
        rows.append([f"{i}.npy" if i % 5 else "", text, label])
    table = tmp_path / "data" / "table.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    members = {
        "arm": write_tiny_bundle(tmp_path / "members", "arm"),
        **trained(tmp_path, table, encoders, "caption"),
    }
    bundle = bundles.load(fuse_items(members, table, tmp_path / "models", name="armed", personal=8))
    assert accuracy(bundle)["arm",] > 0.9
    assert accuracy(bundle)["caption",] < 0.8


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([["picture", "label"], ["x.png", "a"]], "row 1 has no column 'caption'"),
        ([["picture", "caption", "label"], ["x.png", "hello", "a"]], "there is no file"),
        ([["picture", "caption", "label"], ["", " ", "a"]], "has none of picture, caption"),
        ([["picture", "caption", "label"], ["", "hello", "a"], ["", "hello", "b"]], "nothing in column 'picture'"),
        ([["picture", "caption", "label"], ["", "hello", "a"]], "has 1 labels"),
        ([["picture", "caption", "label"], ["", "hello", ""]], "label must be strings that are not empty"),
        (
            [["picture", "caption", "label", "user"], ["", "hello", "a", "ana"], ["", "hello", "b", ""]],
            "names a user for some rows",
        ),
    ],
)
def test_tables_that_cannot_be_read_say_why(tmp_path, rows, said):
    file = tmp_path / "table.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows(rows)
    with pytest.raises(CollectionError, match=said):
        load_pairs(file, {"picture": "image", "caption": "text"})


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_was_fused_is_converted_on_a_table(pooled, more, tmp_path, precision):
    table, path = more, pooled[2]
    told = run_conversion(path, tmp_path, precision=precision, data=[str(table)], subjects="*", held_out=None, seed=0)
    assert "written to" in told
    original, made = bundles.load(path), bundles.load(tmp_path / "three" / "2")
    assert made.manifest.precision == precision
    items = load_pairs(table, {"picture": "image", "caption": "text", "sound": "audio"})
    rows = items.packed(original.manifest.input, original.file, np.arange(0, len(items), 3))
    k = len(original.manifest.labels)
    decided = [onnx_forward(bundle.backbone)(rows)[:, -k:].argmax(1) for bundle in (original, made)]
    assert (decided[0] == decided[1]).mean() > 0.97


def test_a_damaged_file_is_named_with_its_row(pooled, members, tmp_path):
    bad = shutil.copytree(pooled[0].parent, tmp_path / "data")
    victim = sorted(bad.glob("*.wav"))[3]
    victim.write_bytes(b"no sound")
    items = load_pairs(bad / "table.csv", {"picture": "image", "caption": "text", "sound": "audio"})
    with pytest.raises(CollectionError, match=rf"Row \d+, sound \(.*{victim.name}\): "):
        features_of(members[2], items, lambda *_: None)


async def test_what_was_fused_is_served_with_files_and_texts_together_and_apart(pooled, tmp_path):
    models = pooled[2].parent.parent
    rng = np.random.default_rng(5)
    png = base64.b64encode(tiny_media.picture(tiny_media.COLOURS["red"], rng)).decode()
    wav = base64.b64encode(tiny_media.sound(tiny_media.PITCHES["high"], rng)).decode()
    app = create_app(Settings(models=models, store=f"sqlite+aiosqlite:///{tmp_path}/h.db"))
    async with running(app) as client:
        for inputs, may in (
            ({"picture": png, "caption": "the bread a soup", "sound": wav}, "a"),
            ({"picture": png, "caption": "the wave a boat"}, "b"),
            ({"sound": wav}, "a"),
            ({"picture": png}, "ab"),
            ({"caption": "the harbour"}, "bd"),
        ):
            answer = await client.post("/v2/models/three/predict", json={"inputs": inputs})
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"][0]["label"] in may, inputs
        shots = {
            "picture": [png] * 6,
            "caption": [tiny_media.sentence("food", rng) for _ in range(3)]
            + [tiny_media.sentence("sea", rng) for _ in range(3)],
        }
        body = {"inputs": shots, "labels": ["d"] * 3 + ["c"] * 3, "repetitions": [0, 1, 2] * 2, "among": "shown"}
        answer = await client.post("/v2/models/three/users/ana/calibrations", json=body)
        assert answer.status_code == 201, answer.text
