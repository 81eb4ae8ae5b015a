"""A large body parsed piece by piece gives what parsing it whole gives, be it an array or a refusal."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import HeadwayError
from service.protocol import inputs, pieces
from service.protocol.body import parse_json_object

NUMBERS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.integers(-9, 9), st.floats(allow_nan=False, width=32))
ODD = st.one_of(NUMBERS, st.booleans(), st.none(), st.sampled_from(["]", '"inputs":[[1]]', "a"]), st.just({}))


def arrays(leaf):
    """Nested lists of equal lengths, up to three deep."""
    shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3)
    return shapes.flatmap(lambda shape: filled(leaf, shape))


def filled(leaf, shape):
    size = shape[0]
    inner = leaf if len(shape) == 1 else filled(leaf, shape[1:])
    return st.lists(inner, min_size=size, max_size=size)


VALUES = st.one_of(
    arrays(NUMBERS), arrays(NUMBERS), arrays(ODD), st.recursive(ODD, lambda inner: st.lists(inner, max_size=4))
)
OTHERS = st.dictionaries(st.sampled_from(["labels", "mode", "in", "\\"]), VALUES, max_size=2)


@st.composite
def bodies(draw):
    """Objects with and without `inputs`, at any place, twice, nested, written in several ways, some of them damaged."""
    members = [*draw(OTHERS).items(), *draw(st.sampled_from([[], [None], [None], [None], [None, None]]))]
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]))
    parts = []
    for member in draw(st.permutations(members)):
        name, value = member or ("inputs", draw(VALUES))
        if draw(st.integers(0, 9)) == 0:
            value = {"inputs": value}
        parts.append(json.dumps({name: value}, separators=separators)[1:-1])
    text = "{" + separators[0].join(parts) + "}"
    if draw(st.integers(0, 3)) == 0:
        at, by = draw(st.integers(0, len(text))), draw(st.sampled_from(["", "]", "[", ",", '"', "1", "}", " "]))
        text = text[:at] + by + text[at + draw(st.integers(0, 1)) :]
    return text.encode()


def outcome(body, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "PIECE", piece)
        try:
            message = parse_json_object(body)
            array = inputs.nested(message.pop("inputs", None))
        except HeadwayError as e:
            return type(e), str(e)
        return array.dtype.str, array.shape, array.tobytes(), orjson.dumps(message)


@settings(max_examples=400, deadline=None)
@given(bodies(), st.integers(0, 12))
@example(b'{"inputs":[[1],[2],]}', 0)
@example(b'{"inputs":[1,2,]}', 0)
@example(b'{"inputs":[[1],[true],[2]]}', 0)
@example(b'{"inputs":[[0,0,false]]}', 8)
@example(b'{"inputs":[[1],[2]', 0)
@example(b'{"inputs":[[1],[2]],"inp\\u0075ts":[3]}', 0)
@example(b'{"mode":{"inputs":[[1],[2]]},"inp\\u0075ts":[3]}', 0)
@example(b'{"inputs":[[1],[[2]],[3]]}', 0)
@example(b'{"inputs":[[1,2],[9223372036854775808,2],[-1,0]]}', 0)
def test_pieces_or_whole_is_the_same(body, piece):
    assert outcome(body, piece) == outcome(body, 10**9)


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_what_clients_send_is_parsed_in_pieces(rng, separators):
    x = rng.standard_normal((2000, 8, 10))
    body = json.dumps({"inputs": x.tolist(), "labels": ["a"] * 2000}, separators=separators).encode()
    assert len(body) > 8 * pieces.PIECE
    found = pieces.parse_inputs(body)
    assert found is not None
    assert np.array_equal(found["inputs"], x)
    assert found["labels"] == ["a"] * 2000
