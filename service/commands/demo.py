"""`headway demo`: the whole loop on people that the model never saw, through the real service."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from exporters import bundle as bundles
from exporters.bundle import Manifest
from models.data.recordings import Recordings, load_folder
from models.data.windows import WindowError, Windows, WindowSpec, first_windows, windows
from service.client import Client
from service.commands.process import RunningService, running_service
from service.commands.progress import steps
from service.commands.prometheus import quantiles
from service.config import ZOO

console = Console()

FEW = (1, 5)
HELD_OUT = 3
MOST_SUBJECTS = 4
LATENCY_REQUESTS = 500


@dataclass(frozen=True, slots=True)
class Column:
    """Windows on which heads are scored, named for what they are."""

    name: str
    sessions: frozenset[str]
    repetitions: frozenset[int] | None


@dataclass(slots=True)
class Curve:
    """Accuracy of held-out subjects by labelled windows a class: `personal[shots][column]` is one value a subject."""

    columns: tuple[str, ...]
    generic: dict[str, list[float]] = field(default_factory=dict)
    personal: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class Story:
    """What the demo found, for the table and the picture."""

    source: str
    model: str
    subjects: list[str]
    curve: Curve
    guard: str = ""
    rollback: str = ""
    latency: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def run_demo(source: str, out: Path, seed: int, command: str) -> Story:
    """Run the loop on `watch`, `synth`, or a folder of recordings; print a table and write a picture into `out`."""
    from service.commands.demo_report import report

    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    recordings = _recordings(source, out, seed)
    models, name, held_out = _model(recordings, source, out, seed, command)
    manifest = bundles.load(bundles.resolve(models / name)).manifest
    console.print(
        f"[bold]Serving[/] {name}; people it never saw: {', '.join(r.stem for r in held_out)}", highlight=False
    )
    with running_service(models, out / f"store-{time.time_ns()}") as service, Client(service.url) as client:
        story = Story(source, name, [r.stem for r in held_out], _learning_curve(client, manifest, held_out))
        story.guard, story.rollback = _guard_and_rollback(client, manifest, held_out[0], seed)
        story.latency = _latency(client, service, manifest, held_out[0])
    story.seconds["whole loop"] = time.monotonic() - begin
    report(story, out, console)
    return story


def _recordings(source: str, out: Path, seed: int) -> list[Recordings]:
    if source == "watch":
        from models.data.watch import convert_watch

        folder = out / "watch"
        if not folder.exists():
            convert_watch(folder)
        console.print("[bold]Data[/]: smartwatch recordings of 10 people doing 7 exercises (inside PyPI's seglearn)")
    elif source == "synth":
        from models.data.synthetic import Design, write_folder

        folder = out / f"synth-{seed}"
        if not folder.exists():
            write_folder(folder, 12, Design(seed=seed))
        console.print("[bold]Data[/]: 12 synthetic users, 8 electrodes, 7 gestures")
    else:
        folder = Path(source)
        console.print(f"[bold]Data[/]: recordings in {folder}")
    return load_folder(folder, "*,!onesubject")


def _model(
    recordings: list[Recordings], source: str, out: Path, seed: int, command: str
) -> tuple[Path, str, list[Recordings]]:
    """Take a shipped bundle made for such recordings, or train one on all but a few subjects."""
    shipped = _shipped(recordings)
    if shipped is not None:
        trained_on = {s["digest"] for s in shipped.provenance.get("subjects", [])}
        strangers = [r for r in recordings if r.digest not in trained_on]
        if strangers:
            console.print(
                f"[bold]Model[/]: the shipped bundle {shipped.name}, trained on {len(trained_on)} other people"
            )
            # Those that no published protocol scores come first: a demo should not wear out a test set.
            strangers.sort(key=lambda r: r.in_paper)
            return ZOO, shipped.name, strangers[:MOST_SUBJECTS]
    order = np.random.default_rng(seed).permutation(len(recordings))
    held = {int(i) for i in order[: min(HELD_OUT, max(1, len(recordings) // 3))]}
    train = [r for i, r in enumerate(recordings) if i not in held]
    return (
        _trained(train, Path(source).name, out, seed, command),
        Path(source).name,
        [recordings[i] for i in sorted(held)],
    )


def _shipped(recordings: list[Recordings]) -> Manifest | None:
    first = recordings[0]
    for name in bundles.find(ZOO) if ZOO.is_dir() else {}:
        manifest = bundles.load(bundles.resolve(ZOO / name)).manifest
        spec = manifest.input
        fits = (
            spec.window_shape[0] == first.channels and spec.sample_rate == first.fs and spec.modality == first.modality
        )
        if fits and set(manifest.labels) == set(first.label_names) and "subjects" in manifest.provenance:
            known = {s["digest"] for s in manifest.provenance["subjects"]}
            if known & {r.digest for r in recordings}:
                return manifest
    return None


def _trained(train: list[Recordings], name: str, out: Path, seed: int, command: str) -> Path:
    from exporters.export import export_run
    from service.commands.training import train_on

    run, models = out / f"run-{time.time_ns()}", out / "models"
    console.print(f"[bold]Training[/] on {len(train)} people")
    train_on(train, run, quick=True, seed=seed, command=command)
    path = export_run(run, models, name=name)
    parity = bundles.load(path).manifest.parity
    console.print(
        f"[bold]Exported[/] to {path}: ONNX against torch on {parity['windows']} real windows, "
        f"largest error {parity['max_error']:.1e} (allowed {parity['tolerance']:.0e})",
        highlight=False,
    )
    return models


def columns_of(rec: Recordings) -> tuple[Column, ...]:
    """Where heads calibrated in the first session are scored.

    The later half of the first session's repetitions, and every other session; each named for what it is.
    """
    first, *others = rec.session_names
    repetitions = sorted({int(r) for r in rec.repetition[rec.session == 0]})
    later = frozenset(repetitions[len(repetitions) // 2 :])
    if rec.modality == "imu":
        names = ("later part of the same recording", "the other arm")
    else:
        names = (f"later repetitions of {first}", ", ".join(others))
    found = [Column(names[0], frozenset({first}), later)]
    if others:
        found.append(Column(names[1], frozenset(others), None))
    return tuple(found)


def _learning_curve(client: Client, manifest: Manifest, subjects: list[Recordings]) -> Curve:
    columns = columns_of(subjects[0])
    curve = Curve(tuple(c.name for c in columns))
    spec = WindowSpec(manifest.input.window_shape[1], manifest.input.stride)
    with steps("learning curve", console) as step:
        for i, rec in enumerate(subjects):
            tests = {c.name: windows(rec, spec, sessions=c.sessions, repetitions=c.repetitions) for c in columns}
            for column, test in tests.items():
                curve.generic.setdefault(column, []).append(_accuracy(client, manifest, rec, test, None))
            plans = _calibrations(rec, spec)
            for j, (shots, chosen) in enumerate(plans.items()):
                step(f"{rec.stem}, {shots}", i * len(plans) + j + 1, len(subjects) * len(plans))
                user = f"{rec.stem} {shots}"
                report = _calibrate(client, manifest, rec, chosen, user)
                curve.outcomes.setdefault(shots, []).append(report["outcome"])
                curve.per_class[shots] = len(chosen) / len(np.unique(chosen.y))
                for column, test in tests.items():
                    accuracy = _accuracy(client, manifest, rec, test, user)
                    curve.personal.setdefault(shots, {}).setdefault(column, []).append(accuracy)
    return curve


def _calibrations(rec: Recordings, spec: WindowSpec) -> dict[str, Windows]:
    """Growing calibration sets from the first half of the first session's repetitions."""
    session = rec.session_names[0]
    repetitions = sorted({int(r) for r in rec.repetition[rec.session == 0]})
    half = repetitions[: max(1, len(repetitions) // 2)]
    plans: dict[str, Windows] = {}
    for n in FEW:
        try:
            plans[f"{n} window{'s' if n > 1 else ''} a class"] = first_windows(rec, spec, n, session=session)
        except WindowError:
            continue
    for k in range(1, len(half) + 1):
        chosen = windows(rec, spec, sessions={session}, repetitions=set(half[:k]))
        plans[f"{k} repetition{'s' if k > 1 else ''}"] = chosen
    return plans


def _names(rec: Recordings, y: NDArray[np.int64]) -> list[str]:
    return [rec.label_names[i] for i in y]


def _calibrate(
    client: Client,
    manifest: Manifest,
    rec: Recordings,
    chosen: Windows,
    user: str,
    labels: list[str] | None = None,
    **fields: str,
) -> dict[str, Any]:
    names = labels or _names(rec, chosen.y)
    return client.calibrate(manifest.name, user, chosen.x, names, chosen.repetition.tolist(), **fields)


def _accuracy(client: Client, manifest: Manifest, rec: Recordings, test: Windows, user: str | None) -> float:
    probabilities, _ = client.infer(manifest.name, test.x, user=user)
    said = np.array(manifest.labels)[probabilities.argmax(1)]
    return float((said == np.array(_names(rec, test.y))).mean())


def _guard_and_rollback(client: Client, manifest: Manifest, rec: Recordings, seed: int) -> tuple[str, str]:
    """Calibrate well, then with labels drawn at random; then calibrate well again and roll back."""
    spec = WindowSpec(manifest.input.window_shape[1], manifest.input.stride)
    chosen = list(_calibrations(rec, spec).values())[-1]
    user = f"{rec.stem} guard"
    _calibrate(client, manifest, rec, chosen, user)
    block = np.unique(chosen.recording, return_inverse=True)[1]
    drawn = np.random.default_rng(seed).integers(0, len(manifest.labels), block.max() + 1)
    wrong = [manifest.labels[i] for i in drawn[block]]
    refused = _calibrate(client, manifest, rec, chosen, user, wrong)
    guard = (
        f"{refused['outcome']}: {refused['reason']}; version {refused['active_version'] or 'shared'} goes on serving"
    )
    second = _calibrate(client, manifest, rec, chosen, user)
    state = client.rollback(manifest.name, user)
    rollback = (
        f"another good calibration made version {second['active_version']} active (version {refused['version']} is the "
        f"refused one); rolled back, version {state['active']} serves again"
    )
    return guard, rollback


def _latency(client: Client, service: RunningService, manifest: Manifest, rec: Recordings) -> str:
    """Send single windows and read p50 and p99 from /metrics."""
    spec = WindowSpec(manifest.input.window_shape[1], manifest.input.stride)
    x = windows(rec, spec, sessions={rec.session_names[-1]}).x[:LATENCY_REQUESTS]
    body = [{"inputs": window.tolist()} for window in x]
    for message in body:
        client.request(
            "POST", f"/v2/models/{manifest.name}/predict", params={"user_id": f"{rec.stem} guard"}, json=message
        )
    found = quantiles(service.metrics_url, "headway_request_duration_seconds", {"endpoint": "predict"}, (0.5, 0.99))
    return (
        f"p50 {found[0.5] * 1e3:.1f} ms, p99 {found[0.99] * 1e3:.1f} ms over {len(body)} requests of one window (JSON)"
    )
