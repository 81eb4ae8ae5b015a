"""A run on images, sounds or texts becomes a bundle, through the same gates as any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.version_converter
import torch
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import Manifest
from exporters.export import LARGEST_BATCH, OPSET, Draft, ExportError, onnx_forward, to_onnx, torch_forward
from exporters.input_spec import InputSpec
from exporters.parity import BATCHES, check_parity
from models.backbones.onnx_file import OnnxEncoder
from models.backbones.probe import ProbedEncoder, Top
from models.backbones.probes import TasksEncoder
from models.heads import prior as priors
from models.training.media_run import MediaRun, load_media_run

JOINT = "encoded"


def media_draft(run_folder: Path, name: str, version: int, told: Mapping[str, Any]) -> Draft:
    """Make the bundle of a run without writing it; `told` are fields of the manifest that no run knows.

    Raises:
        RunError: the folder holds no finished run of this kind.
        ExportError: torch or ONNX refuses the graph.
        ParityError: the graph does not compute what torch does.
    """
    run = load_media_run(run_folder)
    backbone = run.backbone()
    graph = graph_of(backbone, run.input, run.items)
    batches = sorted({min(size, len(run.items)) for size in BATCHES})
    parity = check_parity(torch_forward(backbone), onnx_forward(graph), run.items, batches=batches)
    manifest = _manifest(run, name, version, graph, parity, told)
    return Draft(manifest, {bundles.BACKBONE: graph, bundles.PRIOR: priors.to_bytes(run.prior), **run.files}, run.items)


def graph_of(backbone: ProbedEncoder | TasksEncoder, spec: InputSpec, items: NDArray[Any]) -> bytes:
    """The ONNX graph of a probed encoder: batch and, of texts, length are dynamic.

    Raises:
        ExportError: torch or ONNX refuses it.
    """
    if isinstance(backbone.encoder, OnnxEncoder):
        return _joined(backbone.encoder, backbone)
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    if spec.padding is not None:
        longest = spec.padding.maximum
        dynamic[spec.padding.axis] = torch.export.Dim("length", min=2, max=longest)
    # An example of sizes that are all different, and none of them 1: the exporter takes equal sizes for the same one.
    example = torch.from_numpy(np.resize(items, (3, *items.shape[1:])))
    return to_onnx(backbone, example, dynamic)


def _joined(encoder: OnnxEncoder, backbone: ProbedEncoder | TasksEncoder) -> bytes:
    """Put the projection and the probe behind a graph that is ONNX already."""
    batch = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    top = onnx.load_from_string(to_onnx(Top(backbone).eval(), torch.zeros(3, encoder.num_features), batch))
    front = onnx.load_from_string(encoder.graph_bytes)
    try:
        front = onnx.version_converter.convert_version(front, OPSET)
        front.ir_version = top.ir_version
        output = encoder.default_cfg.output or front.graph.output[0].name
        front = onnx.compose.add_prefix(front, "encoder/", rename_inputs=False)
        joined = onnx.compose.merge_models(
            front,
            onnx.compose.add_prefix(top, "top/", rename_outputs=False),
            io_map=[(f"encoder/{output}", "top/input")],
            outputs=["features"],
        )
        onnx.checker.check_model(joined, full_check=True)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as e:
        raise ExportError(f"the encoder's graph cannot be joined with the probe: {e}") from e
    return bytes(joined.SerializeToString())


def _manifest(
    run: MediaRun, name: str, version: int, graph: bytes, parity: dict[str, Any], told: Mapping[str, Any]
) -> Manifest:
    return Manifest(
        name=name,
        version=version,
        feature_space=bundles.feature_space(graph + b"".join(data for _, data in sorted(run.files.items()))),
        labels=run.labels,
        input=run.input,
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
