"""The adaptation request: windows without labels, as JSON or in the binary layout with `inputs` as one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from exporters.bundle import Manifest
from service.errors import InvalidRequest
from service.protocol.labelled import Read, digest_of, message_of, windows_of

FIELDS = ("inputs", "activate", "dry_run")
ACTIVATE = ("if_better", "never")


@dataclass(frozen=True, slots=True)
class AdaptationRequest:
    """Unlabelled windows and what to do with them.

    Attributes:
        x: windows `(n, …)`, in time order.
        activate: `if_better` leaves it to the guard; `never` only writes the version.
        digest: sha256 of the body, to tell a repeated call from another with the same key.
    """

    x: NDArray[Any]
    activate: str
    dry_run: bool
    digest: str


def decode(body: bytes, header_length: str | None, manifest: Manifest, read: Read) -> AdaptationRequest:
    """Decode and check an adaptation request; `read` makes rows of the media that the model reads.

    Raises:
        InvalidRequest: malformed, or of another shape or datatype.
        Unprocessable: values that are not finite.
    """
    message, binary = message_of(body, header_length, FIELDS)
    if "inputs" not in message:
        raise InvalidRequest("the body has no 'inputs'")
    activate, dry_run = message.get("activate", ACTIVATE[0]), message.get("dry_run", False)
    if activate not in ACTIVATE:
        raise InvalidRequest(f"activate is {activate!r}; it can be {', '.join(ACTIVATE)}")
    if not isinstance(dry_run, bool):
        raise InvalidRequest(f"dry_run must be of type bool, not {type(dry_run).__name__}")
    x = windows_of(message["inputs"], binary, manifest, read)
    return AdaptationRequest(x, activate, dry_run, digest_of(body))
