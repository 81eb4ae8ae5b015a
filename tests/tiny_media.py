"""Small encoders of images, texts and sounds, and data that they can tell apart."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.input_spec import InputSpec, Padding
from exporters.media_spec import AudioMedia, ImageMedia, TextMedia

SIDE, SAMPLES, RATE = 16, 800, 8000.0
COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 60), "red": (200, 40, 30)}
PITCHES = {"high": 1200.0, "low": 300.0, "middle": 700.0}
WORDS = {"food": ["bread", "soup", "apple", "cheese", "cook"], "sea": ["wave", "boat", "fish", "harbour", "sail"]}


def write_encoder(file: Path, nodes: list, shape: list, datatype: int, weights: list, spec: InputSpec) -> str:
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("x", datatype, ["n", *shape])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", "d"])],
        weights,
    )
    # An older opset, as encoders that are ONNX already have.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
    file.with_suffix(".json").write_text(json.dumps({"input": spec.model_dump(mode="json")}))
    return f"onnx:{file}"


def image_encoder(folder: Path) -> str:
    """Mean colours of sixteen parts of an image of 16 x 16."""
    media = ImageMedia(fit="stretch", resize=SIDE)
    spec = InputSpec(datatype="UINT8", shape=(-1, SIDE, SIDE, 3), unit="pixels", modality="image", media=media)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["t"], ["p"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["p"], ["z"]),
    ]
    return write_encoder(folder / "colours.onnx", nodes, [SIDE, SIDE, 3], TensorProto.UINT8, [], spec)


def audio_encoder(folder: Path) -> str:
    """Log power at 40 frequencies."""
    spec = InputSpec(
        shape=(-1, SAMPLES), unit="full scale", sample_rate=RATE, modality="audio", media=AudioMedia(max_seconds=2.0)
    )
    angle = 2 * np.pi * np.outer(np.arange(SAMPLES), np.linspace(100, 2000, 40)) / RATE
    weights = [
        numpy_helper.from_array(np.cos(angle).astype(np.float32), "cos"),
        numpy_helper.from_array(np.sin(angle).astype(np.float32), "sin"),
        numpy_helper.from_array(np.array(1.0, np.float32), "floor"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "cos"], ["a"]),
        helper.make_node("MatMul", ["x", "sin"], ["b"]),
        helper.make_node("Mul", ["a", "a"], ["aa"]),
        helper.make_node("Mul", ["b", "b"], ["bb"]),
        helper.make_node("Add", ["aa", "bb"], ["s"]),
        helper.make_node("Add", ["s", "floor"], ["g"]),
        helper.make_node("Log", ["g"], ["z"]),
    ]
    return write_encoder(folder / "pitch.onnx", nodes, [SAMPLES], TensorProto.FLOAT, weights, spec)


def word_encoder(folder: Path) -> str:
    """Which of a few words a text has: no network, and so quick."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "the", "a", *WORDS["food"], *WORDS["sea"]]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "words.tokenizer.json").write_text(tokenizer.to_str())
    weights = [
        numpy_helper.from_array(np.array(len(words), np.int64), "depth"),
        numpy_helper.from_array(np.array([0, 1], np.float32), "values"),
        *(numpy_helper.from_array(np.array([v], np.int64), n) for n, v in (("axis", 1), ("from", 2), ("to", 99))),
    ]
    nodes = [
        helper.make_node("OneHot", ["x", "depth", "values"], ["o"]),
        helper.make_node("ReduceMax", ["o"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Slice", ["m", "from", "to", "axis"], ["z"]),
    ]
    spec = InputSpec(
        datatype="INT64",
        shape=(-1, -1),
        unit="tokens",
        modality="text",
        padding=Padding(axis=1, maximum=8),
        media=TextMedia(max_tokens=8),
    )
    name = write_encoder(folder / "words.onnx", nodes, ["t"], TensorProto.INT64, weights, spec)
    told = json.loads((folder / "words.json").read_text())
    (folder / "words.json").write_text(json.dumps({**told, "tokenizer": str(folder / "words.tokenizer.json")}))
    return name


def text_encoder(folder: Path) -> str:
    """A small BERT with random weights and a tokenizer of whole words, as a folder of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = folder / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", *WORDS["food"], *WORDS["sea"]]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(**BERT, vocab_size=len(words))).save_pretrained(folder)
    return f"hf:{folder}"


def vision_encoder(folder: Path) -> str:
    """A small vision transformer with random weights, for images of 16 x 16, as a folder of transformers."""
    import torch
    from transformers import ViTConfig, ViTModel

    folder = folder / "vit"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(folder)
    return f"hf:{folder}"


VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": SIDE,
    "patch_size": 8,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def picture(colour: tuple[int, int, int], rng: np.random.Generator, form: str = "PNG", size: int = 40) -> bytes:
    """A noisy picture of about one colour."""
    from PIL import Image

    noise = rng.normal(0, 12, (size, size, 3)) + rng.normal(0, 15, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def sound(pitch: float, rng: np.random.Generator, rate: int = int(RATE), channels: int = 1, form: str = "WAV") -> bytes:
    """A tenth of a second of a noisy tone, as a file."""
    import soundfile

    t = np.arange(rate // 10) / rate
    wave = 0.4 * np.sin(2 * np.pi * (pitch * rng.uniform(0.95, 1.05)) * t) + rng.normal(0, 0.02, len(t))
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave] * channels, 1), rate, format=form)
    return buffer.getvalue()


def sentence(label: str, rng: np.random.Generator) -> str:
    """A few words that go with a label."""
    return " ".join(["the", *rng.choice(WORDS[label], 3), "a", *rng.choice(WORDS[label], 1)])


def write_table(
    folder: Path, each: int, users: int = 0, missing: float = 0.0, seed: int = 0, columns: str = "picture,caption,sound"
) -> Path:
    """`table.csv` of pictures, captions and sounds, each of which tells some of four labels from others.

    A picture is red or blue and tells `a`, `b` from `c`, `d`; a caption is of food or the sea and tells `a`, `c` from
    `b`, `d`; a sound is high for `a` alone. Of users each has `each` rows a label, in two repetitions. `missing` is the
    share of cells that are left out, never all of a row's.
    """
    rng, names = np.random.default_rng(seed), columns.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [[*names, "label", *(["user", "repetition"] if users else [])]]
    for user in range(max(users, 1)):
        for label in "abcd":
            for i in range(each):
                row = _row(folder, f"{user}-{label}-{i}", label, rng, names)
                gone = np.flatnonzero(rng.random(len(row)) < missing)[: len(row) - 1]
                row = ["" if at in gone else cell for at, cell in enumerate(row)]
                lines.append([*row, label, *([f"u{user}", str(i % 2)] if users else [])])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return folder / "table.csv"


def _row(folder: Path, stem: str, label: str, rng: np.random.Generator, names: list[str]) -> list[str]:
    cells = []
    for name in names:
        if name == "caption":
            cells.append(sentence("food" if label in "ac" else "sea", rng))
            continue
        if name == "picture":
            content = picture(COLOURS["red" if label in "ab" else "blue"], rng)
        else:
            content = sound(PITCHES["high" if label == "a" else "low"], rng)
        cells.append(f"{stem}.{'png' if name == 'picture' else 'wav'}")
        (folder / cells[-1]).write_bytes(content)
    return cells


def write_pictures(folder: Path, each: int, users: dict[str, dict[str, str]] | None = None, seed: int = 0) -> Path:
    """`FOLDER/<label>/*.png`; or of users, who call the colours by labels of their own: `{user: {label: colour}}`."""
    rng = np.random.default_rng(seed)
    for user, named in (users or {"": {c: c for c in COLOURS}}).items():
        for label, colour in named.items():
            own = folder / user / label
            own.mkdir(parents=True)
            for i in range(each):
                (own / f"{i}.png").write_bytes(picture(COLOURS[colour], rng))
    return folder
