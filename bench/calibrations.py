"""Server time of calibrations over HTTP, stage by stage, beside a raw ONNX Runtime pass over the same windows."""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from exporters import bundle as bundles
from models.data.recordings import load
from models.data.windows import WindowSpec, first_windows, windows
from service.client import Client
from service.commands.process import running_service

STAGES = ("features", "fit", "evaluate", "store")


def main() -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="bundle: DIR/NAME")
    parser.add_argument("--data", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--subject", default="pretrain_M0", help="file name of the subject, without .npz")
    parser.add_argument("--runs", type=int, default=15, help="calibrations of each kind, after one that is not counted")
    chosen = parser.parse_args()
    bundle = bundles.load(bundles.resolve(chosen.model))
    spec = WindowSpec(bundle.manifest.input.window_shape[1], bundle.manifest.input.stride)
    rec = load(chosen.data / f"{chosen.subject}.npz")
    first = rec.session_names[0]
    sets = {
        "1 window a class": first_windows(rec, spec, 1, session=first),
        "5 windows a class": first_windows(rec, spec, 5, session=first),
        **{
            f"{k} cycle{'s' * (k > 1)}": windows(rec, spec, sessions={first}, repetitions=set(range(k)))
            for k in (1, 2, 4)
        },
    }
    session = ort.InferenceSession(bundle.backbone, providers=["CPUExecutionProvider"])
    print(f"{chosen.subject}, {platform.processor() or platform.machine()}, medians of {chosen.runs} (ms)\n")
    columns = (
        "calibration",
        "windows",
        "features",
        "fit",
        "evaluate",
        "fit + evaluate",
        "store",
        "raw forward",
        "ratio",
    )
    print(f"| {' | '.join(columns)} |")
    print(f"|{'--|' * 9}")
    with tempfile.TemporaryDirectory() as folder:
        root = bundle.path.parent.parent
        with running_service(root, Path(folder)) as service, Client(service.url) as client:
            for name, w in sets.items():
                labels = [rec.label_names[i] for i in w.y]
                times, raw = [], []
                for run in range(chosen.runs + 1):
                    user = f"bench {name} {run}"
                    report = client.calibrate(bundle.manifest.name, user, w.x, labels, w.repetition.tolist())
                    begin = time.perf_counter()
                    for at in range(0, len(w), 64):
                        session.run(None, {"input": w.x[at : at + 64]})
                    raw.append((time.perf_counter() - begin) * 1e3)
                    times.append([report["timings_ms"][stage] for stage in STAGES])
                features, fit, guard, store = np.median(times[1:], 0)
                forward = float(np.median(raw[1:]))
                print(
                    f"| {name} | {len(w)} | {features:.1f} | {fit:.1f} | {guard:.1f} | {fit + guard:.1f} | {store:.1f} "
                    f"| {forward:.1f} | {features / forward:.2f} |"
                )


if __name__ == "__main__":
    main()
