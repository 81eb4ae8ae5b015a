"""Windows in a request: checked against what the model takes, in its graph's own datatype."""

from __future__ import annotations

import contextlib
import io
import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service.errors import InvalidRequest, Unprocessable, UnsupportedMediaType
from service.protocol import media as encoded
from service.protocol.body import parse_json_object
from service.protocol.media import Items
from service.protocol.tensors import MAX_DIMENSIONS, Tensor

MAX_USER_ID = 256
_NOT_NUMBERS = frozenset({"BOOL", "BYTES"})
_EXACT_BELOW = 2**24
_NOTHING = contextlib.nullcontext()
_ID_EXCLUDES = frozenset("/\ufffd")  # a slash parts paths; U+FFFD stands for bytes that were not UTF-8
MAX_REPETITIONS_A_CALL = 64
LARGEST_TARGET = 1e15


def windows(tensor: Tensor, spec: InputSpec, *, finite: bool = True) -> NDArray[Any]:
    """Check a tensor against the model's input and return it in that datatype, a view where it is of it already.

    Raises:
        InvalidRequest: another name, shape or datatype.
        Unprocessable: values that are not finite.
    """
    if tensor.name != spec.name:
        raise InvalidRequest(f"the model's input is called {spec.name!r}, not {tensor.name!r}")
    if tensor.datatype in _NOT_NUMBERS:
        raise InvalidRequest(
            f"input {spec.name!r} must be {spec.datatype}, or numbers that cast to it safely: FP16, FP32, FP64, "
            f"INT8 to INT64, UINT8 to UINT64; not {tensor.datatype}"
        )
    return checked(tensor.data, spec, finite=finite)


def checked(data: NDArray[Any], spec: InputSpec, *, finite: bool = True) -> NDArray[Any]:
    """Check the shape and values of windows and return them in the datatype of the model's input.

    A float input rounds floats to the nearest of its own; integers must be in it exactly (FP32 has all up to 2^24).
    An integer input takes only values that it holds exactly. Without `finite`, floats may be NaN or infinite.
    """
    if spec.parts:
        named = ", ".join(part.name for part in spec.parts)
        raise InvalidRequest(f"this version of the model has the inputs {named}; give one or more by name")
    misfit = spec.misfit(data.shape)
    if misfit:
        raise InvalidRequest(f"input {spec.name!r} {misfit}")
    if len(data) == 0:
        raise InvalidRequest(f"input {spec.name!r} has no rows")
    dtype = spec.dtype
    if data.dtype == dtype and dtype.kind in "iu":
        return np.ascontiguousarray(data)
    if data.dtype.kind in "iu" and spec.datatype == "FP32":
        return _from_integers(data, spec)
    with np.errstate(over="ignore", invalid="ignore") if data.dtype != dtype else _NOTHING:
        x: NDArray[Any] = np.ascontiguousarray(data, dtype)
    if dtype.kind == "f" and data.dtype.kind == "f":
        # One pass without an array in between. The sum of squares may overflow where no value does: then look at each.
        if finite and not math.isfinite(np.vdot(x, x)) and not (good := np.isfinite(x)).all():
            _refuse(good, "NaN, infinity or values beyond float32", spec)
    elif not (same := x == data).all():
        _refuse(same, f"values that are not {spec.datatype}", spec)
    return x


def _refuse(good: NDArray[Any], what: str, spec: InputSpec) -> None:
    row = int(np.flatnonzero(~good.reshape(len(good), -1).all(1))[0])
    what = what.replace("float32", "float32" if spec.datatype == "FP32" else spec.datatype)
    raise Unprocessable(f"input {spec.name!r} holds {what}, first in row {row}")


def _from_integers(data: NDArray[Any], spec: InputSpec) -> NDArray[np.float32]:
    if data.dtype.itemsize > 2:
        # As 64 bits before the sign goes: the least integer of a type has no negative in it; as unsigned, 2^63 is.
        size = np.abs(data.astype(np.int64)).view(np.uint64) if data.dtype.kind == "i" else data.astype(np.uint64)
        if size.max() > _EXACT_BELOW:
            lowest_bit = np.maximum(size & (~size + np.uint64(1)), 1)
            inexact = (size // lowest_bit >= _EXACT_BELOW).reshape(len(data), -1).any(1)
            if inexact.any():
                row = int(np.flatnonzero(inexact)[0])
                raise Unprocessable(
                    f"input {spec.name!r} holds integers that no float32 equals, first in row {row}; scale them, "
                    "or send FP64 to have them rounded"
                )
    return np.ascontiguousarray(data, np.float32)


def friendly_data(body: bytes, content_type: str, spec: InputSpec | None = None) -> NDArray[Any] | Items:
    """Read an array from `application/json {"inputs": …}` or `application/x-npy`, or the media that a model reads.

    Raises:
        UnsupportedMediaType: another media type.
        InvalidRequest: malformed.
    """
    media = content_type.split(";")[0].strip().lower()
    if media in ("application/json", ""):
        given = json_inputs(body, "a nested array of numbers was")
        if spec is not None and encoded.is_encoded(given, spec):
            return encoded.items_of(given, spec)
        return nested(given)
    if media == "application/x-npy":
        return npy(body)
    types = encoded.TENSORS if spec is None else encoded.accepted(spec)
    if media in types:
        return (body,)
    raise UnsupportedMediaType(f"this model does not read {media[:64]}; send {', '.join(types[:-1])} or {types[-1]}")


def json_inputs(body: bytes, expected: str) -> Any:
    """Read `inputs` of a JSON body that has nothing else; `expected` ends a message that says what should be there.

    Raises:
        InvalidRequest: malformed, or something else is there.
    """
    message = parse_json_object(body)
    if "inputs" not in message:
        raise InvalidRequest(f'the body has no "inputs"; {expected} expected there')
    if len(message) > 1:
        other = next(name for name in message if name != "inputs")
        raise InvalidRequest(f"unknown field {other[:64]!r}: beside inputs, parameters are the query's")
    return message["inputs"]


def friendly_windows(data: NDArray[Any], spec: InputSpec, *, finite: bool = True) -> NDArray[np.float32]:
    """Check one window or a batch and return it as a batch.

    Raises:
        InvalidRequest, Unprocessable: as `windows`.
    """
    if data.ndim == len(spec.window_shape):
        data = data[None]
    return checked(data, spec, finite=finite)


def nested(values: Any) -> NDArray[Any]:
    """Read a nested list of numbers, or the array that `parse_json_object` made of a large one.

    Raises:
        InvalidRequest: it is ragged or holds something else.
    """
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(values, list):
        raise InvalidRequest(f"inputs must be a nested array of numbers, not {type(values).__name__}")
    return _rectangle(values, "inputs")


def _rectangle(values: list[Any], what: str) -> NDArray[np.float64]:
    """Read nested lists of numbers.

    numpy would make room for the longest text at each place before it said that there are texts.

    Raises:
        InvalidRequest: they are ragged, or hold something else.
    """
    shape = [len(values)]
    while values and type(values[0]) is list:
        if len(shape) == MAX_DIMENSIONS:
            raise InvalidRequest(f"{what} must not be nested more than {MAX_DIMENSIONS} deep")
        if set(map(type, values)) != {list} or len(set(map(len, values))) > 1:
            raise InvalidRequest(f"{what} must be a nested array whose rows have equal lengths")
        shape.append(len(values[0]))
        values = list(chain.from_iterable(values))
    kinds = set(map(type, values))
    if list in kinds:
        raise InvalidRequest(f"{what} must be a nested array whose rows have equal lengths")
    if not kinds <= {int, float}:
        raise InvalidRequest(f"{what} must hold numbers only")
    try:
        # JSON knows no integers apart from numbers: 16777217 is rounded as 16777217.0 is.
        return np.frombuffer(struct.pack(f"<{len(values)}d", *values), np.float64).reshape(shape)
    except (struct.error, OverflowError) as e:
        raise InvalidRequest(f"{what} must hold numbers that 64 bits can") from e


def npy(body: bytes) -> NDArray[Any]:
    """Read a .npy file of numbers; pickles are refused.

    Raises:
        InvalidRequest: not such a file.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(file)
    except Exception as e:  # the header is Python source, and its reader raises whatever a parser may
        raise InvalidRequest("the body is not a .npy file of numbers") from e
    if dtype.kind not in "fiu":
        raise InvalidRequest(f"the .npy file holds {dtype}; numbers were expected")
    # Checked before anything is allocated: a header can claim any shape.
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) * dtype.itemsize != len(body) - file.tell():
        raise InvalidRequest("the .npy file's header does not fit its length")
    return np.frombuffer(body, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")


def encoded_items(tensor: Tensor, spec: InputSpec) -> Items:
    """Read a BYTES tensor of encoded media, one a row.

    Raises:
        InvalidRequest: another name or shape.
    """
    if tensor.name != spec.name:
        raise InvalidRequest(f"the model's input is called {spec.name!r}, not {tensor.name!r}")
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)) or not tensor.data.size:
        raise InvalidRequest(f"input {spec.name!r} of BYTES must have shape [rows], not {list(tensor.shape)}")
    return tuple(tensor.data.reshape(-1).tolist())


def user_id(value: Any) -> str:
    """Check a user's id: a string of 1 to 256 printable characters.

    Raises:
        InvalidRequest: anything else.
    """
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= MAX_USER_ID
        or not value.isprintable()
        or not _ID_EXCLUDES.isdisjoint(value)
    ):
        raise InvalidRequest(
            f"user_id must be a string of 1 to {MAX_USER_ID} printable characters without '/', in UTF-8"
        )
    return value


def per_row_users(tensor: Tensor, rows: int) -> list[str]:
    """Read the BYTES tensor `user_id` that names a user for each row.

    Raises:
        InvalidRequest: another datatype or length, or an id that is not one.
    """
    if tensor.datatype != "BYTES" or tensor.shape not in ((rows,), (rows, 1)):
        raise InvalidRequest(f"the tensor user_id must be BYTES of shape [{rows}], one user a row")
    try:
        return [user_id(item.decode()) for item in tensor.data.reshape(-1)]
    except UnicodeDecodeError as e:
        raise InvalidRequest("the tensor user_id holds bytes that are not UTF-8") from e


MOST_LABEL_CHARACTERS = 64


def can_be_label(name: str) -> bool:
    """Whether a label of a user's own may be called so."""
    return bool(name.strip()) and name.isprintable() and len(name) <= MOST_LABEL_CHARACTERS


def class_indices(
    labels: Any, rows: int, known: Sequence[str], room: int = 0
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turn a list of label names into class indices `(n,)`.

    With `room`, names that are not known are labels of the user's own: they get indices behind the known ones, in the
    order in which they come, and are returned, too.

    Raises:
        InvalidRequest: not one label name a row.
        Unprocessable: a label that the model does not know, where there is no room, or that cannot be one.
    """
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise InvalidRequest("labels must be a list of label names, one a window")
    if len(labels) != rows:
        raise InvalidRequest(f"there are {rows} windows and {len(labels)} labels; one a window was expected")
    index = {name: i for i, name in enumerate(known)}
    unknown = tuple(dict.fromkeys(name for name in labels if name not in index))
    if unknown and not room:
        raise Unprocessable(f"unknown label {min(unknown)[:64]!r}; this model's labels are {', '.join(known)}")
    for name in unknown:
        if not can_be_label(name):
            raise Unprocessable(
                f"{name[:64]!r} cannot be a label: 1 to {MOST_LABEL_CHARACTERS} printable characters can"
            )
        index[name] = len(index)
    return np.array([index[name] for name in labels], np.int64), unknown


def target_rows(values: Any, rows: int, targets: Sequence[str]) -> NDArray[np.float64]:
    """Read targets `(n, T)`: a nested list of numbers or an array, one row a window.

    Raises:
        InvalidRequest: not numbers of that shape.
        Unprocessable: values that are not finite, or beyond 1e15.
    """
    wanted = f"[{rows}, {len(targets)}], one row of {', '.join(targets)} a window"
    if isinstance(values, list):
        _refuse_missing(values, targets)
        try:
            values = _rectangle(values, "they")
        except InvalidRequest as e:
            raise InvalidRequest(f"targets must be numbers {wanted}: {e}") from e
    data = np.asarray(values)
    if data.dtype.kind not in "fiu" or data.shape != (rows, len(targets)):
        found = list(data.shape) if data.dtype.kind in "fiu" else "something else"
        raise InvalidRequest(f"targets must be numbers {wanted}, not {found}")
    data = data.astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(data) <= LARGEST_TARGET).all(1))  # NaN is not smaller than anything
    if len(wrong):
        raise Unprocessable(
            f"targets hold values that are not finite, or beyond {LARGEST_TARGET:g}, first in row {wrong[0]}"
        )
    return data


def _refuse_missing(values: list[Any], targets: Sequence[str]) -> None:
    for i, row in enumerate(values):
        if row is None or (isinstance(row, list) and None in row):
            missing = "is null" if row is None else f"has null for {_named(row.index(None), targets)}"
            raise InvalidRequest(
                f"targets must be numbers, and row {i} {missing}; leave out windows whose targets were not all measured"
            )


def _named(column: int, targets: Sequence[str]) -> str:
    return targets[column] if column < len(targets) else f"column {column}"


def repetition_ids(values: Any, rows: int) -> NDArray[np.int64]:
    """Read repetition ids `(n,)`; without any, all windows are of one repetition.

    Raises:
        InvalidRequest: not one integer a window.
    """
    if values is None:
        return np.zeros(rows, np.int64)
    if not isinstance(values, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise InvalidRequest("repetitions must be a list of integers, one a window")
    if len(values) != rows:
        raise InvalidRequest(f"there are {rows} windows and {len(values)} repetitions; one a window was expected")
    if any(abs(v) >= 2**62 for v in values):
        raise InvalidRequest("a repetition id is beyond 62 bits")
    if len(set(values)) > MAX_REPETITIONS_A_CALL:
        raise Unprocessable(
            f"{len(set(values))} repetitions in one call; at most {MAX_REPETITIONS_A_CALL} are taken: "
            "a repetition is one go at all the labels, not one window"
        )
    return np.array(values, np.int64)
