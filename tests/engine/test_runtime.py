"""A runtime runs where it was asked to, proves it, and gives the same features however its batches are filled up."""

import json

import numpy as np
import onnxruntime as ort
import pytest

from exporters import bundle as bundles
from exporters.bundle import Padding
from service.config import ZOO
from service.engine.placement import of_events, read
from service.engine.runtime import Runtime, RuntimeUnavailable, powers_of_two
from tests.exporters.test_inputs import summing_graph
from tests.tiny import tiny_graph, write_tiny_bundle


def event(index, op, provider):
    args = {"node_index": str(index), "op_name": op, "provider": provider}
    return {"cat": "Node", "name": f"node_{index}_kernel_time", "args": args}


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (64, (1, 2, 4, 8, 16, 32, 64))]
)
def test_powers_of_two_end_with_the_largest(largest, sizes):
    assert powers_of_two(largest) == sizes


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 13, 20])
def test_filled_up_batches_give_the_rows_features_and_no_others(rows, rng):
    plain, filled = Runtime(tiny_graph()), Runtime(tiny_graph(), batch_sizes=powers_of_two(8))
    for _ in range(3):
        x = rng.standard_normal((20, 2, 4)).astype(np.float32)[20 - rows :]
        features = filled.run(x)
        assert features.shape == (rows, 4)
        assert np.array_equal(features, plain.run(x))


def test_features_are_not_overwritten_by_the_next_batch(rng):
    runtime = Runtime(tiny_graph(), batch_sizes=[4])
    first = runtime.run(np.ones((2, 2, 4), np.float32))
    kept = first.copy()
    runtime.run(np.zeros((2, 2, 4), np.float32))
    assert np.array_equal(first, kept)


def test_filled_up_batches_keep_their_true_lengths():
    runtime = Runtime(
        summing_graph(), padding=Padding(axis=2, multiple_of=8, maximum=64, lengths="lengths"), batch_sizes=[4]
    )
    for ends in ([11, 3, 16], [1], [5, 6, 7, 8, 9, 10]):
        x = np.ones((len(ends), 2, 16), np.float32)
        assert runtime.run(x, np.array(ends))[:, 0].tolist() == ends


def test_a_warmed_runtime_says_where_each_node_ran(tmp_path):
    runtime = Runtime.of(bundles.load(bundles.resolve(ZOO / "semg-myo")), max_batch=4)
    assert runtime.asked == (CPU,)
    assert runtime.provider == CPU
    assert runtime.placement.shares == {CPU: 1.0}
    assert runtime.placement.nodes[CPU] > 50


def test_the_profile_of_the_warm_up_ends_with_it(tmp_path):
    runtime = Runtime(tiny_graph(), profile=tmp_path / "p")
    spec = bundles.load(write_tiny_bundle(tmp_path / "models")).manifest.input
    runtime.warm_up(spec, 4, 8)
    (file,) = tmp_path.glob("p*.json")
    ran = [e for e in json.loads(file.read_bytes()) if e.get("cat") == "Node"]
    assert read(file) == runtime.placement
    assert sum(runtime.placement.nodes.values()) == len(ran)  # one run: each node once


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_device_that_is_not_there_is_refused_and_never_replaced(device):
    name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[device]
    if name in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(RuntimeUnavailable, match=f"{name} is not in this ONNX Runtime build"):
        Runtime(tiny_graph(), device=device)


def test_shape_arithmetic_may_stay_on_the_cpu_and_computation_may_not():
    fine = of_events([event(0, "Conv", CUDA), event(1, "Shape", CPU), event(2, "Conv", CUDA), event(0, "Conv", CUDA)])
    assert fine.shares == pytest.approx({CUDA: 2 / 3, CPU: 1 / 3})
    assert fine.fault([CUDA]) is None
    stray = of_events([event(0, "Relu", CUDA), event(1, "Conv", CPU), event(2, "Gemm", CPU)])
    assert "runs Conv, Gemm on CPUExecutionProvider (67% on CPUExecutionProvider" in stray.fault([CUDA])
    absent = of_events([event(0, "Relu", CPU)])
    assert absent.fault([CUDA]) == f"no node of the graph ran on {CUDA}: 100% on {CPU}"


def test_the_second_provider_of_tensorrt_is_no_fault():
    mixed = of_events([event(0, "TRTKernel", "TensorrtExecutionProvider"), event(1, "Conv", CUDA)])
    assert mixed.fault(["TensorrtExecutionProvider", CUDA]) is None
    assert mixed.fault(["TensorrtExecutionProvider"]) is not None


def test_a_graph_of_another_datatype_than_the_manifests_is_refused_before_it_serves(tmp_path):
    bundle = bundles.load(write_tiny_bundle(tmp_path))
    spec = bundle.manifest.input.model_copy(update={"datatype": "INT16"})
    runtime = Runtime(bundle.backbone)
    with pytest.raises(RuntimeUnavailable, match=r"cannot run int16 of shape \(1, 2, 4\)"):
        runtime.warm_up(spec, 4)
    with pytest.raises(RuntimeUnavailable, match=r"finite ones of shape \(1, 5\)"):
        runtime.warm_up(bundle.manifest.input, 5)
