"""Parameters of an inference request and of its outputs: every known one, checked in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.data.views import MOST_VIEWS
from models.heads.confidence import LEVELS
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
        threshold: probability below which a row is rejected; None rejects none.
        coverage: of the set of labels that each row is to have; None for no sets.
        feedback: whether the answer is remembered for a while, so that it can be corrected.
        tta: views of each window whose mean answers; 1 for the window itself.
        task: output that answers, of a model with several; None for all.
    """

    user_id: str | None = None
    head_version: int | None = None
    fallback: str = "shared"
    timeout: float | None = None
    priority: int = 0
    binary_data_output: bool = False
    threshold: float | None = None
    coverage: float | None = None
    feedback: bool = False
    tta: int = 1
    task: str | None = None

    def of_user(self, user: str | None) -> Parameters:
        """Return the same for another user."""
        return Parameters(
            user,
            self.head_version,
            self.fallback,
            self.timeout,
            self.priority,
            self.binary_data_output,
            self.threshold,
            self.coverage,
            self.feedback,
            self.tta,
            self.task,
        )

    @property
    def decides(self) -> bool:
        """Whether the answer says more than labels and probabilities."""
        return self.threshold is not None or self.coverage is not None or self.feedback


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


def _threshold(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise InvalidRequest(f"{name} must be a probability from 0 to 1, not {value!r:.64}")
    return float(value)


def _coverage(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= LEVELS[-1]:
        raise InvalidRequest(f"{name} must be a share above 0 and at most {LEVELS[-1]}, not {value!r:.64}")
    return float(value)


def tta(name: str, value: Any) -> int:
    """Check how many views of a window are averaged.

    Raises:
        InvalidRequest: not a number of views that may be asked for.
    """
    if type(value) is not int or not 1 <= value <= MOST_VIEWS:
        raise InvalidRequest(f"{name} must be a number of views from 1 to {MOST_VIEWS}, not {value!r:.64}")
    return value


def _task(name: str, value: Any) -> str:
    if type(value) is not str:
        raise InvalidRequest(f"{name} must be the name of an output, not {value!r:.64}")
    return value


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
    "threshold": _threshold,
    "coverage": _coverage,
    "feedback": _boolean,
    "tta": tta,
    "task": _task,
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
    if found.feedback and found.user_id is None:
        raise InvalidRequest("feedback needs one user, named by the parameter user_id")
    return found


def of_query(query: Mapping[str, str]) -> Parameters:
    """Check parameters that come as a query string, as they do where the body is raw.

    Raises:
        InvalidRequest: as `of_request`.
    """
    return of_request({name: _parsed(name, text) for name, text in query.items()})


def _parsed(name: str, text: str) -> Any:
    check = _REQUEST.get(name)
    if check in (_integer, _timeout, tta):
        return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 else text
    if check in (_threshold, _coverage):
        return _number(text)
    if check is _boolean:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    return text


def _number(text: str) -> float | str:
    try:
        return float(text) if len(text) <= 32 else text
    except ValueError:
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
