"""A run of several tasks on images, sounds or texts becomes a bundle with an output a task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporters import bundle as bundles
from exporters.bundle import Manifest
from exporters.export import OPSET, Draft, ExportError, onnx_forward, task_of, torch_forward
from exporters.media import graph_of
from exporters.parity import BATCHES, check_parity
from exporters.tasks import outputs_of
from models.training.tasks_run import load_tasks_run


def tasks_draft(run_folder: Path, name: str, version: int, told: Mapping[str, Any], user_labels: int) -> Draft:
    """Make the bundle of a run without writing it; `told` are fields of the manifest that no run knows.

    A run of one task makes a bundle of one output, without a name.

    Raises:
        RunError: the folder holds no finished run of this kind.
        ExportError: torch or ONNX refuses the graph, or `user_labels` are for targets.
        ParityError: the graph does not compute what torch does.
    """
    run = load_tasks_run(run_folder)
    if user_labels and not any(task.labels for task in run.tasks):
        raise ExportError("user_labels are of outputs with labels, and this run has targets only; leave them away")
    backbone = run.backbone()
    graph = graph_of(backbone, run.input, run.items)
    batches = sorted({min(size, len(run.items)) for size in BATCHES})
    parity = check_parity(torch_forward(backbone), onnx_forward(graph), run.items, batches=batches)
    # What the tokenizer does is part of what a feature means, as for a run of one task.
    whole = graph + b"".join(data for _, data in sorted(run.files.items()))
    dim = backbone.num_features
    several = len(run.tasks) > 1
    tasks = [task_of(t, user_labels, run.architecture.columns(i) if several else ()) for i, t in enumerate(run.tasks)]
    said, files = outputs_of(whole, tasks, run.input, dim)
    manifest = Manifest.model_validate(
        {
            "name": name,
            "version": version,
            **said,
            "input": run.input,
            "preprocessing": run.preprocessing,
            "feature_dim": dim,
            "opset": OPSET,
            "parity": parity,
            "provenance": run.provenance,
            "created": run.provenance.get("finished", ""),
            "files": {},
            **told,
        }
    )
    return Draft(manifest, {bundles.BACKBONE: graph, **files, **run.files}, run.items)
