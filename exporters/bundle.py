"""The bundle: one immutable, content-addressed folder that training hands to serving. Torch-free.

```
<models>/<name>/<version>/
  manifest.json      what this is, and the sha256 of every other file
  backbone.onnx      raw input -> features
  prior.safetensors  generic head and population prior
  prior.<output>.safetensors           of each further output, where there are several
  bridge.<feature space>.safetensors   from an older feature space of an output to its own; there may be none
  MODEL_CARD.md
```
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exporters.bundle_outputs import (
    MOST_OUTPUTS,
    OUTPUT_MARK,
    OUTPUT_PATTERN,
    Output,
    Ranges,
    check_ranges,
    check_task,
    prior_file,
    width_of,
)
from exporters.bundle_outputs import MOST_USER_LABELS as MOST_USER_LABELS
from exporters.bundle_outputs import BridgeEntry as BridgeEntry
from exporters.bundle_outputs import Target as Target
from exporters.input_spec import InputSpec as InputSpec
from exporters.input_spec import Padding as Padding
from models.heads import bridge as bridges
from models.heads import prior as priors
from models.heads import regression_prior
from models.heads.bridge import Bridge
from models.heads.prior import HyperParameters, Prior
from models.heads.regression_prior import RegressionPrior, RegressionSettings

MANIFEST_VERSION = "1.0"
MANIFEST, BACKBONE, PRIOR, CARD = "manifest.json", "backbone.onnx", "prior.safetensors", "MODEL_CARD.md"
SEVERAL_OUTPUTS_VERSION = "1.2"
FUSED_VERSION = "2.0"
"""Of bundles of several inputs: releases that do not know of these would take packed rows for one sensor's windows."""
READABLE = ("1", "2")
"""Major versions."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
RESERVED_NAMES = frozenset({"stats"})


class BundleError(ValueError):
    """A folder is not a bundle that may be served; the message says why."""


class FileEntry(BaseModel):
    """Digest and size of one file of a bundle."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a bundle is. Unknown major versions are refused; unknown fields of a known one are, too.

    A bundle has one output, which these fields describe and which has no name, or several: then these fields describe
    the first one, `output` is its name, and `outputs` are the others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: str = MANIFEST_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    description: str = ""
    feature_space: str = Field(min_length=8, description="heads belong to this id and are never applied in another")
    task: Literal["classification", "regression"] = "classification"
    labels: tuple[str, ...] = Field((), description="of a classification; two or more")
    targets: tuple[Target, ...] = Field((), description="of a regression; one or more")
    label_set: Literal["closed", "open"] = "closed"
    user_labels: int = Field(
        0, ge=0, le=MOST_USER_LABELS, description="labels of their own that a user may add; 0: a closed set"
    )
    input: InputSpec
    preprocessing: str = Field(description="what the graph does to the raw input")
    feature_dim: int = Field(ge=1, le=8192)
    opset: int = Field(ge=18)
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    head: HyperParameters = Field(default_factory=HyperParameters, description="of a classification's heads")
    regression: RegressionSettings | None = Field(None, description="of a regression's heads")
    output: str = Field("", pattern=OUTPUT_PATTERN + "|^$", description="name of the first of several outputs")
    features: Ranges = Field((), description="of the graph's features, those that the first output reads; else all")
    outputs: tuple[Output, ...] = Field((), max_length=MOST_OUTPUTS - 1, description="the others, on the same graph")
    bridges: dict[str, BridgeEntry] = Field(default_factory=dict, description="by the older feature space")
    parity: dict[str, Any] = Field(default_factory=dict, description="torch against ONNX Runtime, measured at export")
    provenance: dict[str, Any] = Field(default_factory=dict, description="data, split, seed, commit, command")
    evaluation: dict[str, Any] = Field(default_factory=dict)
    licence: str
    citation: str = ""
    created: str = ""
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _of_one_task(self) -> Manifest:
        check_task(self, self.head_dim)
        if self.targets and self.bridges:
            raise ValueError("a regression has no labels, no user_labels and no bridges")
        return self

    @model_validator(mode="after")
    def _outputs_are_told_apart(self) -> Manifest:
        if not self.outputs:
            if self.output or self.features:
                raise ValueError("output and features are of the first of several outputs, and there are no others")
            return self
        names = [self.output, *(output.name for output in self.outputs)]
        if not self.output or len(set(names)) < len(names):
            raise ValueError(f"several outputs have a name each; these are named {', '.join(map(repr, names))}")
        if OUTPUT_MARK in self.feature_space:
            raise ValueError(f"the feature space of the first output is an id without {OUTPUT_MARK!r}")
        check_ranges(self.features, self.feature_dim)
        for output in self.outputs:
            output.check(self.feature_dim)
        return self

    @property
    def head_dim(self) -> int:
        """Features that heads (of the first output) are over."""
        return width_of(self.features, self.feature_dim)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, where there are several."""
        return (self.output, *(output.name for output in self.outputs)) if self.outputs else ()

    def of_output(self, name: str) -> Manifest:
        """Return what a bundle of this one output alone would say; it is not to be written.

        Raises:
            KeyError: there is no such output.
        """
        alone = {"outputs": (), "output": name}
        if name == self.output:
            return self.model_copy(update={**alone, "feature_dim": self.head_dim})
        output = {each.name: each for each in self.outputs}[name]
        rows = "task", "labels", "targets", "label_set", "user_labels"
        own = *rows, "feature_space", "features", "regression", "bridges"
        return self.model_copy(
            update={
                **alone,
                **{field: getattr(output, field) for field in own},
                "head": output.head or HyperParameters(),
                "evaluation": output.evaluation,
                "feature_dim": width_of(output.features, self.feature_dim),
            }
        )

    @property
    def head_rows(self) -> tuple[str, ...]:
        """What the rows of a head are, in order: the labels, or the targets with their units."""
        return self.labels or tuple(map(str, self.targets))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle: `path`, `manifest`, `population`, and the `digest` of its manifest (which pins all files).

    `bridges`: from older feature spaces, by their id. `outputs`: where there are several, each as a bundle of that one
    alone, the first one first: its manifest (`Manifest.of_output`) and its population.
    """

    path: Path
    manifest: Manifest
    population: Prior | RegressionPrior
    digest: str
    bridges: Mapping[str, Bridge] = field(default_factory=dict)
    outputs: tuple[Bundle, ...] = ()

    def of_one_output(self, what: str) -> Bundle:
        """Return the bundle, for `what` is only done with bundles of one output.

        Raises:
            BundleError: there are several.
        """
        if self.outputs:
            raise BundleError(f"{self.path} has the outputs {', '.join(self.manifest.names)}; {what} bundles with one")
        return self

    @property
    def prior(self) -> Prior:
        """The population prior of a classification; raises `BundleError` for a regression."""
        if isinstance(self.population, RegressionPrior):
            raise BundleError(f"{self.path} is a regression; this is for classifications")
        return self.population

    @property
    def regression(self) -> RegressionPrior:
        """The population prior of a regression; raises `BundleError` for a classification."""
        if isinstance(self.population, Prior):
            raise BundleError(f"{self.path} is a classification; this is for regressions")
        return self.population

    @property
    def populations(self) -> dict[str, Prior | RegressionPrior]:
        """The population prior of each output by its name, which is empty where there is one."""
        if not self.outputs:
            return {"": self.population}
        return {each.manifest.output: each.population for each in self.outputs}

    @property
    def backbone(self) -> bytes:
        """The ONNX graph's bytes, as verified."""
        return self.file(BACKBONE)

    def file(self, name: str) -> bytes:
        """Bytes of one of its files, as verified; raises `KeyError` for one that the manifest does not list."""
        return _verified(self.path / name, self.manifest.files[name])


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def load(path: Path) -> Bundle:
    """Read and verify the bundle in folder `path`.

    Raises:
        BundleError: a file is missing, altered or not listed, or the manifest is of another major version.
    """
    manifest, digest = read_manifest(path)
    listed = {*manifest.files, MANIFEST}
    extra = sorted(p.name for p in path.iterdir() if p.name not in listed and not p.name.startswith("."))
    if extra:
        raise BundleError(f"{path} holds files its manifest does not list: {', '.join(extra)}")
    contents = {name: _verified(path / name, entry) for name, entry in manifest.files.items()}
    if len(set(manifest.labels)) != len(manifest.labels):
        raise BundleError(f"{path}: the manifest names a label twice")
    prior = _population(path, manifest, PRIOR, contents)
    found = _bridges(path, manifest, prior, contents) if isinstance(prior, Prior) else {}
    bundle = Bundle(path, manifest, prior, digest, found)
    if not manifest.outputs:
        return bundle
    first = replace(bundle, manifest=manifest.of_output(manifest.output))
    others = [manifest.of_output(output.name) for output in manifest.outputs]
    populations = [_population(path, m, prior_file(m.output), contents) for m in others]
    alone = [
        Bundle(path, m, found, digest, _bridges(path, m, found, contents) if isinstance(found, Prior) else {})
        for m, found in zip(others, populations, strict=True)
    ]
    return replace(bundle, outputs=(first, *alone))


def populations(manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, Prior | RegressionPrior]:
    """Return the population of each output by its name, which is empty where there is one, of a bundle's `files`.

    Raises:
        BundleError: a file is missing or damaged, or of other features.
    """
    where = Path(manifest.name)
    if not manifest.outputs:
        return {"": _population(where, manifest, PRIOR, files)}
    names = {name: PRIOR if name == manifest.output else prior_file(name) for name in manifest.names}
    return {name: _population(where, manifest.of_output(name), file, files) for name, file in names.items()}


def _population(path: Path, manifest: Manifest, file: str, contents: Mapping[str, bytes]) -> Prior | RegressionPrior:
    prior: Prior | RegressionPrior
    try:
        if manifest.regression is None:
            prior = priors.from_bytes(contents[file], manifest.labels, manifest.head)
        else:
            names = tuple(target.name for target in manifest.targets)
            prior = regression_prior.from_bytes(contents[file], names, manifest.regression)
    except KeyError as e:
        raise BundleError(f"{path}: the manifest does not list {file}") from e
    except ValueError as e:
        raise BundleError(f"{path}/{file}: {e}") from e
    if prior.dim != manifest.head_dim:
        raise BundleError(f"{path}: the prior has {prior.dim} features, the manifest says {manifest.head_dim}")
    return prior


def _bridges(path: Path, manifest: Manifest, prior: Prior, contents: Mapping[str, bytes]) -> dict[str, Bridge]:
    found = {}
    for space, entry in manifest.bridges.items():
        if entry.file not in contents:
            raise BundleError(f"{path}: the manifest's bridge from {space} is {entry.file}, which it does not list")
        try:
            bridge = bridges.from_bytes(contents[entry.file])
        except ValueError as e:
            raise BundleError(f"{path}/{entry.file}: {e}") from e
        if len(bridge.offset) != prior.personal:
            raise BundleError(
                f"{path}/{entry.file} leads to {len(bridge.offset)} features; heads are fitted in {prior.personal}"
            )
        found[space] = bridge
    return found


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """Read the manifest of the bundle in `path` and its digest, without looking at the other files."""
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}")
    data = file.read_bytes()
    try:
        raw = json.loads(data)
        found = str(raw.get("manifest_version", "none")) if isinstance(raw, dict) else "none"
    except ValueError as e:
        raise BundleError(f"{file} is not JSON: {e}") from e
    if found.split(".")[0] not in READABLE:
        raise BundleError(
            f"{file} is of manifest version {found}; this Headway reads {' and '.join(f'{v}.x' for v in READABLE)}"
        )
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as e:
        first = e.errors()[0]
        where = [".".join(map(str, first["loc"]))] if first["loc"] else []
        raise BundleError(": ".join((str(file), *where, first["msg"]))) from e
    for name in (BACKBONE, PRIOR):
        if name not in manifest.files:
            raise BundleError(f"{file} does not list {name}")
    if any(Path(name).name != name or name.startswith(".") for name in manifest.files):
        raise BundleError(f"{file} lists a file outside its folder")
    return manifest, sha256(data)


def _verified(file: Path, entry: FileEntry) -> bytes:
    try:
        data = file.read_bytes()
    except OSError as e:
        raise BundleError(f"{file} is missing or cannot be read: {e.strerror}") from e
    if sha256(data) != entry.sha256:
        raise BundleError(f"{file} has been altered: its sha256 is not the manifest's")
    return data


def feature_space(backbone: bytes, features: Ranges = (), output: str = "") -> str:
    """Id of the features a graph computes, or of some of them: heads fitted on them are valid in no other.

    `output`: of which of several outputs; the first one goes without, so that heads stay valid where others are added.
    """
    read = f"\0{json.dumps(features)}".encode() if features else b""
    return f"fs-{sha256(backbone + read)[:24]}" + (f"{OUTPUT_MARK}{output}" if output else "")


def write(models: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write a bundle atomically to `models/<name>/<version>` and return that folder.

    `manifest.files` is filled in here. The folder appears whole or not at all.

    Raises:
        BundleError: the version exists already (versions are immutable), or the name is reserved.
    """
    if manifest.name in RESERVED_NAMES:
        raise BundleError(f"the model name {manifest.name!r} is reserved")
    target = models / manifest.name / str(manifest.version)
    if target.exists():
        raise BundleError(f"{target} exists; a version is never overwritten: export the next one")
    entries = {name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in sorted(files.items())}
    fused = {"manifest_version": FUSED_VERSION} if manifest.input.parts else {}
    manifest = manifest.model_copy(update={"files": entries, **fused})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{manifest.version}-", dir=target.parent))
    try:
        for name, data in {**files, MANIFEST: _manifest_bytes(manifest)}.items():
            with (temporary / name).open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        temporary.chmod(0o755)
        _sync(temporary)
        temporary.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    load(target)
    return target


def _manifest_bytes(manifest: Manifest) -> bytes:
    """Encode a manifest; that of one output says nothing of several, so that earlier releases read it."""
    left = None if manifest.outputs else {"output", "features", "outputs"}
    return manifest.model_dump_json(indent=2, exclude=left).encode() + b"\n"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def next_version(models: Path, name: str) -> int:
    """First version number not in use under `models/<name>`."""
    return max(versions(models / name), default=0) + 1


def versions(folder: Path) -> list[int]:
    """Version numbers found in a model's folder, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())


def find(models: Path) -> dict[str, list[int]]:
    """Names and versions of the bundles under a models folder."""
    if not models.is_dir():
        raise BundleError(f"the models folder {models} does not exist")
    found = {p.name: versions(p) for p in sorted(models.iterdir()) if p.is_dir() and not p.name.startswith(".")}
    return {name: v for name, v in found.items() if v}


def resolve(model: Path) -> Path:
    """Return a version's folder for `DIR/NAME` (its newest version) or `DIR/NAME/VERSION`.

    Raises:
        BundleError: neither a bundle nor a folder of versions.
    """
    if (model / MANIFEST).is_file():
        return model
    found = versions(model)
    if not found:
        raise BundleError(f"{model} is neither a bundle nor a folder of bundle versions")
    return model / str(found[-1])
