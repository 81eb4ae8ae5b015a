"""A regression bundle from an ONNX backbone and a population's windows and targets. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import BundleError, InputSpec, Manifest, Target
from exporters.card import model_card
from models.heads import regression_prior
from models.heads.regression_population import fit_population
from models.heads.regression_prior import RegressionPrior

ROWS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Population:
    """What the shared head is fitted from.

    Attributes:
        windows: raw, as the backbone's input takes them, `(n, …)`, each person's in time order.
        values: what the regression should say of each, `(n, T)`, in the targets' units.
        users: who each window is of, `(n,)`.
        repetitions: ids `(n,)` of what was recorded in one go, ascending in time; without them a person's windows count
            as four repetitions.
    """

    windows: NDArray[np.generic]
    values: NDArray[np.floating]
    users: NDArray[np.generic]
    repetitions: NDArray[np.integer] | None = None


def export_regression(
    backbone: bytes,
    population: Population,
    models: Path,
    *,
    name: str,
    input_spec: InputSpec,
    targets: Sequence[Target],
    preprocessing: str,
    licence: str = "Apache-2.0",
    citation: str = "",
    description: str = "",
) -> Path:
    """Fit the shared head and the population prior, write the next version of a regression bundle, return its folder.

    The backbone is an ONNX graph whose first output is features FP32 `[rows, d]`, d up to 256; it stays as it is.

    Raises:
        BundleError: the graph does not take the windows, is older than opset 18, or has another output.
        ValueError: the population does not allow a fit (`models.heads.regression_population.fit_population`).
    """
    features = features_of(backbone, population.windows, input_spec)
    prior = fit_population(
        features,
        population.values,
        population.users,
        population.repetitions,
        targets=[target.name for target in targets],
    )
    manifest = Manifest(
        name=name,
        version=bundles.next_version(models, name),
        description=description,
        feature_space=bundles.feature_space(backbone),
        task="regression",
        targets=tuple(targets),
        input=input_spec,
        preprocessing=preprocessing,
        feature_dim=prior.dim,
        opset=opset_of(backbone),
        regression=prior.settings,
        provenance={
            "recipe": "regression",
            "people": len(np.unique(population.users)),
            "windows": len(features),
        },
        evaluation={"left_out_people": {"rmse": left_out_rmse(prior)}},
        licence=licence,
        citation=citation,
        files={},
    )
    files = {
        bundles.BACKBONE: backbone,
        bundles.PRIOR: regression_prior.to_bytes(prior),
        bundles.CARD: model_card(manifest).encode(),
    }
    return bundles.write(models, manifest, files)


def features_of(backbone: bytes, windows: NDArray[np.generic], spec: InputSpec) -> NDArray[np.float32]:
    """Run windows `(n, …)` through a graph and return its first output `(n, d)`.

    Raises:
        BundleError: the graph does not take the windows, or does not give features of each.
    """
    misfit = spec.misfit(windows.shape)
    if misfit is not None:
        raise BundleError(f"the windows {misfit}")
    try:
        session = ort.InferenceSession(backbone, providers=["CPUExecutionProvider"])
        taken, output = session.get_inputs()[0].name, session.get_outputs()[0].name
        parts = [
            session.run([output], {taken: np.ascontiguousarray(windows[at : at + ROWS_AT_ONCE], spec.dtype)})[0]
            for at in range(0, len(windows), ROWS_AT_ONCE)
        ]
    except Exception as e:  # whatever the runtime raises of a graph that does not fit
        raise BundleError(f"the graph does not run on the windows: {e}") from e
    features = np.concatenate(parts)
    if features.ndim != 2:
        raise BundleError(f"the graph's first output {output!r} has shape {features.shape}; [rows, d] was expected")
    return np.asarray(features, np.float32)


def left_out_rmse(prior: RegressionPrior) -> dict[str, float]:
    """Error of the shared head on people it does not know, by target, in its unit."""
    found = zip(prior.targets, prior.residual_variance.tolist(), strict=True)
    return {name: float(f"{math.sqrt(variance):.6g}") for name, variance in found}


def opset_of(backbone: bytes) -> int:
    """Return the operator set of a graph.

    Raises:
        BundleError: it is older than 18.
    """
    opset = max(
        (o.version for o in onnx.load_from_string(backbone).opset_import if o.domain in ("", "ai.onnx")), default=0
    )
    if opset < 18:
        raise BundleError(f"the graph is of opset {opset}; 18 or newer is needed (onnx.version_converter raises it)")
    return opset
