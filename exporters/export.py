"""Torch to ONNX: a training run becomes a bundle, through the parity gate."""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import InputSpec, Manifest
from exporters.bundle_outputs import Ranges
from exporters.card import model_card
from exporters.parity import Forward, check_parity
from exporters.tasks import Task, outputs_of
from models.training.further_tasks import load_further
from models.training.media_run import is_media_run
from models.training.run import Run, load_run
from models.training.tasks_run import LearnedTask, is_tasks_run

OPSET = 20
LARGEST_BATCH = 65536


class ExportError(ValueError):
    """A backbone could not be exported; the message says why."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A bundle that is not written yet, and the real inputs `(n, …)` of the run that its graph was compared on."""

    manifest: Manifest
    files: dict[str, bytes]
    inputs: NDArray[Any]

    def written(self, models: Path) -> Path:
        """Write the bundle with its card under `models` and return its folder."""
        return bundles.write(models, self.manifest, {**self.files, bundles.CARD: model_card(self.manifest).encode()})


def export_run(
    run_folder: Path,
    models: Path,
    *,
    name: str | None = None,
    licence: str = "Apache-2.0",
    citation: str = "",
    description: str = "",
    user_labels: int = 0,
) -> Path:
    """Export a run to the next version of a bundle and return its folder; arguments and errors as `draft_of`."""
    draft = draft_of(
        run_folder,
        models,
        name=name,
        licence=licence,
        citation=citation,
        description=description,
        user_labels=user_labels,
    )
    return draft.written(models)


def draft_of(
    run_folder: Path,
    models: Path,
    *,
    name: str | None = None,
    licence: str = "Apache-2.0",
    citation: str = "",
    description: str = "",
    user_labels: int = 0,
) -> Draft:
    """Make the bundle of a run, in FP32 and as the next version of its name under `models`, without writing it.

    `user_labels`: labels of their own that a user may add to the run's; 0 for a closed set. Of a run of several tasks
    they may be added to every output of labels.

    Raises:
        RunError: the folder holds no finished run.
        ExportError: torch or ONNX refuses the graph.
        ParityError: the graph does not compute what torch does.
    """
    name = model_name(name, run_folder)
    told: dict[str, Any] = {"licence": licence, "citation": citation, "description": description}
    if is_tasks_run(run_folder):
        from exporters.media_tasks import tasks_draft

        return tasks_draft(run_folder, name, bundles.next_version(models, name), told, user_labels)
    room = {"label_set": "open", "user_labels": user_labels} if user_labels else {}
    if is_media_run(run_folder):
        from exporters.media import media_draft

        return media_draft(run_folder, name, bundles.next_version(models, name), {**told, **room})
    run = load_run(run_folder)
    backbone = run.backbone()
    graph = to_onnx(backbone, torch.zeros(2, *run.windows.shape[1:]))
    parity = check_parity(torch_forward(backbone), onnx_forward(graph), run.windows)
    manifest = _manifest(run, name, bundles.next_version(models, name), graph, parity, {**told, **room})
    called, columns, further = load_further(run_folder)
    if not further:
        return Draft(manifest, {bundles.BACKBONE: graph, bundles.PRIOR: run.prior_bytes}, run.windows)
    own = Task(called, labels=run.labels, prior=run.prior, user_labels=user_labels, evaluation=run.evaluation)
    said, files = outputs_of(
        graph, [own, *(task_of(t, user_labels, ((0, columns),)) for t in further)], manifest.input, run.prior.dim
    )
    several = Manifest.model_validate({**manifest.model_dump(exclude_unset=True), **said})
    return Draft(several, {bundles.BACKBONE: graph, **files}, run.windows)


def task_of(learned: LearnedTask, user_labels: int, features: Ranges) -> Task:
    """A task of a run as an output, which reads these columns of the graph's features."""
    return Task(
        learned.name,
        labels=learned.labels,
        targets=learned.targets,
        prior=learned.prior,
        user_labels=user_labels if learned.labels else 0,
        features=features,
        evaluation=learned.evaluation,
    )


def model_name(name: str | None, run_folder: Path) -> str:
    """The name given, or else the run folder's, if it can be a model's.

    Raises:
        ExportError: it cannot.
    """
    name = name or run_folder.resolve().name
    if not re.match(bundles.NAME_PATTERN, name):
        raise ExportError(
            f"{name!r} cannot be a model's name: lower-case letters, digits, dots and dashes; give --name"
        )
    return name


def to_onnx(backbone: torch.nn.Module, example: torch.Tensor, dynamic: dict[int, Any] | None = None) -> bytes:
    """Export `forward` of a backbone and return the checked graph; by default its batch alone is dynamic.

    Raises:
        ExportError: the exporter or the checker refuses it.
    """
    backbone = backbone.eval()
    dynamic = dynamic or {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        file = Path(folder) / bundles.BACKBONE
        try:
            program = torch.onnx.export(
                backbone,
                (example,),
                dynamo=True,
                dynamic_shapes=(dynamic,),
                input_names=["input"],
                output_names=["features"],
                opset_version=OPSET,
                verbose=False,
            )
            if program is None:
                raise ExportError("torch.onnx.export gave no program")
            program.save(str(file), external_data=False)
            graph = file.read_bytes()
            onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
        except (onnx.checker.ValidationError, torch.onnx.errors.OnnxExporterError) as e:
            raise ExportError(f"the backbone cannot be exported to ONNX: {e}") from e
    return _without_metadata(graph)


def _without_metadata(graph: bytes) -> bytes:
    """Drop doc strings and stack traces: they hold paths of the machine and triple the file."""
    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    return bytes(model.SerializeToString())


def torch_forward(backbone: torch.nn.Module) -> Forward:
    """A backbone as what the parity gate compares."""

    def forward(x: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            result: NDArray[np.float32] = backbone(torch.from_numpy(x)).numpy()
        return result

    return forward


def onnx_forward(graph: bytes) -> Forward:
    """A graph as what the parity gate compares.

    Raises:
        ExportError: ONNX Runtime refuses it.
    """
    try:
        session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as e:  # onnxruntime raises its own unexported classes
        raise ExportError(f"ONNX Runtime refuses the exported graph: {e}") from e
    return lambda x: np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def _manifest(
    run: Run, name: str, version: int, graph: bytes, parity: dict[str, Any], told: Mapping[str, Any]
) -> Manifest:
    _, channels, length = run.windows.shape
    signal = run.signal
    return Manifest(
        name=name,
        version=version,
        feature_space=bundles.feature_space(graph),
        labels=run.labels,
        input=InputSpec(
            shape=(-1, channels, length),
            unit=signal.unit,
            sample_rate=signal.fs,
            stride=signal.stride,
            modality=signal.modality,
            channel_layout=signal.channel_layout,
        ),
        preprocessing=run.preprocessing,
        feature_dim=run.prior.dim,
        opset=OPSET,
        head=run.prior.hyper,
        parity=parity,
        provenance=run.provenance,
        evaluation=run.evaluation,
        created=run.provenance.get("finished", ""),
        files={},
        **told,
    )
