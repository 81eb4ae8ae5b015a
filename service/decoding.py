"""From bodies to what they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import InputSpec
from service import answers, output_answers
from service.answers import OFFERS, Offer
from service.call import Call, Decoded, Encode, PerRow
from service.errors import InvalidRequest
from service.protocol import compression, inputs, oip, parameters, parts
from service.protocol.parameters import Parameters
from service.protocol.parts import Parts
from service.protocol.repeated import RepeatedHeaders
from service.protocol.tensors import DTYPES, Tensor

PREDICT_PARAMETERS = tuple(name for name in parameters.KNOWN if name != "binary_data_output")


class _Plan(NamedTuple):
    """What a JSON header asks for, whose one input is binary numbers."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    features_only: bool
    encode: Encode
    wanted: tuple[str, ...]


class Decoder:
    """Decodes on the event loop what is asked of models with one offer; knows headers again."""

    def __init__(self, offer: Offer = OFFERS["classification"]) -> None:
        self.offer = offer
        self._headers: RepeatedHeaders[_Plan] = RepeatedHeaders()

    def decode(self, call: Call, spec: InputSpec) -> Decoded:
        """Return what `decode` does, for a header that came before without reading it again."""
        length = call.headers.get(b"inference-header-content-length")
        # What a header asks for is the same of all models of one input, and only of those.
        if (
            length is None
            or spec.parts
            or call.endpoint != "infer"
            or call.query
            or not length.isdigit()
            or len(length) > 4
        ):
            return decode(call, spec, self.offer)
        at = int(length)
        header = call.body[:at]
        found = self._headers.find(header) if at else None
        if found is not None and len(call.body) - at == found[1].size:
            asked, plan = found
            data = np.frombuffer(call.body, DTYPES[plan.datatype], offset=at).reshape(plan.shape)
            windows = partial(inputs.windows, Tensor(plan.name, plan.datatype, data))
            users = None if plan.features_only else _same_user(asked.user_id)
            return Decoded(asked, windows, users, plan.encode, wanted=plan.wanted)
        decoded = decode(call, spec, self.offer)
        if at and decoded.tensor is not None:
            self._keep(header, len(call.body) - at, decoded, decoded.tensor)
        return decoded

    def _keep(self, header: bytes, size: int, decoded: Decoded, tensor: Tensor) -> None:
        dtype, shape = DTYPES.get(tensor.datatype), tensor.shape
        if dtype is not None and size == math.prod(shape) * dtype.itemsize:  # all that is behind the header is its data
            plan = _Plan(
                tensor.name, tensor.datatype, shape, size, decoded.users is None, decoded.encode, decoded.wanted
            )
            self._headers.keep(header, decoded.asked, plan)


def inflate_and_decode(call: Call, spec: InputSpec, offer: Offer, limit: int) -> Decoded:
    """Decode a body that may be compressed, within `limit` bytes; a pure function, for it runs on a thread."""
    coding = compression.coding_of(call.header(b"content-encoding"))
    if coding is not None:
        call.body = compression.decompress(call.body, coding, limit)
    return decode(call, spec, offer)


def decode(call: Call, spec: InputSpec, offer: Offer = OFFERS["classification"]) -> Decoded:
    """Decode a body; a pure function, for it may run on a thread."""
    if call.endpoint == "infer":
        return _decode_infer(call, spec, offer)
    kind = call.header(b"content-type") or ""
    data = parts.friendly(call.body, kind, spec) if spec.parts else inputs.friendly_data(call.body, kind, spec)
    media = None if isinstance(data, np.ndarray) else data
    windows = partial(inputs.friendly_windows, data) if isinstance(data, np.ndarray) else _unread
    if call.endpoint == "features":
        _only(call.query, ())
        npy = "application/x-npy" in (call.header(b"accept") or "")
        return Decoded(Parameters(), windows, None, lambda m, r, _: answers.features(npy, m, r), media=media)
    _only(call.query, PREDICT_PARAMETERS)
    asked = parameters.of_query(call.query)
    if asked.task is not None:
        output_answers.check_task(asked.task, offer)
    wanted: tuple[str, ...] = ()
    encode: Encode
    if offer.of:
        encode, wanted = output_answers.predicting(asked, offer)
    else:
        encode = partial(offer.predictions, offer.decided(asked) if asked.decides else None)
    return Decoded(asked, windows, lambda rows: [asked.user_id] * rows, encode, media=media, wanted=wanted)


def _unread(spec: InputSpec) -> NDArray[Any]:
    raise AssertionError("media are read into rows by the model's reader")


def _only(query: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse misspelt query parameters, which would answer with another head than was meant."""
    for name in query:
        if name not in known:
            raise InvalidRequest(
                f"unknown query parameter {name[:64]!r}; known are: {', '.join(sorted(known)) or 'none'}"
            )


def _decode_infer(call: Call, spec: InputSpec, offer: Offer) -> Decoded:
    message = oip.decode(call.body, call.header(b"inference-header-content-length"), call.query, spec)
    asked = message.parameters
    user_tensor = message.inputs.pop("user_id", None)
    if user_tensor is not None and asked.user_id is not None:
        raise InvalidRequest("the user is named twice: by the parameter user_id and by the tensor user_id")
    if len(message.inputs) != 1 and not spec.parts:
        raise InvalidRequest(f"one input tensor was expected, not {len(message.inputs)}")
    per_row = user_tensor is not None
    if asked.task is not None:
        output_answers.check_task(asked.task, offer)
    pick = output_answers.wanted_outputs if offer.of else answers.wanted
    outputs = pick(message, per_row, offer)
    users: Callable[[int], Sequence[str | None]] | None
    if len(outputs) == 1 and outputs[0].name == "features":
        users = None
    elif user_tensor is not None:
        users = partial(inputs.per_row_users, user_tensor)
    else:
        users = _same_user(asked.user_id)
    wanted: tuple[str, ...] = ()
    if offer.of:
        named_outputs = output_answers.named_in(outputs, offer)
        wanted = named_outputs if asked.task is not None or message.outputs is not None else ()
        decides = output_answers.decided(asked, named_outputs, offer)
        encode = partial(output_answers.inference, message.id, outputs, per_row, named_outputs, decides)
    else:
        decides = offer.decided(asked) if asked.decides else None
        encode = partial(answers.inference, message.id, outputs, per_row, decides)
    named: PerRow | None = None
    if user_tensor is not None and users is not None:
        named = PerRow(message.id, outputs, partial(inputs.per_row_users, user_tensor, len(user_tensor.data)))
    if spec.parts:
        return Decoded(asked, _unread, users, encode, media=Parts(message.inputs), per_row=named, wanted=wanted)
    (tensor,) = message.inputs.values()
    if spec.media is not None and tensor.datatype == "BYTES":
        media = inputs.encoded_items(tensor, spec)
        return Decoded(asked, _unread, users, encode, media=media, per_row=named, wanted=wanted)
    windows = partial(inputs.windows, tensor)
    return Decoded(asked, windows, users, encode, None if per_row else tensor, per_row=named, wanted=wanted)


def _same_user(user: str | None) -> Callable[[int], Sequence[str | None]]:
    return lambda rows: [user] * rows
