"""Labelled windows in a request: JSON, or the binary layout with `inputs` as one tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import Manifest
from service.errors import InvalidRequest
from service.protocol import inputs, oip, parameters
from service.protocol.media import Items, is_encoded, items_of
from service.protocol.parts import Parts, of_json

Read = Callable[[Items | Parts], NDArray[Any]]
LABELLED_FIELDS = ("inputs", "labels", "repetitions", "tta")
TARGETED_FIELDS = ("inputs", "targets", "repetitions", "tta")


@dataclass(frozen=True, slots=True)
class Labelled:
    """Windows, their labels and where they are from.

    Attributes:
        x: windows `(n, …)`, in time order.
        y: class indices `(n,)`; of a regression all 0.
        repetition: repetition ids `(n,)`.
        own: labels that the bundle does not know, to which the indices from its number of labels on belong.
        tta: views of each window whose features are averaged.
        targets: of a regression `(n, T)`.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    repetition: NDArray[np.int64]
    own: tuple[str, ...] = ()
    tta: int = 1
    targets: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.y)


def message_of(body: bytes, header_length: str | None, fields: Collection[str]) -> tuple[dict[str, Any], memoryview]:
    """Read the JSON part of a body and the binary data behind it.

    Raises:
        InvalidRequest: malformed, or a field that is not one of `fields`.
    """
    message, binary = oip.split(body, header_length)
    unknown = sorted(set(message) - set(fields))
    if "labels" in unknown and "targets" in fields:
        raise InvalidRequest("this model is a regression: give 'targets', one row of numbers a window, not 'labels'")
    if "targets" in unknown and "labels" in fields:
        raise InvalidRequest("this model is a classification: give 'labels', one a window, not 'targets'")
    if unknown:
        raise InvalidRequest(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(fields))}")
    return message, binary


def labelled(
    message: dict[str, Any], binary: memoryview, manifest: Manifest, read: Read, *, finite: bool = True
) -> Labelled:
    """Check the windows of a request.

    Args:
        message: the JSON part.
        binary: the data behind it.
        manifest: of the model.
        read: makes rows of the encoded media that the model reads.
        finite: whether values that are not finite are refused, not only windows of another shape or datatype.

    Raises:
        InvalidRequest: something is missing, or of another shape or datatype.
        Unprocessable: unknown labels, or values that the model cannot take.
    """
    for required in ("inputs", "labels"):
        if required not in message:
            raise InvalidRequest(f"the body has no {required!r}")
    x = windows_of(message["inputs"], binary, manifest, read, finite=finite)
    y, own = inputs.class_indices(message["labels"], len(x), manifest.labels, manifest.user_labels)
    views = parameters.tta("tta", message.get("tta", 1))
    return Labelled(x, y, inputs.repetition_ids(message.get("repetitions"), len(x)), own, views)


def targeted(message: dict[str, Any], binary: memoryview, manifest: Manifest, read: Read) -> Labelled:
    """Check the windows of a request and what a regression should have said of them.

    `targets` are nested lists, or one tensor, whose binary data is then behind that of `inputs`.

    Raises:
        InvalidRequest: something is missing, or of another shape or datatype.
        Unprocessable: values that the model cannot take.
    """
    for required in ("inputs", "targets"):
        if required not in message:
            raise InvalidRequest(f"the body has no {required!r}")
    given = message["targets"]
    if _is_tensors(given):
        behind = _binary_size(given[0])
        if behind > len(binary):
            raise InvalidRequest(
                f"binary_data_size {behind} of targets is not within the {len(binary)} bytes of binary data"
            )
        binary, rest = binary[: len(binary) - behind], binary[len(binary) - behind :]
        tensors = oip.tensors(given, rest)
        if len(tensors) != 1:
            raise InvalidRequest("targets must be one tensor")
        given = next(iter(tensors.values())).data
    x = windows_of(message["inputs"], binary, manifest, read)
    targets = inputs.target_rows(given, len(x), [target.name for target in manifest.targets])
    repetition = inputs.repetition_ids(message.get("repetitions"), len(x))
    views = parameters.tta("tta", message.get("tta", 1))
    return Labelled(x, np.zeros(len(x), np.int64), repetition, tta=views, targets=targets)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _binary_size(entry: dict[str, Any]) -> int:
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    return size if type(size) is int and size > 0 else 0


def windows_of(value: Any, binary: memoryview, manifest: Manifest, read: Read, *, finite: bool = True) -> NDArray[Any]:
    """Read `inputs`: one tensor as the Open Inference Protocol has it, a nested array, or texts and files.

    Of a fused model a tensor a part, or an object of arrays, texts and files by the part's name.

    Raises:
        InvalidRequest, Unprocessable: as `labelled`.
    """
    if _is_tensors(value):
        tensors = oip.tensors(value, binary)
        if manifest.input.parts:
            return read(Parts(tensors, finite))
        if len(tensors) != 1:
            raise InvalidRequest("inputs must be one tensor")
        (tensor,) = tensors.values()
        if manifest.input.media is not None and tensor.datatype == "BYTES":
            return read(inputs.encoded_items(tensor, manifest.input))
        return inputs.windows(tensor, manifest.input, finite=finite)
    if len(binary):
        raise InvalidRequest("there is binary data, but inputs is not a tensor with binary_data_size")
    if manifest.input.parts:
        return read(of_json(value, manifest.input, finite=finite))
    if is_encoded(value, manifest.input):
        return read(items_of(value, manifest.input))
    return inputs.checked(inputs.nested(value), manifest.input, finite=finite)


def digest_of(body: bytes) -> str:
    """Return the sha256 of a body, to tell a repeated call from another with the same Idempotency-Key."""
    return hashlib.sha256(body).hexdigest()
