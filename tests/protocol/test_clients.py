"""Clients that nobody here wrote, against a real process: Triton's, blocking and not, and KServe's."""

import os
import subprocess

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from service.commands.process import running_service
from tests.tiny import LABELS, tiny_windows

MANY = 200  # rows: answers over the size from which they are compressed
CODINGS = [(None, None), ("gzip", "gzip"), ("deflate", "deflate")]


@pytest.fixture(scope="module")
def service(tiny_models, tmp_path_factory):
    with running_service(tiny_models, tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def address(service):
    return service.url.removeprefix("http://")


@pytest.fixture
def blocking(address):
    client = tritonclient.http.InferenceServerClient(address)
    yield client
    client.close()


def windows_input(x, binary=True, datatype="FP32"):
    tensor = tritonclient.http.InferInput("input", list(x.shape), datatype)
    tensor.set_data_from_numpy(x, binary_data=binary)
    return tensor


def users_input(names, binary=True):
    tensor = tritonclient.http.InferInput("user_id", [len(names)], "BYTES")
    tensor.set_data_from_numpy(np.array([n.encode() for n in names], object), binary_data=binary)
    return tensor


def wanted(*names, binary=True, top=0):
    return [tritonclient.http.InferRequestedOutput(name, binary_data=binary, class_count=top) for name in names]


def windows(rng, rows=9):
    x, labels = tiny_windows(-(-rows // len(LABELS)), rng)
    return x[:rows], labels[:rows]


def texts(values):
    return [v.decode() if isinstance(v, bytes) else v for v in values.reshape(-1)]


def check_answer(result, x, labels):
    assert texts(result.as_numpy("label")) == labels
    assert np.allclose(result.as_numpy("features"), x.reshape(len(x), 4, 2).sum(2), atol=1e-5)


def check_classification(result, rows):
    found = texts(result.as_numpy("probabilities"))
    assert result.as_numpy("probabilities").shape == (rows, 2)
    for first, second in zip(found[::2], found[1::2], strict=True):
        (p, index, label), (q, *_) = first.split(":"), second.split(":")
        assert LABELS[int(index)] == label
        assert float(p) >= float(q)


@pytest.mark.parametrize(("there", "back"), CODINGS)
@pytest.mark.parametrize("binary", [True, False])
def test_blocking_client_infers(blocking, rng, binary, there, back):
    x, labels = windows(rng, MANY)
    result = blocking.infer(
        "tiny", [windows_input(x, binary)], outputs=wanted("label", "features", binary=binary),
        request_compression_algorithm=there, response_compression_algorithm=back,
    )  # fmt: skip
    check_answer(result, x, labels)


def test_blocking_client_reads_metadata_names_users_and_classifies(blocking, rng):
    assert blocking.is_server_live()
    assert blocking.is_server_ready()
    assert blocking.is_model_ready("tiny", "1")
    assert blocking.get_server_metadata()["name"] == "headway"
    assert blocking.get_model_metadata("tiny")["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 2, 4]}]
    x, _ = windows(rng)
    for binary in (True, False):
        users = users_input(["ana", "bö", "cy"] * 3, binary)
        result = blocking.infer("tiny", [windows_input(x), users], outputs=wanted("head", "head_version"))
        assert result.as_numpy("head").tolist() == [b"shared"] * 9
        assert result.as_numpy("head_version").tolist() == [0] * 9
        result = blocking.infer("tiny", [windows_input(x)], outputs=wanted("probabilities", binary=binary, top=2))
        check_classification(result, 9)
    result = blocking.infer("tiny", [windows_input(x)], priority=1, timeout=5_000_000, parameters={"user_id": "ana"})
    assert result.get_response()["parameters"] == {"head": "shared", "head_version": 0}
    assert result.as_numpy("probabilities").dtype == np.float32
    result = blocking.infer("tiny", [windows_input(x.astype(np.float64), datatype="FP64")], outputs=wanted("features"))
    assert np.allclose(result.as_numpy("features"), x.reshape(9, 4, 2).sum(2), atol=1e-5)


def test_blocking_client_is_told_what_was_wrong(blocking, rng):
    x, _ = windows(rng)
    with pytest.raises(InferenceServerException, match=r"must have shape \[rows, 2, 4\]"):
        blocking.infer("tiny", [windows_input(x[:, :1])])
    with pytest.raises(InferenceServerException, match="unknown parameter 'usr'"):
        blocking.infer("tiny", [windows_input(x)], parameters={"usr": "ana"})
    with pytest.raises(InferenceServerException, match="unknown parameter 'sequence_id'"):
        blocking.infer("tiny", [windows_input(x)], sequence_id=5, sequence_start=True)


@pytest.mark.parametrize(("there", "back"), CODINGS)
async def test_async_client(address, rng, there, back):
    x, labels = windows(rng, MANY)
    async with tritonclient.http.aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("tiny"))["name"] == "tiny"
        options = {"request_compression_algorithm": there, "response_compression_algorithm": back}
        for binary in (True, False):
            result = await client.infer(
                "tiny", [windows_input(x, binary)], outputs=wanted("label", "features", binary=binary), **options
            )
            check_answer(result, x, labels)
        users = users_input(["ana", "bö"] * (MANY // 2))
        result = await client.infer("tiny", [windows_input(x), users], outputs=wanted("head"), **options)
        assert result.as_numpy("head").tolist() == [b"shared"] * MANY
        result = await client.infer("tiny", [windows_input(x)], outputs=wanted("probabilities", top=2), **options)
        check_classification(result, MANY)
        with pytest.raises(InferenceServerException, match="there is no model 'none'"):
            await client.infer("none", [windows_input(x)])


KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=1))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, "tiny")
    x = np.array([[[1, 1, 1, 1], [1, 1, 1, 1]], [[2, 2, 2, 2], [0, 0, 0, 0]]], np.float32)
    for binary in (True, False):
        window = InferInput("input", list(x.shape), "FP32")
        window.set_data_from_numpy(x, binary_data=binary)
        users = InferInput("user_id", [2], "BYTES")
        users.set_data_from_numpy(np.array([b"ana", b"bo"], object), binary_data=binary)
        parameters = {"binary_data_output": binary}
        answer = await client.infer(url, InferRequest("tiny", [window], parameters=parameters), model_name="tiny")
        named = {o.name: o for o in answer.outputs}
        assert named["probabilities"].as_numpy().shape == (2, 3)
        assert np.allclose(named["probabilities"].as_numpy().sum(1), 1)
        answer = await client.infer(url, InferRequest("tiny", [window, users]), model_name="tiny")
        heads = [v.decode() if isinstance(v, bytes) else v for v in {o.name: o for o in answer.outputs}["head"].data]
        assert heads == ["shared", "shared"], heads
    await client.close()
    print("all of it")

asyncio.run(main(sys.argv[1]))
"""


def test_kserves_client_works_unchanged(service, kserve_python, tmp_path):
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [kserve_python, "-c", KSERVE, service.url],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=variables,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("all of it")
