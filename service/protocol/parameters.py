"""Parameters of an inference request and of its outputs: every known one, checked in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import InvalidRequest
from service.protocol.inputs import user_id

FALLBACKS = ("shared", "error")
INTEGERS_BELOW = 2**62


@dataclass(slots=True)
class Parameters:
    """What a request asks for besides tensors. Not frozen, for one is made a request and freezing costs as much again.

    Attributes:
        user_id: whose head answers; None for the shared one.
        head_version: version of it that must answer; None for the active one.
        fallback: for a user without a head: `shared`, or `error` (404).
        timeout: s until the request is of no use; None for never.
        priority: 0 for the default; as in Triton, 1 is the highest and larger numbers come later.
        binary_data_output: whether outputs are binary where they do not say.
    """

    user_id: str | None = None
    head_version: int | None = None
    fallback: str = "shared"
    timeout: float | None = None
    priority: int = 0
    binary_data_output: bool = False

    def of_user(self, user: str | None) -> Parameters:
        """Return the same for another user."""
        return Parameters(user, self.head_version, self.fallback, self.timeout, self.priority, self.binary_data_output)


def _integer(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < INTEGERS_BELOW:
        raise InvalidRequest(f"{name} must be an integer from 0 to 2^62, not {value!r:.64}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidRequest(f"{name} must be true or false, not {value!r:.64}")
    return value


def _user(name: str, value: Any) -> str:
    return user_id(value)


def _fallback(name: str, value: Any) -> str:
    if value not in FALLBACKS:
        raise InvalidRequest(f"fallback is {value!r:.64}; it can be {' or '.join(FALLBACKS)}")
    return str(value)


def _timeout(name: str, value: Any) -> float | None:
    return _integer(name, value) / 1e6 or None


def _classes(name: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value < INTEGERS_BELOW:
        raise InvalidRequest(
            f"classification must be how many of the top classes to name, 1 or more, not {value!r:.64}"
        )
    return value


_REQUEST: dict[str, Callable[[str, Any], Any]] = {
    "user_id": _user,
    "head_version": _integer,
    "fallback": _fallback,
    "timeout": _timeout,
    "priority": _integer,
    "binary_data_output": _boolean,
}
_OUTPUT: dict[str, Callable[[str, Any], Any]] = {"binary_data": _boolean, "classification": _classes}

KNOWN = tuple(_REQUEST)
KNOWN_OF_OUTPUTS = tuple(_OUTPUT)


def of_request(given: Any) -> Parameters:
    """Check the `parameters` of a request; null stands for not given.

    Raises:
        InvalidRequest: not an object, or a parameter that is unknown or not what it can be.
    """
    found = Parameters()
    if given is None:
        return found
    if not isinstance(given, dict):
        raise InvalidRequest("parameters must be an object")
    for name, value in given.items():
        check = _REQUEST.get(name)
        if check is None:
            raise InvalidRequest(f"unknown parameter {name[:64]!r}; known are {', '.join(sorted(KNOWN))}")
        if value is not None:
            setattr(found, name, check(name, value))
    return found


def of_query(query: Mapping[str, str]) -> Parameters:
    """Check parameters that come as a query string, as they do where the body is raw.

    Raises:
        InvalidRequest: as `of_request`.
    """
    return of_request({name: _parsed(name, text) for name, text in query.items()})


def _parsed(name: str, text: str) -> Any:
    check = _REQUEST.get(name)
    if check in (_integer, _timeout):
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 else text
    if check is _boolean:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return text


def of_output(name: str, given: Any, binary: bool) -> tuple[bool, int]:
    """Check the `parameters` of an output asked for: whether it is binary (by default `binary`), and its top classes.

    Raises:
        InvalidRequest: not an object, or a parameter that is unknown or not what it can be.
    """
    if given is None:
        return binary, 0
    if not isinstance(given, dict):
        raise InvalidRequest(f"the parameters of output {name[:64]!r} must be an object")
    top = 0
    for key, value in given.items():
        check = _OUTPUT.get(key)
        if check is None:
            raise InvalidRequest(
                f"unknown parameter {key[:64]!r} of output {name[:64]!r}; known are {', '.join(sorted(_OUTPUT))}"
            )
        if key == "binary_data":
            binary = check(key, value)
        else:
            top = check(key, value)
    return binary, top
