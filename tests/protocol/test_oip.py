"""Messages: parameters in one place, casts that lose nothing unsaid, raw binary, classification, answers as bytes."""

import threading

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporters.bundle import InputSpec
from service.errors import InvalidRequest, Unprocessable
from service.protocol import classification, inputs, oip
from service.protocol.tensors import DTYPES, Tensor

SPEC = InputSpec(shape=(-1, 2, 4), unit="counts", sample_rate=100.0, stride=2)
ENTRY = {"name": "input", "datatype": "FP32", "shape": [1], "data": [1.0]}
FLOATS = hnp.arrays("<f4", hnp.array_shapes(min_dims=1, max_dims=3, max_side=5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))  # fmt: skip # noqa: E501


def message(**fields):
    return orjson.dumps({"inputs": [ENTRY], **fields})


def read(answer):
    """Read an answer as a client does."""
    length = answer.header_length if answer.header_length is not None else len(answer.body)
    head, at, found = orjson.loads(answer.body[:length]), length, {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        blob = answer.body[at : at + (size or 0)]
        at += len(blob)
        found[output["name"]] = (output, blob)
    assert at == len(answer.body)
    return head, found


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=4))
def test_an_answer_can_be_sent_as_a_request(pairs):
    tensors = [(Tensor(f"t{i}", "FP32", x), binary) for i, (x, binary) in enumerate(pairs)]
    encoded = oip.encode({"model_name": "m"}, tensors)
    assert (encoded.header_length is None) == (not any(binary for _, binary in pairs))
    _, found = read(encoded)
    text = orjson.dumps({"inputs": [output for output, _ in found.values()]})
    back = oip.decode(text + b"".join(blob for _, blob in found.values()), str(len(text))).inputs
    for i, (x, _) in enumerate(pairs):
        assert np.array_equal(back[f"t{i}"].data, x)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=1, max_size=5), st.booleans())
def test_strings_go_both_ways(texts, binary):
    data = np.empty(len(texts), object)
    data[:] = [t.encode() for t in texts]
    _, found = read(oip.encode({}, [(Tensor("s", "BYTES", data), binary)]))
    output, blob = found["s"]
    text = orjson.dumps({"inputs": [output]})
    assert oip.decode(text + blob, str(len(text))).inputs["s"].data.tolist() == data.tolist()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_integers_are_cast_exactly_or_refused(data):
    datatype = data.draw(st.sampled_from(["INT32", "INT64", "UINT32", "UINT64"]))
    bounds = np.iinfo(DTYPES[datatype])
    value = data.draw(st.one_of(st.integers(bounds.min, bounds.max), st.sampled_from([bounds.min, bounds.max, 2**24, 2**24 + 1])))  # fmt: skip # noqa: E501
    x = np.zeros((2, 2, 4), DTYPES[datatype])
    x[1, 1, 3] = value
    if int(np.float32(value)) == value:
        got = inputs.windows(Tensor("input", datatype, x), SPEC)
        assert got.dtype == np.float32
        assert int(got[1, 1, 3]) == value
    else:
        with pytest.raises(Unprocessable, match="no float32 equals, first in row 1"):
            inputs.windows(Tensor("input", datatype, x), SPEC)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_fp64_is_rounded_but_must_not_overflow(value):
    x = np.full((3, 2, 4), 0.1)
    assert inputs.windows(Tensor("input", "FP64", x), SPEC)[0, 0, 0] == np.float32(0.1)
    x[2, 0, 1] = value
    with pytest.raises(Unprocessable, match="first in row 2"):
        inputs.windows(Tensor("input", "FP64", x), SPEC)
    entry = {"name": "input", "datatype": "FP32", "shape": [1, 2, 4], "data": [1e39] * 8}
    with pytest.raises(Unprocessable, match="first in row 0"):
        inputs.windows(oip.tensors([entry], memoryview(b""))["input"], SPEC)


def test_large_values_are_no_infinity():
    x = np.full((2, 2, 4), 3e38, np.float32)  # their squares are beyond float32
    assert np.array_equal(inputs.windows(Tensor("input", "FP32", x), SPEC), x)


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES"])
def test_what_is_no_number_is_refused(datatype):
    with pytest.raises(InvalidRequest, match=f"not {datatype}"):
        inputs.windows(Tensor("input", datatype, np.zeros((1, 2, 4), bool)), SPEC)


def test_parameters_and_outputs_are_read():
    got = oip.decode(
        message(
            parameters={"user_id": "ana", "head_version": 2, "fallback": "error", "timeout": 2000, "priority": 3},
            outputs=[
                {"name": "probabilities", "parameters": {"classification": 2, "binary_data": True}},
                {"name": "label"},
            ],
        )
    )
    p = got.parameters
    assert (p.user_id, p.head_version, p.fallback, p.timeout, p.priority) == ("ana", 2, "error", 0.002, 3)
    assert got.outputs == (("probabilities", True, 2), ("label", False, 0))
    assert oip.decode(message(parameters={"timeout": 0, "user_id": None})).parameters.timeout is None
    assert oip.decode(message(parameters={"binary_data_output": True}, outputs=[{"name": "x"}])).outputs[0].binary


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"parameters": {"priority": -1}}, "priority must be an integer from 0"),
        ({"parameters": {"priority": True}}, "priority must be an integer"),
        ({"parameters": {"timeout": 1.5}}, "timeout must be an integer"),
        ({"parameters": {"fallback": ["shared"]}}, "shared or error"),
        ({"parameters": {"binary_data_output": 1}}, "true or false"),
        ({"parameters": {"usr": 1}}, "unknown parameter 'usr'"),
        ({"outputs": [{"name": "label", "parameters": {"classification": 1}}]}, "'label' cannot be classified"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 0}}]}, "1 or more"),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]}, "true or false"),
        ({"outputs": [{"name": "logits", "parameters": {"top": 1}}]}, "unknown parameter 'top' of output 'logits'"),
        ({"outputs": [{"name": "logits", "parameters": []}]}, "must be an object"),
    ],
)
def test_wrong_parameters_are_named(fields, text):
    with pytest.raises(InvalidRequest, match=text):
        oip.decode(message(**fields))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays("<f4", st.tuples(st.integers(1, 4), st.just(2), st.just(4)), elements=st.floats(-9, 9, width=32)))
def test_raw_binary_takes_its_rows_from_its_length(x):
    query = {"user_id": "ana", "head_version": "2", "priority": "1", "timeout": "1000"}
    got = oip.decode(x.tobytes(), "0", query, SPEC)
    assert np.array_equal(got.inputs["input"].data, x)
    assert (got.parameters.user_id, got.parameters.head_version, got.parameters.timeout) == ("ana", 2, 0.001)
    assert got.binary_output
    assert not oip.decode(x.tobytes(), "0", {"binary_data_output": "false"}, SPEC).binary_output


@pytest.mark.parametrize(
    ("body", "query", "text"),
    [
        (b"", {}, "has 0 bytes"),
        (bytes(33), {}, "33 bytes; one or more windows .2, 4. of FP32, 32 bytes each"),
        (bytes(32), {"head_version": "x"}, "head_version must be an integer"),
        (bytes(32), {"head_version": "9" * 30}, "head_version must be an integer"),
        (bytes(32), {"binary_data_output": "maybe"}, "true or false"),
        (bytes(32), {"usr": "x"}, "unknown parameter 'usr'"),
    ],
)
def test_wrong_raw_requests_are_named(body, query, text):
    with pytest.raises(InvalidRequest, match=text):
        oip.decode(body, "0", query, SPEC)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays("<f4", st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-9, 9, width=32)), st.integers(1, 5)
)
def test_classification_names_the_best_first(scores, k):
    got = classification.top(Tensor("logits", "FP32", scores), [("a:b", "c", "d")] * len(scores), k)
    assert (got.datatype, got.shape) == ("BYTES", (len(scores), min(k, 3)))
    for row, texts in zip(scores, got.data, strict=True):
        parts = [t.decode().split(":", 2) for t in texts]
        assert [p[0] for p in parts] == [f"{v:f}" for v in sorted(row.tolist(), reverse=True)[:k]]
        for value, index, label in parts:
            assert f"{row[int(index)]:f}" == value
            assert label == ("a:b", "c", "d")[int(index)]


def test_decoding_can_run_in_threads():
    body = orjson.dumps({"inputs": np.ones((200, 2, 4)).tolist()})
    found = []
    threads = [threading.Thread(target=lambda: found.append(inputs.friendly_data(body, ""))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(x, np.ones((200, 2, 4))) for x in found)
    assert len(found) == 4
