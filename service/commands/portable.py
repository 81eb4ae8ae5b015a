"""`headway user` and `headway recalibrate`: files of users, and operations on a running service."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from service.client import Client
from service.commands.progress import steps

console = Console()
LISTED = 20


def export_user(url: str, model: str, user: str, out: Path) -> str:
    """Write a user's file, whole or not at all."""
    with Client(url) as client:
        content = client.request("GET", f"{client.user_path(model, user)}/export").content
    _write(out, content)
    return f"{len(content):,} bytes written to {out}"


def import_user(url: str, model: str, user: str, file: Path, replace: bool) -> str:
    """Restore a user and say what was restored."""
    with Client(url) as client:
        path = f"{client.user_path(model, user)}/import"
        found = client.request("POST", path, params={"replace": replace}, content=file.read_bytes()).json()
    outputs = found.get("outputs", {"": found})
    told = [
        f"{mark}: {said['versions']} versions, {said['statistics']} with statistics; active: {said['active']}"
        for mark, said in ((f"{user}, {name}" if name else user, said) for name, said in outputs.items())
    ]
    return "\n".join(told)


def export_onnx(url: str, model: str, user: str, out: Path, version: str, task: str | None = None) -> str:
    """Write a standalone model with a version of the user's head; of several outputs all, or the one that is named."""
    with Client(url) as client:
        path, which = client.user_path(model, user), {} if task is None else {"task": task}
        content = client.request("GET", f"{path}/versions/{quote(version)}/onnx", params=which).content
    _write(out, content)
    said = f"head version {version}" if version.isdecimal() else f"{version} head"
    return f"{said}: {len(content):,} bytes written to {out}"


def run_recalibration(
    url: str, model: str, from_version: int | None, *, dry_run: bool, wait: bool, task: str | None = None
) -> None:
    """Begin to move users, and show how far it is."""
    wanted = {"dry_run": dry_run, **({} if from_version is None else {"from_version": from_version})}
    with Client(url) as client:
        which = {} if task is None else {"task": task}
        url = f"/v2/models/{quote(model)}/users:recalibrate"
        begun = client.request("POST", url, params=which, json=wanted).json()
        path = f"/v2/operations/{begun['operation']}"
        console.print(f"operation {begun['operation']}: {begun['progress']['total']} users", highlight=False)
        if not wait:
            return
        found = _followed(client, path, begun)
        counts = found["progress"]
        console.print(
            f"{found['state']}: {counts['moved']} {'would be moved' if dry_run else 'moved'}, "
            f"{counts['needs_enrolment']} need to enrol anew, {counts['failed']} failed {found['message']}".rstrip(),
            highlight=False,
            soft_wrap=True,
        )
        for outcome in ("needs_enrolment", "failed"):
            listed = client.request("GET", f"{path}/users", params={"outcome": outcome, "page_size": LISTED}).json()
            for each in listed["users"]:
                console.print(f"  {each['user']}: {each['reason']}", highlight=False, markup=False)
            if "next_page_token" in listed:
                console.print(f"  … and more: GET {path}/users?outcome={outcome}", highlight=False)


def _followed(client: Client, path: str, found: dict[str, Any]) -> dict[str, Any]:
    with steps("users", console) as step:
        while found["state"] == "running":
            time.sleep(0.2)
            found = client.request("GET", path).json()
            step(found["message"], found["progress"]["done"], found["progress"]["total"])
    return found


def _write(out: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(out)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
