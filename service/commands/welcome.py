"""What `headway serve` says when it answers: where, and three lines to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporters import bundle as bundles


def welcome(base: str, metrics_url: str, models: Path, names: Sequence[str]) -> str:
    """Text with the URLs and three `curl` lines: predict, calibrate, predict again as that user.

    The bodies are made by a line of Python each, so that they can be copied as they are.
    """
    name = names[0]
    manifest = bundles.read_manifest(bundles.resolve(models / name))[0]
    shape = manifest.input.window_shape
    labels = list(manifest.labels)
    rows = 2 * len(labels)
    noise = f"__import__('random').gauss(0, 1+i%{len(labels)})"
    window = _nested(shape, noise)
    one = f"python3 -c \"import json; i=0; print(json.dumps({{'inputs': {window}}}))\""
    many = (
        f'python3 -c "import json; L={labels!r}; '
        f"print(json.dumps({{'inputs': [{window} for i in range({rows})], "
        f"'labels': [L[i%{len(labels)}] for i in range({rows})], "
        f"'repetitions': [i//{len(labels)} for i in range({rows})]}}))\""
    )
    json_header = "-H 'content-type: application/json' -d @-"
    return "\n".join(
        [
            f"headway serves {', '.join(names)} at {base}   (docs: {base}/docs, metrics: {metrics_url})",
            "",
            "Try it from another terminal (random windows: your own go in their place):",
            "",
            f"{one} | curl -s {json_header} {base}/v2/models/{name}/predict",
            f"{many} | curl -s {json_header} {base}/v2/models/{name}/users/ana/calibrations",
            f"{one} | curl -s {json_header} '{base}/v2/models/{name}/predict?user_id=ana'",
            "",
        ]
    )


def _nested(shape: Sequence[int], value: str) -> str:
    for size in reversed(shape):
        value = f"[{value} for _ in range({size})]"
    return value
