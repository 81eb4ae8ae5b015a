"""What `headway serve` says when it answers: where, and three lines to try."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from exporters import bundle as bundles
from exporters.bundle import Manifest

BEGIN = "import json"
MEDIA_TYPES = {"image": "image/jpeg", "audio": "audio/wav", "text": "text/plain"}
ITEMS = {"image": "photo.jpg", "audio": "clip.wav"}
FOLDERS = {"image": "photos", "audio": "clips"}


def welcome(base: str, metrics_url: str, models: Path, names: Sequence[str], *, keys: bool = False) -> str:
    """Text with the URLs and three `curl` lines: predict, calibrate, predict again as that user.

    The bodies are made by a line of Python each, so that they can be copied as they are; for images and sounds of the
    user's own files. With `keys` the lines send the key in the environment.
    """
    name = names[0]
    manifest = bundles.read_manifest(bundles.resolve(models / name))[0]
    where = f"headway serves {', '.join(names)} at {base}   (docs: {base}/docs, metrics: {metrics_url})"
    tried = _of_media(manifest) or _of_windows(manifest)
    if tried is None:
        return f"{where}\n\nWhat {name} takes: curl -s {base}/v2/models/{name}\n"
    told, one, content_type, many = tried
    task = f"?task={manifest.output}" if manifest.outputs else ""
    bearer = '-H "authorization: Bearer $HEADWAY_KEY" ' if keys else ""
    url = f"{base}/v2/models/{name}"

    def post(body: str, media_type: str, to: str) -> str:
        given, data = ("", body) if body.startswith("@") else (f"{body} | ", "@-")
        return f"{given}curl -s -w '\\n' {bearer}-H 'content-type: {media_type}' --data-binary {data} {to}"

    return "\n".join(
        [
            where,
            "",
            f"Try it from another terminal{', with HEADWAY_KEY set to a key for data and control' if keys else ''}, "
            f"with {told}; the third answer is by ana's own head:",
            "",
            post(one, content_type, f"{url}/predict"),
            post(many, "application/json", f"{url}/users/ana/calibrations{task}"),
            post(one, content_type, f"'{url}/predict?user_id=ana'"),
            "",
        ]
    )


def _of_media(manifest: Manifest) -> tuple[str, str, str, str] | None:
    """What to try a model of images, sounds or texts with: what it is, one item, its media type, labelled ones."""
    media = manifest.input.media
    if media is None or manifest.targets:
        return None
    if media.kind == "text":
        labels, k = list(manifest.labels), len(manifest.labels)
        # Texts that name their label: nothing real, but told apart after one calibration.
        many = (
            f"L={labels!r}; N=range({6 * k}); "
            f"print(json.dumps({{'inputs': [f'this is {{L[n%{k}]}}, {{n}}' for n in N], "
            f"'labels': [L[n%{k}] for n in N], 'repetitions': [n//{3 * k} for n in N]}}))"
        )
        one = f"echo {shlex.quote(f'this is {manifest.labels[0]}')}"
        return "made-up texts", one, "text/plain", _python(f"{BEGIN}; {many}")
    folder = FOLDERS[media.kind]
    many = (
        f"{BEGIN}; from base64 import b64encode as e; from pathlib import Path; "
        f"F=sorted(Path('{folder}').glob('*/*')); "
        "print(json.dumps({'inputs': [e(f.read_bytes()).decode() for f in F], 'labels': [f.parent.name for f in F], "
        "'repetitions': [n%2 for n in range(len(F))]}))"
    )
    item = ITEMS[media.kind]
    told = f"{item} and {folder}/LABEL/* of yours, LABEL being one of {', '.join(manifest.labels)}"
    return told, f"@{item}", MEDIA_TYPES[media.kind], _python(many)


def _of_windows(manifest: Manifest) -> tuple[str, str, str, str] | None:
    """The same of a model of signals; None where nothing that a line could make up would mean anything."""
    shape = manifest.input.window_shape
    # Images are too long for a line to copy, and nothing shakes like the targets of a regression.
    if len(shape) != 2 or -1 in shape or manifest.input.datatype != "FP32" or manifest.targets:
        return None
    labels = list(manifest.labels)
    k, channels = len(labels), shape[0]
    # Each label shakes a channel of its own more than the others: nothing real, but told apart after one calibration.
    value = f"g(0, 40 if c==i%{channels} else 5)"
    window = f"[[{value} for _ in range({shape[1]})] for c in range({channels})]"
    begin = f"{BEGIN}; from random import gauss as g;"
    one = f"{begin} i=2; print(json.dumps({{'inputs': {window}}}))"
    many = (
        f"{begin} L={labels!r}; N=range({6 * k}); print(json.dumps({{'inputs': [{window} for i in [n%{k} for n in N]], "
        f"'labels': [L[n%{k}] for n in N], 'repetitions': [n//{3 * k} for n in N]}}))"
    )
    return "made-up windows", _python(one), "application/json", _python(many)


def _python(code: str) -> str:
    """A line of Python for a shell."""
    for special in ("\\", '"', "$", "`"):
        code = code.replace(special, f"\\{special}")
    return f'python3 -c "{code}"'
