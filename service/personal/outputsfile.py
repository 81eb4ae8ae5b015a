"""A user of a model with several outputs as one file: a zip of what `userfile` writes of each output, under its name.

```
outputs.json                                  format, user, model, and the digest of each part's index
angles/user.json, angles/versions/000001/…    of those outputs in which the user is known
gesture@1/user.json, …                        of the feature space that version 1 of the model has an output in
```

A part with a version is of a feature space that the version exported has no more: heads of users who are not moved yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from exporters.bundle_outputs import MOST_OUTPUTS, OUTPUT_PATTERN
from service.errors import InvalidRequest, Unprocessable
from service.personal import userfile
from service.personal.userfile import UserFile

FORMAT = "headway-user-outputs-1"
INDEX = "outputs.json"

MARK = "@"
"""Stands between an output and the version of a model."""
MOST_PARTS = 64 * MOST_OUTPUTS

Name = Annotated[str, Field(pattern=OUTPUT_PATTERN[:-1] + rf"({MARK}[0-9]{{1,18}})?$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Index(BaseModel):
    """Which parts a file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    user: str = Field(min_length=1, max_length=256)
    model: str
    outputs: dict[Name, Digest] = Field(min_length=1, max_length=MOST_PARTS)


def write(user: str, model: str, files: Mapping[str, UserFile]) -> bytes:
    """Write the files of a user's outputs, by the names of the parts, into one; the same user gives the same bytes."""
    parts = {name: userfile.entries(file) for name, file in files.items()}
    digests = {name: userfile.digest(part[userfile.INDEX]) for name, part in parts.items()}
    index = Index(user=user, model=model, outputs=digests)
    found = {INDEX: (index.model_dump_json(indent=1) + "\n").encode()}
    for name, part in parts.items():
        found |= {f"{name}/{entry}": data for entry, data in part.items()}
    return userfile.zipped(found)


def read(body: bytes) -> dict[str, UserFile]:
    """Read and verify the file of each part, by its name.

    Raises:
        InvalidRequest: not such a file.
        Unprocessable: damaged: an entry is missing, of another digest, or not named.
    """
    data = userfile.unzipped(body)
    if INDEX not in data:
        raise InvalidRequest(
            f"a user's file of several outputs holds {INDEX}; this one does not: name the output that it is of by task"
        )
    try:
        index = Index.model_validate_json(data.pop(INDEX))
    except ValidationError as e:
        first = e.errors()[0]
        raise Unprocessable(f"{INDEX}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e
    if index.format != FORMAT:
        raise Unprocessable(f"the file is of format {index.format[:64]!r}; this Headway reads {FORMAT!r}")
    parts: dict[str, dict[str, bytes]] = {name: {} for name in index.outputs}
    for entry, content in data.items():
        name, _, rest = entry.partition("/")
        if name not in parts:
            raise Unprocessable(f"the file holds {entry!r}, which {INDEX} does not name")
        parts[name][rest] = content
    for name, wanted in index.outputs.items():
        if userfile.digest(parts[name].get(userfile.INDEX, b"")) != wanted:
            raise Unprocessable(f"the file is damaged: {name}/{userfile.INDEX} is missing, or of another digest")
    return {name: userfile.read_entries(part) for name, part in parts.items()}
