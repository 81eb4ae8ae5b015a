"""Tensors survive the wire in every datatype, and malformed ones are named."""

import struct

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.errors import InvalidRequest
from service.protocol import oip
from service.protocol.tensors import DTYPES, Tensor, from_binary, from_json, to_binary, to_json

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from([*DTYPES, "BYTES"]))
    if datatype == "BYTES":
        items = draw(st.lists(st.binary(max_size=8), min_size=1, max_size=6))
        data = np.empty(len(items), object)
        data[:] = items
        return Tensor("t", datatype, data)
    dtype = DTYPES[datatype]
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return Tensor("t", datatype, draw(hnp.arrays(dtype, SHAPES, elements=elements)))


@settings(max_examples=200, deadline=None)
@given(tensors())
def test_binary_round_trip(tensor):
    blob = to_binary(tensor.data, tensor.datatype)
    entry = {"name": "t", "datatype": tensor.datatype, "shape": list(tensor.shape)}
    back = from_binary(entry, memoryview(blob), len(blob))
    assert back.shape == tensor.shape
    assert np.array_equal(back.data, tensor.data)


@settings(max_examples=200, deadline=None)
@given(tensors().filter(lambda t: t.datatype != "BYTES"))
def test_json_round_trip(tensor):
    text = orjson.dumps(to_json(tensor.data, tensor.datatype), option=orjson.OPT_SERIALIZE_NUMPY)
    entry = {"name": "t", "datatype": tensor.datatype, "shape": list(tensor.shape), "data": orjson.loads(text)}
    assert np.array_equal(from_json(entry).data, tensor.data)


def test_json_strings_are_bytes():
    entry = {"name": "u", "datatype": "BYTES", "shape": [2, 1], "data": [["ana"], ["bö"]]}
    assert from_json(entry).data.tolist() == [[b"ana"], ["bö".encode()]]


def test_binary_numbers_are_a_view_on_the_body():
    body = memoryview(np.arange(6, dtype="<f4").tobytes())
    tensor = from_binary({"name": "t", "datatype": "FP32", "shape": [2, 3]}, body, 24)
    assert np.shares_memory(tensor.data, np.frombuffer(body, "<f4"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "must be an object"),
        ({"datatype": "FP32", "shape": [1], "data": [1]}, "has no name"),
        ({"name": "t", "datatype": "FP8", "shape": [1], "data": [1]}, "known are BOOL"),
        ({"name": "t", "datatype": "FP32", "shape": [-1], "data": [1]}, "non-negative"),
        ({"name": "t", "datatype": "FP32", "shape": [True], "data": [1]}, "non-negative"),
        ({"name": "t", "datatype": "FP32", "shape": "1", "data": [1]}, "non-negative"),
        ({"name": "t", "datatype": "FP32", "shape": [2], "data": [1]}, "needs 2 values; 1 were sent"),
        ({"name": "t", "datatype": "FP32", "shape": [2], "data": [1, [2]]}, "ragged"),
        ({"name": "t", "datatype": "FP32", "shape": [1], "data": ["x"]}, "not FP32"),
        ({"name": "t", "datatype": "FP32", "shape": [1], "data": [None]}, "not FP32"),
        ({"name": "t", "datatype": "INT8", "shape": [1], "data": [300]}, "not INT8"),
        ({"name": "t", "datatype": "INT8", "shape": [1], "data": [1.5]}, "not INT8"),
        ({"name": "t", "datatype": "BOOL", "shape": [1], "data": [2]}, "not BOOL"),
        ({"name": "t", "datatype": "BYTES", "shape": [1], "data": [2]}, "must be strings"),
        ({"name": "t", "datatype": "FP32", "shape": [1]}, "neither data nor binary_data_size"),
        ({"name": "t", "datatype": "FP32", "shape": [1], "data": 5}, "must be a list"),
        ({"name": "t", "datatype": "FP32", "shape": [1], "data": [1], "parameters": 3}, "must be an object"),
    ],
)
def test_malformed_json_tensors_are_named(entry, message):
    with pytest.raises(InvalidRequest, match=message):
        from_json(entry)


@pytest.mark.parametrize(
    ("datatype", "shape", "blob", "message"),
    [
        ("FP32", [2], b"\0" * 4, "needs 8 bytes; 4 were announced"),
        ("BYTES", [1], b"\0\0", "ends inside a length"),
        ("BYTES", [1], struct.pack("<I", 9) + b"abc", "ends inside an element"),
        ("BYTES", [2], struct.pack("<I", 1) + b"a", "needs 2 values; 1 were sent"),
    ],
)
def test_malformed_binary_tensors_are_named(datatype, shape, blob, message):
    entry = {"name": "t", "datatype": datatype, "shape": shape}
    with pytest.raises(InvalidRequest, match=message):
        from_binary(entry, memoryview(blob), len(blob))


def message(**fields):
    entry = {"name": "input", "datatype": "FP32", "shape": [1], "data": [1.0]}
    return orjson.dumps({"inputs": [entry], **fields})


@pytest.mark.parametrize(
    ("body", "length", "text"),
    [
        (b"", None, "the body is empty"),
        (b"{", None, "not JSON"),
        (b'{"inputs": [NaN]}', None, "not JSON"),
        (b"[]", None, "must be a JSON object"),
        (b"{}", None, "non-empty list"),
        (b'{"inputs": [5]}', None, "must be an object"),
        (message(), "99999", "not a length within"),
        (message(), "x", "not a length within"),
        (message(parameters=[]), None, "parameters must be an object"),
        (message(id=5), None, "id must be a string"),
        (message(outputs=5), None, "outputs must be a list"),
        (message(outputs=[{}]), None, "an object with a name"),
    ],
)
def test_malformed_requests_are_named(body, length, text):
    with pytest.raises(InvalidRequest, match=text):
        oip.decode(body, length)


def test_binary_data_must_be_used_up_and_suffice():
    entry = {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    text = orjson.dumps({"inputs": [entry]})
    assert oip.decode(text + b"\0" * 4, str(len(text))).inputs["a"].data.tolist() == [0.0]
    with pytest.raises(InvalidRequest, match="belong to no input"):
        oip.decode(text + b"\0" * 8, str(len(text)))
    with pytest.raises(InvalidRequest, match="not within"):
        oip.decode(text + b"\0" * 2, str(len(text)))
    twice = orjson.dumps({"inputs": [entry, entry]})
    with pytest.raises(InvalidRequest, match="given twice"):
        oip.decode(twice + b"\0" * 8, str(len(twice)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 300).map(str)))
def test_no_bytes_make_the_decoder_fail_otherwise(body, length):
    with pytest.raises(InvalidRequest):
        oip.decode(body, length)
