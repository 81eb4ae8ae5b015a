"""What `headway serve` says when it answers: where, and three lines to try."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporters import bundle as bundles


def welcome(base: str, metrics_url: str, models: Path, names: Sequence[str], *, keys: bool = False) -> str:
    """Text with the URLs and three `curl` lines: predict, calibrate, predict again as that user.

    The bodies are made by a line of Python each, so that they can be copied as they are. With `keys` the lines send the
    one in the environment.
    """
    name = names[0]
    manifest = bundles.read_manifest(bundles.resolve(models / name))[0]
    shape = manifest.input.window_shape
    where = f"headway serves {', '.join(names)} at {base}   (docs: {base}/docs, metrics: {metrics_url})"
    # Images are too long for a line to copy, and nothing shakes like the targets of a regression.
    if len(shape) != 2 or -1 in shape or manifest.input.datatype != "FP32" or manifest.targets:
        return f"{where}\n\nWhat {name} takes: curl -s {base}/v2/models/{name}\n"
    labels = list(manifest.labels)
    k, channels = len(labels), shape[0]
    # Each label shakes a channel of its own more than the others: nothing real, but told apart after one calibration.
    value = f"g(0, 40 if c==i%{channels} else 5)"
    window = f"[[{value} for _ in range({shape[1]})] for c in range({channels})]"
    begin = 'python3 -c "import json; from random import gauss as g;'
    one = f"{begin} i=2; print(json.dumps({{'inputs': {window}}}))\""
    many = (
        f"{begin} L={labels!r}; N=range({6 * k}); print(json.dumps({{'inputs': [{window} for i in [n%{k} for n in N]], "
        f"'labels': [L[n%{k}] for n in N], 'repetitions': [n//{3 * k} for n in N]}}))\""
    )
    task = f"?task={manifest.output}" if manifest.outputs else ""
    bearer = '-H "authorization: Bearer $HEADWAY_KEY" ' if keys else ""
    json_header = f"-w '\\n' {bearer}-H 'content-type: application/json' -d @-"
    return "\n".join(
        [
            where,
            "",
            f"Try it from another terminal{', with HEADWAY_KEY set to a key for data and control' if keys else ''}, "
            "with made-up windows; the third answer is by ana's own head:",
            "",
            f"{one} | curl -s {json_header} {base}/v2/models/{name}/predict",
            f"{many} | curl -s {json_header} {base}/v2/models/{name}/users/ana/calibrations{task}",
            f"{one} | curl -s {json_header} '{base}/v2/models/{name}/predict?user_id=ana'",
            "",
        ]
    )
