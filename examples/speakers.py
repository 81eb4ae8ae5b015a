"""Personal labels of voices, on the letters and syllables of KLettres (Debian): twenty languages, a speaker each.

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
import torch

from examples.few_shot import FEWEST, SHOTS, probe_accuracy, pull_of, run, tasks, unit
from models.backbones import create_encoder
from models.backbones.mel import LogMel, MelConfig
from models.data.collections import Collection, load_collection
from models.data.media import reader_of
from models.training.features import features_of

KLETTRES = Path("/usr/share/klettres")
BACKBONE = "package:resemblyzer"
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


def colour(collection: Collection) -> np.ndarray:
    """Mean and deviation over time of 40 bands, `(n, 80)`: what a microphone and a room would give away, too."""
    encoder = create_encoder(BACKBONE, {"weights": False})
    reader, log_mel = reader_of(encoder.input, {}), LogMel(MelConfig(bands=40))
    found = []
    for i in range(len(collection)):
        (clip,) = reader.read([collection.read(i)])
        with torch.no_grad():
            bands = log_mel(torch.from_numpy(np.trim_zeros(clip, "b"))[None])[0].numpy()
        found.append(np.concatenate([bands.mean(1), bands.std(1)]))
    z = np.array(found)
    return (z - z.mean(0)) / z.std(0)


def compare(collection: Collection, cache: Path, people: int) -> None:
    """Print what linear probes on a few clips make of the encoder's features, and of the recordings' colour alone."""
    spaces = {
        "speaker encoder": features_of(create_encoder(BACKBONE), collection, cache)[0],
        "colour": colour(collection),
    }
    for shots in SHOTS:
        told = []
        for name, z in ((name, unit(z)) for name, z in spaces.items()):
            pull = pull_of(z, tasks(collection, people, np.random.default_rng(99)), shots)
            drawn = tasks(collection, people, np.random.default_rng(1))
            score = np.mean([probe_accuracy(z, shown[:, :shots], asked, pull) for shown, asked in drawn])
            told.append(f"{name} {score:.1%}")
        print(f"{shots} of 5 out of all {len(collection.labels)} labels, linear probe: {', '.join(told)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--klettres", type=Path, default=KLETTRES)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"))
    parser.add_argument("--people", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        collection = load_collection(voices(options.klettres, Path(made) / "voices"))
        compare(collection, options.cache, 2 * options.people)
        run(collection, BACKBONE, options.cache, people=options.people)
