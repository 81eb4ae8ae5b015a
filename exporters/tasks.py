"""A bundle with several outputs on one graph, and a further output for a bundle that there is. Torch-free."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import bundle as bundles
from exporters.bundle import BundleError, InputSpec, Manifest
from exporters.bundle_outputs import MOST_OUTPUTS, OUTPUT_PATTERN, Ranges, Target, check_ranges, prior_file, width_of
from exporters.card import model_card
from exporters.classification import fit_classification
from exporters.regression import Population, features_of, opset_of
from models.heads import prior as priors
from models.heads import regression_prior
from models.heads.prior import Prior
from models.heads.regression_population import fit_population, left_out_figures
from models.heads.regression_prior import RegressionPrior


@dataclass(frozen=True, slots=True)
class Task:
    """One output: what it says of a window, and whom its shared head and its prior are fitted on.

    Either `population`, whose values are class indices of `labels` or numbers by `targets`, or a `prior` that was
    fitted elsewhere in the same features.

    Attributes:
        name: of the output.
        labels: of a classification.
        targets: of a regression.
        population: windows as the graph takes them, and their values.
        prior: of the output, instead of a population.
        user_labels: labels of their own that a user may add.
        features: columns of the graph's features that its heads are over, as ranges; none for all.
        evaluation: what is known of its worth, for the manifest; of a population, errors of left-out people are added.
    """

    name: str
    labels: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()
    population: Population | None = None
    prior: Prior | RegressionPrior | None = None
    user_labels: int = 0
    features: Ranges = ()
    evaluation: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Made:
    """An output as manifests have it, and its prior's file."""

    said: dict[str, Any]
    file: dict[str, bytes]


def export_multitask(
    backbone: bytes,
    tasks: Sequence[Task],
    models: Path,
    *,
    name: str,
    input_spec: InputSpec,
    preprocessing: str,
    licence: str = "Apache-2.0",
    citation: str = "",
    description: str = "",
) -> Path:
    """Write the next version of a bundle that answers several tasks by one forward, and return its folder.

    The backbone is an ONNX graph whose first output is features FP32 `[rows, d]`; it stays as it is. The first task is
    the one that plain names mean (docs/api.md), and the one whose heads stay valid in bundles of it alone.

    Raises:
        BundleError: fewer than two tasks, the graph does not take the windows, or it is older than opset 18.
        ValueError: a task contradicts itself, or its population does not allow a fit.
    """
    if not 2 <= len(tasks) <= MOST_OUTPUTS:
        raise BundleError(f"a bundle of several outputs has 2 to {MOST_OUTPUTS}, not {len(tasks)}")
    dim = _feature_dim(backbone, tasks, input_spec)
    said, files = outputs_of(backbone, tasks, input_spec, dim)
    manifest = Manifest.model_validate(
        {
            "name": name,
            "version": bundles.next_version(models, name),
            "description": description,
            **said,
            "input": input_spec,
            "preprocessing": preprocessing,
            "feature_dim": dim,
            "opset": opset_of(backbone),
            "provenance": {"recipe": "several outputs", "outputs": {t.name: _people(t) for t in tasks}},
            "licence": licence,
            "citation": citation,
            "created": _now(),
            "files": {},
        }
    )
    return bundles.write(models, manifest, {bundles.BACKBONE: backbone, **files, **_card(manifest)})


def outputs_of(
    graph: bytes, tasks: Sequence[Task], spec: InputSpec, dim: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a manifest says of tasks on one graph of `dim` features, and the files of their priors.

    One task alone is the output of a bundle that has one, which has no name.

    Raises:
        BundleError, ValueError: as `export_multitask`.
    """
    made = [_made(graph, task, spec, dim, first=not i) for i, task in enumerate(tasks)]
    said = {key: value for key, value in made[0].said.items() if key != "name"}
    if len(tasks) > 1:
        said |= {
            "manifest_version": bundles.SEVERAL_OUTPUTS_VERSION,
            "output": tasks[0].name,
            "outputs": [each.said for each in made[1:]],
        }
    return said, {name: data for each in made for name, data in each.file.items()}


def add_task(model: Path, models: Path, task: Task, *, called: str = "") -> Path:
    """Write the next version of a bundle with one output more, on the same graph, and return its folder.

    What was there stays to the byte: graph, priors, and the feature spaces in which users' heads are valid.

    Args:
        model: the bundle.
        models: folder of bundles to write to.
        task: the output.
        called: name of the present output of a bundle that has one, which from then on needs a name.

    Raises:
        BundleError: the output is there already, or a name is missing or must not be given.
        ValueError: as `export_multitask`.
    """
    old = bundles.load(bundles.resolve(model))
    manifest = old.manifest
    if bool(called) == bool(manifest.output):
        why = f"is named {manifest.output!r}" if manifest.output else "has no name yet: say how it is called"
        raise BundleError(f"the output of {old.path} {why}")
    if called and not re.fullmatch(OUTPUT_PATTERN, called):
        raise BundleError(
            f"{called!r} cannot be the name of an output: lower-case letters, digits, _ and -, at most 32"
        )
    names = manifest.names or (called,)
    if task.name in names:
        raise BundleError(f"{old.path} has an output {task.name!r} already; it has {', '.join(names)}")
    made = _made(old.backbone, task, manifest.input, manifest.feature_dim, first=False)
    told = manifest.provenance.get("added", [])
    record = {"output": task.name, "to": {"version": manifest.version, "digest": old.digest}, **_people(task)}
    grown = Manifest.model_validate(
        {
            **manifest.model_dump(exclude_unset=True),
            "manifest_version": bundles.SEVERAL_OUTPUTS_VERSION,
            "version": max(bundles.next_version(models, manifest.name), manifest.version + 1),
            "output": manifest.output or called,
            "outputs": [*(output.model_dump() for output in manifest.outputs), made.said],
            "provenance": {**manifest.provenance, "added": [*told, record]},
            "created": _now(),
            "files": {},
        }
    )
    files = {name: old.file(name) for name in manifest.files}
    return bundles.write(models, grown, {**files, **made.file, **_card(grown)})


def _made(backbone: bytes, task: Task, spec: InputSpec, dim: int, *, first: bool) -> _Made:
    """Fit an output, or take it as it was fitted."""
    if bool(task.labels) == bool(task.targets):
        raise ValueError(f"task {task.name!r} has labels, or targets: one of both")
    check_ranges(task.features, dim)
    prior, evaluation = task.prior, dict(task.evaluation)
    if (prior is None) == (task.population is None):
        raise ValueError(f"task {task.name!r} has a population, or a prior that was fitted already: one of both")
    if task.population is not None:
        prior, found = _fitted(backbone, task, task.population, spec)
        evaluation |= found
    assert prior is not None
    _check_prior(task, prior, width_of(task.features, dim))
    space = bundles.feature_space(backbone, task.features, "" if first else task.name)
    said: dict[str, Any] = {
        "name": task.name,
        "task": "regression" if task.targets else "classification",
        "feature_space": space,
        "features": task.features,
        "evaluation": evaluation,
    }
    file = bundles.PRIOR if first else prior_file(task.name)
    if isinstance(prior, RegressionPrior):
        said |= {"targets": task.targets, "regression": prior.settings}
        return _Made(said, {file: regression_prior.to_bytes(prior)})
    room = {"label_set": "open", "user_labels": task.user_labels} if task.user_labels else {}
    said |= {"labels": task.labels, "head": prior.hyper, **room}
    return _Made(said, {file: priors.to_bytes(prior)})


def _check_prior(task: Task, prior: Prior | RegressionPrior, features: int) -> None:
    """Refuse a prior of another task, before anything is written."""
    names = prior.targets if isinstance(prior, RegressionPrior) else prior.labels
    wanted = task.labels or tuple(target.name for target in task.targets)
    if isinstance(prior, RegressionPrior) != bool(task.targets) or names != wanted:
        raise ValueError(f"task {task.name!r} is for {', '.join(wanted)}, and its prior for {', '.join(names)}")
    if prior.dim != features:
        raise ValueError(f"task {task.name!r} reads {features} features, and its prior is of {prior.dim}")


def _fitted(
    backbone: bytes, task: Task, population: Population, spec: InputSpec
) -> tuple[Prior | RegressionPrior, dict[str, Any]]:
    """Fit a prior on people's features, and say what the shared head does for those left out."""
    z = columns(features_of(backbone, population.windows, spec), task.features)
    given = population.values, population.users, population.repetitions
    if task.targets:
        prior = fit_population(z, *given, targets=[target.name for target in task.targets])
        return prior, {"left_out_people": left_out_figures(prior, population.values)}
    return fit_classification(z, *given, labels=task.labels)


def columns(z: NDArray[np.float32], ranges: Ranges) -> NDArray[np.float32]:
    """Return the columns of features `(n, d)` that `ranges` name, in order; all for none."""
    return np.concatenate([z[:, begin:end] for begin, end in ranges], 1) if ranges else z


def _feature_dim(backbone: bytes, tasks: Sequence[Task], spec: InputSpec) -> int:
    """Features that the graph computes: seen where there is a window, else as wide as a prior."""
    shown = next((task.population.windows[:1] for task in tasks if task.population is not None), None)
    if shown is None:
        shown = np.zeros((1, *spec.sized(None if spec.padding is None else spec.padding.maximum)), spec.dtype)
    return int(features_of(backbone, shown, spec).shape[1])


def _people(task: Task) -> dict[str, int]:
    found = task.population
    return {} if found is None else {"people": len(np.unique(found.users)), "windows": len(found.windows)}


def _card(manifest: Manifest) -> dict[str, bytes]:
    return {bundles.CARD: model_card(manifest).encode()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
