"""Keys: who may call which plane. The file holds digests, so that reading it lets nobody in.

```toml
[gateway]
sha256 = "9f86d0…"
planes = ["data"]
```
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import Forbidden, HeadwayError, Unauthorized

log = logging.getLogger("headway")

PLANES = ("data", "control", "metrics")
PREFIX = "hw_"
SECONDS_BETWEEN_LOOKS = 2.0
"""A file that was changed is read again within this time."""

Plane = Literal["data", "control", "metrics"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class KeysError(ValueError):
    """The file of keys cannot be used; the message says why."""


class Key(BaseModel):
    """What the file says of one key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    planes: frozenset[Plane] = Field(min_length=1)


_FILE = TypeAdapter(dict[Name, Key])


def read(file: Path) -> dict[str, Key]:
    """Read a file of keys.

    Raises:
        KeysError: it is not there, not TOML, or says what it cannot.
    """
    try:
        found = _FILE.validate_python(tomllib.loads(file.read_text()))
    except OSError as e:
        raise KeysError(f"the file of keys {file} cannot be read: {e.strerror}") from e
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise KeysError(f"the file of keys {file} is not TOML: {e}") from e
    except ValidationError as e:
        first = e.errors()[0]
        raise KeysError(f"the file of keys {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    digests = [key.sha256 for key in found.values()]
    if len(set(digests)) < len(digests):
        raise KeysError(f"the file of keys {file} holds one key under two names")
    return found


def write(file: Path, keys: dict[str, Key]) -> None:
    """Write a file of keys, whole or not at all, for its owner only."""
    lines = [
        f'[{name}]\nsha256 = "{key.sha256}"\nplanes = [{", ".join(f"{p!r}" for p in PLANES if p in key.planes)}]\n'
        for name, key in keys.items()
    ]
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w") as f:
            f.write("\n".join(lines).replace("'", '"'))
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def add(file: Path, name: str, planes: Sequence[str]) -> str:
    """Make a key, write its digest into the file (which is made if it is not there), and return it: it is said once.

    Raises:
        KeysError: the name is taken or cannot be one, or there is no such plane.
    """
    keys = read(file) if file.exists() else {}
    if name in keys:
        raise KeysError(f"there is a key {name!r} in {file} already; remove it first, or choose another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        made = _FILE.validate_python({name: {"sha256": digest(secret.encode()), "planes": list(planes)}})
    except ValidationError as e:
        raise KeysError(
            f"a key needs a name of letters, digits, '.', '_' and '-', and planes out of {', '.join(PLANES)}; "
            f"got {name!r} and {', '.join(planes) or 'none'}"
        ) from e
    write(file, {**keys, **made})
    return secret


def remove(file: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        KeysError: there is none of that name.
    """
    keys = read(file)
    if name not in keys:
        raise KeysError(f"there is no key {name!r} in {file}; there are {', '.join(keys) or 'none'}")
    write(file, {other: key for other, key in keys.items() if other != name})


def digest(key: bytes) -> str:
    """Return what the file says of a key."""
    return hashlib.sha256(key).hexdigest()


class Keyring:
    """The keys of a running service; the file is read again when it changes.

    Raises:
        KeysError: the file cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = self._stat()
        self._names = self._by_digest(read(file))
        self._look = time.monotonic() + SECONDS_BETWEEN_LOOKS

    def check(self, authorization: bytes | None, plane: str) -> str:
        """Return the name of the key in an `Authorization` header.

        Raises:
            Unauthorized: no key, or one that is not known.
            Forbidden: a key of another plane.
        """
        if time.monotonic() >= self._look:
            self._refresh()
        scheme, _, given = (authorization or b"").strip().partition(b" ")
        if not given or scheme.lower() != b"bearer":
            raise Unauthorized("this needs a key: send the header 'Authorization: Bearer KEY'")
        name, planes = self._names.get(digest(given.strip()), ("", frozenset()))
        if not name:
            raise Unauthorized("the key is not known here; it may have been removed")
        if plane not in planes:
            raise Forbidden(f"key {name!r} is for {' and '.join(sorted(planes))}; this needs one for {plane}")
        return name

    def allows(self, authorization: bytes | None, plane: str) -> bool:
        """Whether `check` would return."""
        try:
            self.check(authorization, plane)
        except HeadwayError:
            return False
        return True

    def _refresh(self) -> None:
        """Read a file that was changed; one that cannot be used leaves the keys as they are."""
        self._look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._names = self._by_digest(read(self._file))
        except KeysError as e:
            log.error("the keys stay as they were: %s", e)
        else:
            log.info("keys read again: %d", len(self._names))

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = self._file.stat()
        except OSError:
            return 0, 0, 0
        return found.st_mtime_ns, found.st_ino, found.st_size

    @staticmethod
    def _by_digest(keys: dict[str, Key]) -> dict[str, tuple[str, frozenset[Plane]]]:
        return {key.sha256: (name, key.planes) for name, key in keys.items()}
