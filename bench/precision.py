"""Time of a forward in variants of a bundle, interleaved: ratios to the first named.

    python -m bench.precision models/lite0/1 models/lite0/2 --batches 1,8

One thread, synthetic windows; medians over `--runs` turns, in each of which every variant runs once.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from exporters import bundle as bundles
from exporters.precision import synthetic_windows
from service.engine.runtime import Runtime


def main() -> None:
    """Print a line a variant and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--runs", type=int, default=50)
    chosen = parser.parse_args()
    loaded = [bundles.load(bundles.resolve(path)) for path in chosen.bundles]
    runtimes = [Runtime(bundle.backbone) for bundle in loaded]
    rng = np.random.default_rng(0)
    print("| variant | batch | ms (median) | of the first | graph, MB |\n|--|--|--|--|--|")
    for batch in map(int, chosen.batches.split(",")):
        x = synthetic_windows(loaded[0].manifest.input, batch, rng)
        taken = np.empty((chosen.runs + 3, len(runtimes)))
        for turn in taken:
            for i, runtime in enumerate(runtimes):
                begin = time.perf_counter()
                runtime.run(x)
                turn[i] = time.perf_counter() - begin
        median = np.median(taken[3:], 0)
        for bundle, seconds in zip(loaded, median, strict=True):
            m = bundle.manifest
            print(
                f"| {m.name}/{m.version}, {m.precision} | {batch} | {1e3 * seconds:.2f} | {seconds / median[0]:.2f} "
                f"| {len(bundle.backbone) / 1e6:.1f} |"
            )


if __name__ == "__main__":
    main()
