"""`headway predict` of images, sounds and texts: what a running service answers to files as they are."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.table import Table

from service.client import Client, ServiceError

console = Console()
RECORDINGS = ".npz"


def is_media(files: Sequence[str], texts: Sequence[str]) -> bool:
    """Whether a prediction is of media, and not of one file of recordings."""
    return bool(texts) or len(files) != 1 or Path(files[0]).suffix.lower() != RECORDINGS


def run_media_prediction(
    url: str, model: str, files: Sequence[str], texts: Sequence[str], user: str | None, task: str | None
) -> None:
    """Send a file or a text, or one for each part of a fused model, and print what it is taken for.

    Raises:
        ValueError: nothing, or parts that the model does not have.
        ServiceError: the service refuses.
    """
    with Client(url) as client:
        names = [entry["name"] for entry in client.metadata(model)["inputs"]]
        query = {**({} if user is None else {"user_id": user}), **({} if task is None else {"task": task})}
        answer = client.request(
            "POST", f"/v2/models/{quote(model)}/predict", params=query, json={"inputs": _inputs(names, files, texts)}
        ).json()
    for row in answer["predictions"]:
        told = row.get("outputs", {}).get(task, row) if task is not None else row
        if "probabilities" not in told:
            raise ServiceError(f"model {model!r} answers {told}; this command prints labels")
        table = Table("label", "probability")
        for label, probability in sorted(told["probabilities"].items(), key=lambda pair: -pair[1])[:5]:
            table.add_row(label, f"{probability:.1%}")
        console.print(table)


def _inputs(names: Sequence[str], files: Sequence[str], texts: Sequence[str]) -> Any:
    """What goes into a request: of a model of several inputs an object by their names."""
    given: dict[str, Any] = {}
    for value, is_file in [*((f, True) for f in files), *((t, False) for t in texts)]:
        name, equals, rest = value.partition("=")
        named = bool(equals) and name in names
        if len(names) > 1 and not named:
            raise ValueError(
                f"{value!r} does not say which input it is; the model takes {', '.join(names)}: NAME=VALUE"
            )
        key = name if named else names[0]
        if key in given:
            raise ValueError(f"input {key!r} is given twice")
        content = rest if named else value
        given[key] = _file(content) if is_file else content
    if not given:
        raise ValueError("nothing is given: --file PATH or --text TEXT, of several inputs NAME=PATH and NAME=TEXT")
    return given if len(names) > 1 else given[names[0]]


def _file(path: str) -> Any:
    """A file in base64; a window of numbers (.npy) as nested lists."""
    try:
        if path.endswith(".npy"):
            return np.load(path, allow_pickle=False).tolist()
        return base64.b64encode(Path(path).read_bytes()).decode()
    except (OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read: {e}") from e
