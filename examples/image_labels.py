"""Personal labels of images, on the drawings and photographs of Tux Paint (Debian's `tuxpaint-stamps-default`).

apt-get install tuxpaint-stamps-default
python -m examples.image_labels --cache .cache/features
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from examples.few_shot import FEWEST, run
from models.data.collections import load_collection

STAMPS = Path("/usr/share/tuxpaint/stamps")
MIRRORED = ("_mirror", "_flip", "_mirror_flip")


def stamps(source: Path, folder: Path) -> Path:
    """Copy stamps to `FOLDER/<label>/`: a label is the folder they are in, if it holds enough of them."""
    if not source.is_dir():
        raise SystemExit(f"{source} is not there: apt-get install tuxpaint-stamps-default, or give --stamps")
    found: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.png")):
        parts = path.relative_to(source).parts
        if not path.stem.endswith(MIRRORED) and parts[0] != "symbols" and len(parts) > 2:
            found.setdefault("-".join(parts[:2]), []).append(path)
    for label, paths in found.items():
        if len(paths) >= FEWEST:
            (folder / label).mkdir(parents=True)
            for path in paths:
                shutil.copy(path, folder / label / "-".join(path.relative_to(source).parts[2:]))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--cache", type=Path, default=Path(".cache/features"))
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--tta", type=int, default=1, help="views of each image that the service averages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        collection = load_collection(stamps(options.stamps, Path(made) / "images"))
        run(collection, "package:efficientnet-lite0", options.cache, people=options.people, tta=options.tta)
