"""`headway evaluate`: a protocol over a bundle, in this process or through a running service."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from exporters import bundle as bundles
from exporters.bundle import Manifest
from models.data.parts import signals
from models.evaluation.personaliser import DEFAULT_METHOD, LocalPersonaliser, Outcome, Personaliser
from models.evaluation.protocols import ProtocolError, plan
from models.evaluation.run import GENERIC, PERSONAL, ZERO_SHOT, evaluate, log_run
from models.evaluation.tables import to_markdown, to_table
from models.heads.calibration import METHODS
from service.client import Client
from service.commands.process import running_service
from service.commands.progress import steps
from service.commands.tracks import INDUCTIVE, run_track

console = Console()

LARGE_BODY = 2**30
"""Bytes that the service started here accepts: four cycles of a dense, fast array are more than the default limit."""


class HttpPersonaliser:
    """The same calibrations and predictions through a running service."""

    def __init__(self, client: Client, manifest: Manifest) -> None:
        self.manifest = manifest
        self._client = client
        served = client.metadata(manifest.name)["parameters"]["feature_space"]
        if served != manifest.feature_space:
            raise ProtocolError(
                f"the service at {client.url} serves another version of {manifest.name} than the bundle given"
            )

    def calibrate(
        self,
        user: str,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        repetition: NDArray[np.int64],
        method: str = DEFAULT_METHOD,
    ) -> Outcome:
        """Calibrate over HTTP."""
        names = [self.manifest.labels[i] for i in y]
        report = self._client.calibrate(
            self.manifest.name, user, self._given(x), names, repetition.tolist(), method=method
        )
        return Outcome(report["outcome"], report["evidence"])

    def predict(self, user: str | None, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict over HTTP."""
        return self._client.infer(self.manifest.name, self._given(x), user=user)[0]

    def _given(self, x: NDArray[np.float32]) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """Windows as the service takes them: of a fused model by part."""
        spec = self.manifest.input
        return {s.name: s.x for s in signals(spec, x) if s.there.all()} if spec.parts else x

    def erase(self, user: str) -> None:
        """Erase the user on the service."""
        self._client.erase(self.manifest.name, user)


@contextmanager
def _personaliser(path: Path, via: str, url: str | None) -> Iterator[Personaliser]:
    if via == "local":
        yield LocalPersonaliser(path)
        return
    if via != "http":
        raise ProtocolError(f"--via is {via!r}; it can be local or http")
    manifest, _ = bundles.read_manifest(path)
    if url is not None:
        with Client(url) as client:
            yield HttpPersonaliser(client, manifest)
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        running_service(path.parent.parent, Path(folder), "--max-body-bytes", str(LARGE_BODY)) as service,
        Client(service.url) as client,
    ):
        yield HttpPersonaliser(client, manifest)


def _asked(methods: str) -> list[str]:
    """Read names with commas between; the default method always comes first, for its row is the product's."""
    names = [method.strip() for method in methods.split(",")]
    for name in names:
        if name not in METHODS:
            raise ProtocolError(f"--methods names {name!r}; the methods are {', '.join(METHODS)}")
    return [DEFAULT_METHOD, *(name for name in names if name != DEFAULT_METHOD)]


def run_evaluation(
    model: Path,
    data: Path,
    *,
    subjects: str | None,
    population: str | None,
    protocol: str,
    json_file: Path | None,
    markdown: Path | None,
    log: Path | None,
    via: str,
    url: str | None,
    baselines: bool,
    trained_baselines: bool,
    run: Path | None,
    allow_training_subjects: bool,
    command: str,
    methods: str = DEFAULT_METHOD,
    track: str = INDUCTIVE,
) -> None:
    """Evaluate, print the table and write what was asked for."""
    path = bundles.resolve(model)
    asked = _asked(methods)
    if track != INDUCTIVE:
        if via != "local":
            raise ProtocolError(f"the {track} track is scored in this process only: leave --via at local")
        if asked != [DEFAULT_METHOD]:
            raise ProtocolError(f"the {track} track begins at heads of the default method: leave --methods out")
        run_track(
            track,
            path,
            data,
            protocol=protocol,
            subjects=subjects,
            allow_training_subjects=allow_training_subjects,
            json_file=json_file,
            markdown=markdown,
            log=log,
            command=command,
        )
        return
    with _personaliser(path, via, url) as personaliser:
        plan_ = plan(
            protocol,
            personaliser.manifest,
            data,
            subjects=subjects,
            population=population,
            allow_training_subjects=allow_training_subjects,
        )
        trained = None
        if trained_baselines and plan_.people is not None:
            raise ProtocolError("--trained-baselines are networks of one sensor; leave them out for a fused model")
        if trained_baselines:
            from models.evaluation import trained as trained_methods

            trained = trained_methods.methods(len(plan_.labels), run)
        with steps("evaluating", console) as progress:
            result = evaluate(
                personaliser,
                plan_,
                methods=asked,
                with_baselines=baselines,
                trained=trained,
                progress=progress,
                command=command,
            )
    console.print(to_table(result))
    generic = result.table[GENERIC][ZERO_SHOT]
    console.print(f"0-shot: worst user {generic.worst:.1%} ({generic.worst_user})", highlight=False)
    for condition, s in result.table[PERSONAL].items():
        below = f"{len(s.harmed)} users below generic" + (f" ({', '.join(s.harmed)})" if s.harmed else "")
        console.print(f"{condition}: worst user {s.worst:.1%} ({s.worst_user}); {below}", highlight=False)
    for file, text in ((json_file, result.to_json), (markdown, lambda: to_markdown(result))):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text())
            console.print(f"written to {file}", highlight=False)
    if log is not None:
        console.print(f"run {log_run(log, result)} of {log}", highlight=False)
