"""Personal labels of voices, on the letters and syllables that twenty people speak in KLettres (Debian).

apt-get install klettres-data
pip install --no-deps resemblyzer
python -m examples.speakers --cache .cache/features
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np

from examples.few_shot import FEWEST, run
from models.data.collections import load_collection

KLETTRES = Path("/usr/share/klettres")
EACH = 30


def voices(source: Path, folder: Path) -> Path:
    """Copy clips to `FOLDER/<voice>/`: thirty of each language, whose clips one person has spoken, by a fixed seed."""
    if not source.is_dir():
        raise SystemExit(f"{source} is not there: apt-get install klettres-data, or give --klettres")
    rng = np.random.default_rng(0)
    for language in sorted(path for path in source.iterdir() if path.is_dir()):
        # Some clips are there under two names.
        found = {hashlib.sha256(path.read_bytes()).digest(): path for path in sorted(language.rglob("*.ogg"))}
        if len(found) < FEWEST:
            continue
        paths = list(found.values())
        (folder / language.name).mkdir(parents=True)
        for i in rng.permutation(len(paths))[:EACH]:
            shutil.copy(paths[i], folder / language.name / "-".join(paths[i].relative_to(language).parts))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--klettres", type=Path, default=KLETTRES)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"))
    parser.add_argument("--people", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        collection = load_collection(voices(options.klettres, Path(made) / "voices"))
        run(collection, "package:resemblyzer", options.cache, people=options.people)
