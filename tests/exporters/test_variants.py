"""Variants of a run's graph: gated, timed by a clock that the test holds, and the choice among them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from rich.console import Console
from typer.testing import CliRunner

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Padding
from exporters.export import Draft, ExportError, draft_of
from exporters.latency import FEWEST_ROUNDS, WARM_UP, Latency, Timing, measure
from exporters.session import SessionError, opened
from exporters.variants import Bound, Variant, choose, export_within
from exporters.worth import Accuracy
from models.data.collections import load_collection
from models.heads import prior as priors
from models.training.linear_probe import LinearProbeConfig, train_probe
from service.cli import app
from service.commands.exporting import run_export_within
from tests import tiny_media
from tests.exporters.test_inputs import graph_of
from tests.exporters.test_int8 import deep_graph, judged, separable
from tests.exporters.test_precision import SPEC, windows
from tests.tiny import DIM, tiny_manifest, tiny_prior

MILLISECONDS = {"fp32": 4.0, "fp32, optimised": 3.9, "fp16": 3.0, "int8": 1.0}


def timed(milliseconds):
    """A measurement that says what it is told; a variant that is not told of takes 9 ms."""

    def measured(forwards, x, batch):
        took = {name: Latency(milliseconds.get(name, 9.0), 10.0) for name in forwards}
        return {name: Timing(single, single) for name, single in took.items()}

    return measured


@pytest.fixture
def bundle(tmp_path):
    return separable(tmp_path / "source", deep_graph())


@pytest.fixture
def draft(bundle):
    old = bundles.load(bundle)
    files = {name: old.file(name) for name in (bundles.BACKBONE, bundles.PRIOR)}
    return Draft(old.manifest.model_copy(update={"name": "deep"}), files, windows())


def export(draft, folder, limit, milliseconds=MILLISECONDS, **more):
    path, rows = export_within(draft, folder, Bound(limit), timed=timed(milliseconds), **more)
    return bundles.load(path), {row.name: row for row in rows}


def test_all_inside_the_most_accurate_is_taken_and_the_table_is_in_manifest_and_card(draft, bundle, tmp_path):
    made, rows = export(draft, tmp_path, 5.0, judged=judged(bundle), trained_on=2)
    assert list(rows) == ["fp32", "fp32, optimised", "fp16", "int8"]
    taken = next(row for row in rows.values() if row.verdict == "taken")
    assert taken.accuracy.mean == max(row.accuracy.mean for row in rows.values())
    assert made.manifest.precision == taken.precision
    record = made.manifest.evaluation["variants"]
    assert (record["people"], record["trained_on"], record["windows"]) == (3, 2, 360)
    assert record["asked"] == {"milliseconds": 5.0, "device": "cpu", "batch": 1, "threads": 1}
    card = (made.path / bundles.CARD).read_text()
    assert "360 inputs of 3 people, 2 of whom the run was trained on" in card
    for row, recorded in zip(rows.values(), record["rows"], strict=True):
        assert recorded["verdict"] == row.verdict
        line = next(line for line in card.splitlines() if line.startswith(f"| {row.name}: "))
        assert f"{row.timing.batch.median:.2f} / 10.00" in line
        assert f"{row.accuracy.shared:.2%}" in line
        assert line.endswith(f"| {row.verdict} |")
    assert rows["fp32, optimised"].verdict == "refused: it computes what fp32 does and takes 0.97 of its time"
    assert rows["int8"].ratio == 0.25


def test_a_bound_that_one_keeps(draft, bundle, tmp_path):
    made, rows = export(draft, tmp_path, 2.0, judged=judged(bundle))
    assert rows["int8"].verdict == "taken"
    assert rows["fp16"].verdict == "over the bound: 3.00 ms"
    assert rows["fp32"].verdict == "over the bound: 4.00 ms"
    assert made.manifest.precision == "int8"
    assert made.manifest.feature_space == bundles.feature_space(made.backbone) != draft.manifest.feature_space
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(made.backbone).graph.node}


def test_equal_ones_go_by_time(draft, tmp_path):
    # Without labels FP32 and its optimised graph both decide as FP32 does.
    made, rows = export(draft, tmp_path, 5.0, {**MILLISECONDS, "fp32, optimised": 2.0, "int8": 4.5})
    assert rows["fp32, optimised"].verdict == "taken"
    assert rows["fp32"].verdict == "as accurate, no faster"
    assert made.manifest.precision == "fp32"
    assert made.manifest.feature_space == draft.manifest.feature_space
    assert all(node.domain == "" for node in onnx.load_from_string(made.backbone).graph.node)
    assert "There was no labelled data to judge accuracy by" in (made.path / bundles.CARD).read_text()


def test_a_bound_that_none_keeps_names_the_fastest_and_writes_nothing(draft, bundle, tmp_path):
    with pytest.raises(ExportError, match=r"in 0.5 ms on cpu here: the fastest that may be served is int8, .* 1.00 ms"):
        export(draft, tmp_path / "models", 0.5, judged=judged(bundle))
    assert not (tmp_path / "models").exists()


def test_refused_variants_say_why_and_are_not_taken_however_fast(draft, bundle, tmp_path):
    loud = draft.inputs.copy()
    loud[0] *= 1e4  # 8 bits are spread over a range that nothing else has
    draft = Draft(draft.manifest, draft.files, loud)
    made, rows = export(draft, tmp_path / "judged", 5.0, {"fp32": 4.0, "int8": 0.1}, judged=judged(bundle))
    assert rows["fp32"].verdict == "taken"
    assert made.manifest.precision == "fp32"
    tried = [name for name in rows if name.startswith("int8")]
    assert tried == ["int8", "int8 (2)", "int8 (3)"]
    for name in tried:
        assert rows[name].verdict.startswith(("refused: accuracy falls by ", "refused: a window's features point"))
    _, rows = export(draft, tmp_path / "not", 5.0, {"fp32": 4.0, "int8": 0.1})
    assert rows["fp32"].verdict == "taken"
    assert rows["int8"].verdict.startswith("refused: ")


def test_what_labels_cannot_judge_is_judged_by_decisions(draft, bundle, tmp_path):
    _, rows = export(draft, tmp_path / "not", 5.0)
    _, judged_rows = export(draft, tmp_path / "judged", 5.0, judged=judged(bundle))
    changed = 1 - rows["int8"].agreement.decisions
    assert rows["int8"].refused == f"{changed:.1%} of decisions change, 1% is allowed"
    assert judged_rows["int8"].refused == ""


def test_too_few_inputs_for_ranges(draft, tmp_path):
    few = Draft(draft.manifest, draft.files, draft.inputs[:20])
    made, rows = export(few, tmp_path, 5.0)
    assert rows["int8"].verdict == "refused: ranges of activations need 64 inputs; the run holds 20"
    line = next(line for line in (made.path / bundles.CARD).read_text().splitlines() if line.startswith("| int8"))
    assert line.count("–") == 7


def test_a_converter_that_fails_is_a_row(draft, tmp_path, monkeypatch):
    def fail(graph):
        raise RuntimeError("no such operator\nand a long trace")
        yield

    monkeypatch.setattr("exporters.variants.halves", fail)
    _, rows = export(draft, tmp_path, 5.0)
    assert rows["fp16"].verdict == "refused: no such operator"
    assert "taken" in [row.verdict for row in rows.values()]


def test_texts_are_quantised_dynamically(tmp_path):
    rng = np.random.default_rng(2)
    spec = InputSpec(datatype="INT64", shape=(-1, -1), unit="token ids", padding=Padding(axis=1, maximum=64))
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "top"], ["features"]),
    ]
    constants = {
        "table": rng.standard_normal((50, 16)).astype(np.float32), "axes": np.array([1]),
        "w": rng.standard_normal((16, 16)).astype(np.float32), "top": rng.standard_normal((16, DIM)).astype(np.float32),
    }  # fmt: skip
    value = helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "length"])
    graph = graph_of(nodes, [value], constants, DIM)
    manifest = tiny_manifest("words").model_copy(update={"input": spec})
    files = {bundles.BACKBONE: graph, bundles.PRIOR: priors.to_bytes(tiny_prior())}
    text = Draft(manifest, files, rng.integers(0, 50, (80, 12)))
    made, rows = export(text, tmp_path, 2.0)
    assert rows["int8"].how == "dynamic, 1 layers in 8 bits"
    kinds = [node.op_type for node in onnx.load_from_string(made.backbone).graph.node]
    assert kinds.count("MatMulInteger") == 1
    assert kinds.count("MatMul") == 1  # the last, whose results are the features


ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.5, 0.7, 0.9]),
        st.sampled_from([1.0, 2.0, 3.0, 4.0]),
        st.sampled_from(["", "", "it loses too much"]),
    ),
    max_size=6,
)


@given(rows=ROWS, limit=st.sampled_from([0.5, 1.0, 2.5, 4.0]))
def test_none_inside_the_bound_is_more_accurate_than_the_one_taken_nor_as_accurate_and_faster(rows, limit):
    table = [
        Variant(str(i), "int8", "", timing=Timing(Latency(9.0, 9.0), Latency(ms, 9.0)), accuracy=Accuracy(right, None),
                refused=refused)
        for i, (right, ms, refused) in enumerate([(0.6, 3.0, ""), *rows])
    ]  # fmt: skip
    served = [row for row in table if not row.refused]
    inside = [row for row in served if row.timing.batch.median <= limit]
    if not inside:
        fastest = min(row.timing.batch.median for row in served)
        with pytest.raises(ExportError, match=f"whose median is {fastest:.2f} ms"):
            choose(table, Bound(limit))
        return
    judged_rows = choose(table, Bound(limit))
    assert [row.name for row in judged_rows] == [row.name for row in table]
    (taken,) = [row for row in judged_rows if row.verdict == "taken"]
    assert not taken.refused
    assert taken.timing.batch.median <= limit
    for row in inside:
        assert row.accuracy.mean <= taken.accuracy.mean
        assert row.accuracy.mean < taken.accuracy.mean or row.timing.batch.median >= taken.timing.batch.median
    assert all(row.verdict for row in judged_rows)


def test_the_measurement_interleaves_and_counts_what_the_clock_says():
    now, calls = [0.0], []

    def taking(name, seconds):
        def forward(x):
            calls.append((name, x.shape[0], int(x[0, 0])))
            now[0] += seconds * len(x)

        return forward

    x = np.arange(10)[:, None]
    found = measure({"a": taking("a", 0.25), "b": taking("b", 0.5)}, x, 4, clock=lambda: now[0])
    assert found["a"].single.median == pytest.approx(250)
    assert found["b"].single.p95 == pytest.approx(500)
    assert found["b"].batch == Latency(pytest.approx(2000), pytest.approx(2000))
    singles = [call for call in calls if call[1] == 1]
    assert len(singles) == 2 * (WARM_UP + FEWEST_ROUNDS)  # a second is slow: few rounds
    for one, other in zip(singles[::2], singles[1::2], strict=True):
        assert {one[0], other[0]} == {"a", "b"}
        assert one[2] == other[2]
    assert {call[0] for call in singles[::2]} == {"a", "b"}


def test_a_device_that_is_not_there(monkeypatch):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("there is a CUDA provider")
    with pytest.raises(SessionError, match=r"device 'cuda' cannot be used by this ONNX Runtime; it has: cpu"):
        opened(deep_graph(), SPEC, device="cuda")
    with pytest.raises(SessionError, match="device 'tpu' cannot be used"):
        opened(deep_graph(), SPEC, device="tpu")

    class FallenBack:
        """What ONNX Runtime gives where CUDA's libraries cannot be loaded."""

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", lambda *args, **more: FallenBack())
    with pytest.raises(SessionError, match="but the session is bound to CPUExecutionProvider"):
        opened(deep_graph(), SPEC, device="cuda")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("pictures")
    data = tiny_media.write_pictures(folder / "data", 12)
    train_probe(load_collection(data), LinearProbeConfig(backbone=tiny_media.image_encoder(folder)), folder / "run")
    return folder


def test_the_command_on_a_run_of_images(pictures, tmp_path):
    options = ["--latency-ms", "10000", "--batch", "4", "--data", str(pictures / "data")]
    line = ["export", str(pictures / "run"), "--models", str(tmp_path), "--name", "colours"]
    done = CliRunner().invoke(app, [*line, *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    record = bundles.load(tmp_path / "colours" / "1").manifest.evaluation["variants"]
    assert (record["asked"]["batch"], record["windows"], record["people"], record["trained_on"]) == (4, 36, 0, None)
    rows = {row["name"]: row for row in record["rows"]}
    assert rows["int8"]["verdict"] == "refused: ranges of activations need 64 inputs; the run holds 36"
    assert rows["fp32"]["accuracy"]["shared"] > 0.9
    assert [row["verdict"] for row in rows.values()].count("taken") == 1
    without = CliRunner().invoke(app, [*line, *options[2:]], env={"COLUMNS": "200"})
    assert without.exit_code == 2
    assert "give --latency-ms too" in " ".join(without.output.split())


def test_data_that_cannot_judge(pictures, tmp_path):
    draft = draft_of(pictures / "run", tmp_path / "models", name="colours")
    damaged, other = (tiny_media.write_pictures(tmp_path / name, 2) for name in ("damaged", "other"))
    next((damaged / "blue").iterdir()).write_bytes(b"no picture")
    (other / "red").rename(other / "mauve")
    for data, held_out, sentence in (
        (damaged, "*", r"damaged/blue/\w+\.png: .*neither a JPEG nor a PNG file"),
        (other, "*", "has labels that the model does not know: mauve"),
        (other / "none", "*", "is neither a folder nor a table"),
        (pictures / "data", "ann", "no user in .* matches 'ann'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_export_within(
                draft, tmp_path / "models", Bound(1e4), data=[str(data)], held_out=held_out, console=Console()
            )
    with pytest.raises(SessionError, match="device 'tpu' cannot be used"):
        export_within(draft, tmp_path / "models", Bound(1e4, device="tpu"))
    assert not (tmp_path / "models").exists()
