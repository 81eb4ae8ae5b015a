"""A header that is known again asks for exactly what it would ask for if it were read anew."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.bundle import InputSpec
from service.call import Call
from service.decoding import Decoder, decode
from service.errors import HeadwayError
from service.protocol import repeated
from service.protocol.parameters import Parameters
from service.protocol.repeated import RepeatedHeaders

SPEC = InputSpec(shape=(-1, 2, 3), unit="counts")
ODD = ["Åsa", "x" * 256, "", "a/b", 'q"', "back\\slash", "tab\t", '","user_id":"eve', "\u2028", "user_id"]
USERS = st.sampled_from(["ana", "bo"] * len(ODD) + ODD)


def call(header, data):
    headers = {b"inference-header-content-length": b"%d" % len(header)}
    return Call("infer", "tiny", None, headers, {}, header + data, lambda *_: None, "id", 0.0)


def outcome(read, header, data):
    """What a request comes to: its parameters, rows, users and answer, or the error."""
    try:
        decoded = read(call(header, data), SPEC)
        x = decoded.windows(SPEC)
        users = None if decoded.users is None else decoded.users(len(x))
        return decoded.asked, x.tolist(), users, decoded.encode.args
    except HeadwayError as e:
        return type(e)


@st.composite
def families(draw):
    """What headers that could be taken for each other share; users, escapes and damage are drawn for each."""
    rows, datatype = draw(st.integers(1, 2)), draw(st.sampled_from(["FP32", "INT32", "FP64"]))
    size = rows * 6 * (8 if datatype == "FP64" else 4)
    named, nested = draw(st.booleans()), draw(st.booleans())
    request_id = draw(st.sampled_from(["", "7", "user_id", '"user_id":"eve"']))
    output = draw(st.sampled_from(["", "logits", "features", "label"]))
    order = draw(st.permutations(["inputs", "parameters", "id", "outputs"]))
    spaced = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")]))
    ascii_only = draw(st.booleans())

    def header(user, other, escaped, damage, more):
        tensor = {
            "name": "input",
            "datatype": datatype,
            "shape": [rows, 2, 3],
            "parameters": {"binary_data_size": size},
        }
        if nested:
            tensor["parameters"]["user_id"] = other  # means nothing there
        parts = {"inputs": [tensor], "parameters": {"user_id": user} if named else {"priority": 1}}
        parts |= ({"id": request_id} if request_id else {}) | ({"outputs": [{"name": output}]} if output else {})
        ordered = {name: parts[name] for name in order if name in parts}
        text = json.dumps(ordered, separators=spaced, ensure_ascii=ascii_only)
        text = text.replace('"user_id"', '"user\\u005fid"', escaped)
        if damage is not None:
            at = min(damage[0], len(text))
            text = text[:at] + damage[1] + text[at + 1 :]
        return text.encode("utf-8", "surrogatepass"), size + more

    damage = (
        st.none()
        | st.none()
        | st.none()
        | st.none()
        | st.tuples(st.integers(0, 300), st.sampled_from(['"', "\\", "x", "\x00", "}"]))
    )
    escaped = st.sampled_from([0, 0, 0, 0, 1, 2])
    one = st.builds(header, USERS, USERS, escaped, damage, st.sampled_from([0] * 8 + [4, -4]))
    return draw(st.lists(one, min_size=2, max_size=8))


@settings(max_examples=400, deadline=None)
@given(families())
def test_known_headers_ask_for_what_they_say(several):
    decoder = Decoder()
    counter = itertools.count()
    for header, size in several * 2:
        data = bytes((next(counter) + i) % 64 for i in range(max(0, size)))
        assert outcome(decoder.decode, header, data) == outcome(decode, header, data)


def test_users_of_one_application_share_an_entry(monkeypatch):
    read = []
    monkeypatch.setattr("service.decoding.decode", lambda *given: read.append(1) or decode(*given))
    decoder, data = Decoder(), np.ones((1, 2, 3), np.float32).tobytes()
    for i in range(5000):
        body = {
            "inputs": [
                {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "parameters": {"binary_data_size": 24}}
            ]
        }
        header = json.dumps({**body, "parameters": {"user_id": f"u{i}"}}).encode()
        assert decoder.decode(call(header, data), SPEC).asked.user_id == f"u{i}"
    assert len(read) == 1


@pytest.mark.parametrize("length", [10, repeated.LONGEST + 1])
def test_what_is_kept_is_bounded(length):
    known = RepeatedHeaders()
    for i in range(repeated.KEPT + 10):
        known.keep(f"{i:0{length}}".encode(), Parameters(), i)
    assert len(known._known) <= repeated.KEPT
    assert (known.find(f"{repeated.KEPT + 9:0{length}}".encode()) is not None) == (length <= repeated.LONGEST)
