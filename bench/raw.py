"""The limit without HTTP: one-thread ONNX Runtime sessions, a process a core, at a few batch sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import onnxruntime as ort

from bench.bundles import Case, case

BATCHES = (1, 8, 64)
"""The best of them is the limit for one window a request; for client batches it is the batch's own size."""
PROCESSES = 2


def batches(rows: list[int]) -> tuple[int, ...]:
    """Return the batch sizes to be measured beside requests of so many rows."""
    return tuple(sorted({*(BATCHES if 1 in rows else ()), *rows}))


def limit(rates: dict[int, float], rows: int) -> float:
    """Return the rows a second that requests of so many rows are compared with."""
    return max(rates[batch] for batch in BATCHES) if rows == 1 else rates[rows]


def rate(model: Case, seconds: float, sizes: tuple[int, ...] = BATCHES) -> dict[int, float]:
    """Return rows a second by batch size, all processes together, each batch size for `seconds`."""
    found = {}
    for batch in sizes:
        command = [sys.executable, "-m", "bench.raw", model.name, str(batch), str(seconds)]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(PROCESSES)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # warmed up: both begin together
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        found[batch] = sum(float(json.loads(process.communicate()[0])["rate"]) for process in running)
    return found


def _child(name: str, batch: int, seconds: float) -> None:
    model = case(name)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model.graph), options, providers=["CPUExecutionProvider"])
    x = model.windows(batch)
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(x)}
    for _ in range(3):
        session.run(None, feed)
    print("ready", flush=True)
    sys.stdin.readline()
    rows, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        session.run(None, feed)
        rows += batch
    print(json.dumps({"rate": rows / elapsed}))


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
