"""A user as one file: a zip of stored entries, whose index names the digest of every other entry. The same user gives
the same bytes.

```
user.json                       format, feature space, labels, pointers, settings, versions, digests
versions/000001/head.safetensors
versions/000001/statistics.safetensors     of those versions that have statistics still
versions/000001/report.json
```
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import InvalidRequest, Unprocessable

FORMAT = "headway-user-1"
INDEX = "user.json"
MOST_VERSIONS = 100_000
_LONG_AGO = (1980, 1, 1, 0, 0, 0)

Digest = Field(pattern=r"^[0-9a-f]{64}$")
Number = Field(ge=0, le=2**53)
Moment = Field(ge=0, lt=253402300800, allow_inf_nan=False, description="Unix seconds, up to the year 9999")


class StoredVersion(BaseModel):
    """A version in the index; digests are of its entries."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(ge=1, le=2**53)
    calibration_id: str = Field(max_length=64)
    created: float = Moment
    head: str = Digest
    statistics: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    report: str = Digest


class Activation(BaseModel):
    """A time at which a version (0: the shared head) began to be served."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Number
    at: float = Moment


class Index(BaseModel):
    """What a user's file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    user: str = Field(min_length=1, max_length=256)
    model: str
    model_version: int
    feature_space: str
    labels: tuple[str, ...]
    own_labels: tuple[str, ...] = Field((), max_length=256)
    active: int = Number
    base: int = Number
    last: int = Number
    created: float = Moment
    updated: float = Moment
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: tuple[StoredVersion, ...] = Field(max_length=MOST_VERSIONS)
    activations: tuple[Activation, ...] = Field(max_length=MOST_VERSIONS)


@dataclass(frozen=True, slots=True)
class Contents:
    """Bytes of a version: its head, its statistics if it has them, its report."""

    head: bytes
    statistics: bytes | None
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UserFile:
    """A user as they were: the index, and the contents of each version by its number."""

    index: Index
    contents: dict[int, Contents] = field(default_factory=dict)


def digest(data: bytes) -> str:
    """Sha256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def report_bytes(report: dict[str, Any]) -> bytes:
    """A report as the file holds it."""
    return json.dumps(report, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def write(file: UserFile) -> bytes:
    """Write a user's file."""
    return zipped(entries(file))


def entries(file: UserFile) -> dict[str, bytes]:
    """Return what stands in a user's file, by the names of its entries."""
    found = {INDEX: (file.index.model_dump_json(indent=1) + "\n").encode()}
    for number, content in sorted(file.contents.items()):
        found[_entry(number, "head.safetensors")] = content.head
        if content.statistics is not None:
            found[_entry(number, "statistics.safetensors")] = content.statistics
        found[_entry(number, "report.json")] = report_bytes(content.report)
    return found


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """Write a zip of stored entries that carry no trace of when and where they were written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    return buffer.getvalue()


def read(body: bytes) -> UserFile:
    """Read and verify a user's file.

    Raises:
        InvalidRequest: not such a file.
        Unprocessable: damaged: an entry is missing, of another digest, or the index contradicts itself.
    """
    return read_entries(unzipped(body))


def read_entries(data: dict[str, bytes]) -> UserFile:
    """Verify what stands in a user's file, by the names of its entries; raises as `read`."""
    index = _index(data.pop(INDEX, None))
    contents = {}
    for v in index.versions:
        report = _verified(data, v.version, "report.json", v.report)
        head = _verified(data, v.version, "head.safetensors", v.head)
        stats = None if v.statistics is None else _verified(data, v.version, "statistics.safetensors", v.statistics)
        contents[v.version] = Contents(head, stats, _object(report, v.version))
    if data:
        raise Unprocessable(f"the file holds {sorted(data)[0]!r}, which its index does not name")
    return UserFile(index, contents)


def unzipped(body: bytes) -> dict[str, bytes]:
    """Read a zip's entries, which must be stored, not compressed, and no larger together than it: nothing inflates.

    Raises:
        InvalidRequest: not such a file.
        Unprocessable: damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            listed = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in listed):
                raise InvalidRequest("a user's file holds stored entries only, neither compressed nor encrypted")
            if sum(e.file_size for e in listed) > len(body) or len({e.filename for e in listed}) != len(listed):
                raise InvalidRequest("the entries overlap, or are named twice: not a file that Headway wrote")
            return {e.filename: archive.read(e) for e in listed}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as e:
        raise Unprocessable(f"a user's file is damaged, or none: {e}") from e


def _entry(number: int, name: str) -> str:
    return f"versions/{number:06d}/{name}"


def _index(data: bytes | None) -> Index:
    if data is None:
        raise InvalidRequest(f"a user's file holds {INDEX}; this one does not")
    try:
        index = Index.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        raise Unprocessable(f"{INDEX}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    if index.format != FORMAT:
        raise Unprocessable(f"the file is of format {index.format[:64]!r}; this Headway reads {FORMAT!r}")
    numbers = [v.version for v in index.versions]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > index.last):
        raise Unprocessable(f"{INDEX}: versions must ascend up to the last, {index.last}")
    known = {0, *numbers}
    if index.active not in known:
        raise Unprocessable(f"{INDEX}: version {index.active} is active and not in the file")
    return index


def _verified(data: dict[str, bytes], number: int, name: str, wanted: str) -> bytes:
    entry = _entry(number, name)
    content = data.pop(entry, None)
    if content is None:
        raise Unprocessable(f"the file is damaged: {entry} is missing")
    if digest(content) != wanted:
        raise Unprocessable(f"the file is damaged: {entry} has the digest {digest(content)}, the index says {wanted}")
    return content


def _object(report: bytes, number: int) -> dict[str, Any]:
    try:
        value = orjson.loads(report)
        orjson.dumps(value)  # it may be nested deeper than can be written again
    except (ValueError, TypeError) as e:
        raise Unprocessable(f"the report of version {number} is not JSON: {e}") from e
    kinds = {"outcome": str, "method": str, "metrics": dict, "classes": dict}
    regression: dict[str, Any] = {"classes": {}}  # which has none
    if not isinstance(value, dict) or not all(
        isinstance({**regression, **value}.get(name), kind) for name, kind in kinds.items()
    ):
        raise Unprocessable(f"the report of version {number} must be an object with {', '.join(kinds)}")
    if type(value.get("anchor", 1)) is not int or not 1 <= value.get("anchor", 1) <= number:
        raise Unprocessable(f"the report of version {number} names an anchor that is no version before it")
    return value
