"""Personal labels of texts, on the one-line descriptions of Debian's packages by section.

apt-get update
python -m examples.text_labels --cache .cache/features
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from examples.few_shot import run
from models.data.collections import load_collection

SECTIONS = frozenset(
    "admin doc editors electronics games graphics java mail math net python shells sound tex video web".split()  # noqa: SIM905
)
EACH = 40


def descriptions(file: Path) -> Path:
    """Write a table of descriptions, forty a section, drawn by a fixed seed."""
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    rows = []
    for entry in dump.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in entry.splitlines() if ": " in line and not line.startswith(" "))
        text = next((v for k, v in fields.items() if k.startswith("Description") and "md5" not in k), None)
        section = fields.get("Section", "").split("/")[-1]
        if text and section in SECTIONS:
            rows.append((fields["Package"], text, section))
    rows = sorted(set(rows))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    kept: dict[str, list[str]] = {s: [] for s in sorted(SECTIONS)}
    for _, text, section in rows:
        if len(kept[section]) < EACH and text not in kept[section]:
            kept[section].append(text)
    lines = [json.dumps({"text": t, "label": s}) for s, texts in kept.items() for t in texts]
    file.write_text("\n".join(lines))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"))
    parser.add_argument("--people", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        collection = load_collection(descriptions(Path(made) / "texts.jsonl"))
        run(collection, "package:minilm-l6", options.cache, people=options.people)
