"""The command `headway`: one thin function a command; each imports what it needs, so that serving never loads torch."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="headway",
    help="Serve one frozen backbone to everyone, and a personal head to each user.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Get, make and check recordings.", no_args_is_help=True)
bundle_app = typer.Typer(help="List, verify and show bundles.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(bundle_app, name="bundle")

console = Console()
error_console = Console(stderr=True)

DataDir = Annotated[Path, typer.Option("--data", help="Folder of recordings, one .npz a subject (docs/recordings.md).")]
Subjects = Annotated[
    str, typer.Option("--subjects", help="Globs over file names, comma-separated; a leading ! leaves out: 'a_*,!a_3'.")
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness; recorded.")]
Url = Annotated[str, typer.Option("--url", help="Where the service answers.")]
ModelName = Annotated[str, typer.Option("--model", help="Name of the model on the service.")]
User = Annotated[str, typer.Option("--user", help="The user's id.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from service import __version__

        typer.echo(f"headway {__version__}")
        raise typer.Exit


@app.callback()
def version_option(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Serve one frozen backbone to everyone, and a personal head to each user."""


@data_app.command("download")
def data_download(
    dataset: Annotated[str, typer.Argument(help="myo: the Myo armband recordings of Côté-Allard et al. 2019.")],
    out: Out = Path("data/myo"),
) -> None:
    """Download a public data set and convert it into recordings (needs a network and git)."""
    from models.data import download
    from service.commands.progress import steps

    if dataset != "myo":
        raise typer.BadParameter(f"unknown data set {dataset!r}; there is: myo")
    with steps("Myo recordings") as progress:
        files = download.download_myo(out, progress=progress)
    console.print(f"{len(files)} subjects written to {out}\n{download.MYO_NOTICE}", highlight=False)


@data_app.command("watch")
def data_watch(out: Out = Path("data/watch")) -> None:
    """Convert the smartwatch recordings inside PyPI's seglearn (10 people, 7 exercises)."""
    from models.data import watch

    files = watch.convert_watch(out)
    console.print(f"{len(files)} subjects written to {out}\n{watch.WATCH_NOTICE}", highlight=False)


@data_app.command("synth")
def data_synth(
    out: Out = Path("data/synth"),
    users: Annotated[int, typer.Option(help="Number of users.")] = 12,
    channels: Annotated[int, typer.Option(help="Electrodes around the forearm.")] = 8,
    fs: Annotated[float, typer.Option(help="Sample rate in Hz.")] = 200.0,
    labels: Annotated[int, typer.Option(help="Number of gestures.")] = 7,
    repetitions: Annotated[int, typer.Option(help="Repetitions of each gesture, a session.")] = 4,
    sessions: Annotated[int, typer.Option(help="Sessions.")] = 2,
    correlation: Annotated[
        float, typer.Option(help="Source–target correlation: 1 = one task for all, 0 = unrelated.")
    ] = 0.8,
    rotation: Annotated[
        float, typer.Option(help="Spread of the electrodes' rotation between users, in electrodes.")
    ] = 0.3,
    seed: Seed = 0,
) -> None:
    """Write synthetic users: plausible multichannel sEMG with per-user gain, electrode rotation and noise."""
    from models.data.synthetic import Design, write_folder
    from service.commands.progress import steps

    design = Design(
        channels=channels,
        fs=fs,
        labels=labels,
        repetitions=repetitions,
        sessions=sessions,
        correlation=correlation,
        rotation=rotation,
        seed=seed,
    )
    with steps("synthetic users") as progress:
        files = write_folder(out, users, design, progress=progress)
    console.print(f"{len(files)} users written to {out}", highlight=False)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder of recordings.")],
    subjects: Subjects = "*",
) -> None:
    """List subjects, channels, rates, labels and repetitions, and whatever is wrong with a file."""
    from models.data.describe import describe
    from service.commands.tables import recordings_table

    rows = describe(folder, subjects)
    console.print(recordings_table(rows))
    for row in rows:
        for problem in row["problems"]:
            console.print(f"[red]{row['file']}:[/] {problem}", highlight=False, soft_wrap=True)
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@app.command()
def train(
    data: DataDir,
    out: Out,
    subjects: Subjects = "*",
    recipe: Annotated[
        str, typer.Option(help="Training recipe: episodic, or handmade (no learned branch).")
    ] = "episodic",
    steps: Annotated[int | None, typer.Option(min=1, help="Most gradient steps of one network (default 2500).")] = None,
    unit: Annotated[
        str, typer.Option(help="Unit of the samples, for the model card: 'mV', 'armband counts'.")
    ] = "counts",
    quick: Annotated[bool, typer.Option(help="A small budget: minutes become seconds, for demos and tests.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in --out.")] = False,
    seed: Seed = 0,
) -> None:
    """Train a backbone and its population prior on recordings."""
    from service.commands.training import run_training

    run_training(
        data,
        out,
        subjects=subjects,
        recipe=recipe,
        steps=steps,
        unit=unit,
        quick=quick,
        resume=resume,
        seed=seed,
        command=_command(),
    )


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder that `headway train` wrote.")],
    models: Annotated[Path, typer.Option("--models", help="Folder of bundles to export into.")],
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model; by default the run's folder name.")
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the manifest and the card.")] = "Apache-2.0",
    citation: Annotated[str, typer.Option(help="What to cite, for the card.")] = "",
    description: Annotated[str, typer.Option(help="One sentence, for the card.")] = "",
) -> None:
    """Export a run to an ONNX bundle, through the parity gate."""
    from exporters.export import export_run

    path = export_run(run, models, name=name, licence=licence, citation=citation, description=description)
    from exporters import bundle as bundles

    parity = bundles.load(path).manifest.parity
    console.print(
        f"parity on {parity['windows']} real windows, batches {parity['batches']}: "
        f"largest error {parity['max_error']:.1e} (allowed {parity['tolerance']:.0e})\nwritten to {path}",
        highlight=False,
    )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Bundle: DIR/NAME or DIR/NAME/VERSION.")],
    data: DataDir,
    subjects: Annotated[str | None, typer.Option("--subjects", help="Globs of the subjects to score.")] = None,
    population: Annotated[
        str | None, typer.Option("--population", help="Globs of the population, for baselines that need one.")
    ] = None,
    protocol: Annotated[str, typer.Option(help="myo or cycles (docs/evaluation.md).")] = "cycles",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the table as Markdown.")] = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="Append the run to a log, so that runs are counted.")
    ] = None,
    via: Annotated[
        str, typer.Option(help="local, or http: the same calibrations through a running service.")
    ] = "local",
    url: Annotated[
        str | None, typer.Option("--url", help="Service for --via http; without it one is started here.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Score the closed-form baselines too.")] = True,
    trained_baselines: Annotated[
        bool, typer.Option("--trained-baselines", help="Also train from scratch and fine-tune per user (slow).")
    ] = False,
    run: Annotated[Path | None, typer.Option("--run", help="Training run, for the fine-tuning baseline.")] = None,
    allow_training_subjects: Annotated[
        bool, typer.Option("--allow-training-subjects", help="Score subjects that the model was trained on.")
    ] = False,
) -> None:
    """Score a bundle: generic, baselines and the personal head, by labelled windows."""
    from service.commands.evaluation import run_evaluation

    run_evaluation(
        model,
        data,
        subjects=subjects,
        population=population,
        protocol=protocol,
        json_file=json_file,
        markdown=markdown,
        log=log,
        via=via,
        url=url,
        baselines=baselines,
        trained_baselines=trained_baselines,
        run=run,
        allow_training_subjects=allow_training_subjects,
        command=_command(),
    )


@app.command()
def serve(
    models: Annotated[Path | None, typer.Option(help="Folder of bundles; by default the shipped ones.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one (default 8000).")] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(help="Port of /metrics; the API's port serves it there; 0 takes a free one (default 9090)."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="URL of the store (default sqlite+aiosqlite:///headway.db).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or tensorrt (default cpu).")] = None,
    frontends: Annotated[
        int | None, typer.Option(help="Processes that answer predictions (default 0: one a core, 8 at most).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="ONNX Runtime threads inside one forward (default 0: by the machine).")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most rows in one forward (default 64).")] = None,
    queue_rows: Annotated[int | None, typer.Option(help="Rows that may wait, a model (default 4096).")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Largest request body (default 64 MiB).")] = None,
    resident_heads: Annotated[
        int | None, typer.Option(help="Personal heads in memory, a model (default 100000).")
    ] = None,
    max_delay_us: Annotated[
        int | None, typer.Option(help="µs that a free runtime waits for more rows (default 0).")
    ] = None,
    dispatch: Annotated[str | None, typer.Option(help="Where batches run: auto, inline or thread.")] = None,
    head_bank_bytes: Annotated[
        int | None, typer.Option(help="Bytes of personal heads in memory, a model (default 1 GiB).")
    ] = None,
    drain_seconds: Annotated[
        int | None, typer.Option(help="Time for requests in flight on SIGTERM (default 20).")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error (default info).")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Serve bundles over HTTP. Every option is also an environment variable: --max-batch is HEADWAY_MAX_BATCH."""
    flags = dict(locals())
    import os

    # Small matrices: a second BLAS thread costs more than it gives, and takes the core from the other engine's forward.
    # Read when numpy is first imported, which is below.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

    from service.config import load
    from service.frontends.folder import shared_folder

    file = flags.pop("config")
    settings = load(flags, file).resolved()

    def announce(base: str, metrics_url: str) -> None:
        from exporters import bundle as bundles
        from service.commands.welcome import welcome

        names = list(bundles.find(settings.models))
        typer.echo(welcome(base, metrics_url, settings.models, names))

    with shared_folder() if settings.frontends > 1 else contextlib.nullcontext():
        from service.server import serve as run_server

        if not run_server(settings, announce):
            raise typer.Exit(1)


@app.command()
def doctor(
    models: Annotated[Path | None, typer.Option(help="Folder of bundles; by default the shipped ones.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the API (default 8000).")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics (default 9090).")] = None,
    store: Annotated[str | None, typer.Option(help="URL of the store.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or tensorrt (default cpu).")] = None,
    threads: Annotated[int | None, typer.Option(help="ONNX Runtime threads inside one forward.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most rows in one forward (default 64).")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what `headway serve` with these settings will run on and why; exit status 1 when it would not be ready."""
    flags = dict(locals())
    from service.commands.doctor import run_doctor
    from service.config import load

    file, shown = flags.pop("config"), flags.pop("as_json")
    if not run_doctor(load(flags, file), as_json=shown):
        raise typer.Exit(1)


@app.command()
def calibrate(
    model: ModelName,
    user: User,
    file: Annotated[Path, typer.Option("--file", help="A subject's recordings (.npz).")],
    url: Url = "http://127.0.0.1:8000",
    session: Annotated[str | None, typer.Option(help="Session to use; by default the first.")] = None,
    repetitions: Annotated[str, typer.Option(help="Repetitions to use: '0', '0,1' or '0-3'.")] = "0",
    windows: Annotated[
        int | None, typer.Option(min=1, help="Use only so many windows a class, from the first recordings.")
    ] = None,
    method: Annotated[str, typer.Option(help="map, lda, ncm, ridge, logistic or auto.")] = "map",
    mode: Annotated[str, typer.Option(help="update or replace.")] = "update",
    activate: Annotated[str, typer.Option(help="if_better, always or never.")] = "if_better",
) -> None:
    """Calibrate a user on a running service from recordings, and print the guard's verdict."""
    from service.commands.client import run_calibration

    run_calibration(
        url, model, user, file, session, repetitions, windows, {"method": method, "mode": mode, "activate": activate}
    )


@app.command()
def predict(
    model: ModelName,
    file: Annotated[Path, typer.Option("--file", help="A subject's recordings (.npz).")],
    user: Annotated[str | None, typer.Option("--user", help="Whose head answers; without it the shared one.")] = None,
    url: Url = "http://127.0.0.1:8000",
    session: Annotated[str | None, typer.Option(help="Session to use; by default the last.")] = None,
    repetitions: Annotated[
        str | None, typer.Option(help="Repetitions to use: '0', '0,1' or '1-3'; by default all.")
    ] = None,
) -> None:
    """Predict a subject's recordings on a running service, and print accuracy by gesture."""
    from service.commands.client import run_prediction

    run_prediction(url, model, file, user, session, repetitions)


@app.command()
def demo(
    data: Annotated[
        str,
        typer.Option(
            "--data", help="watch (real smartwatch data), synth, or a folder of recordings such as the Myo ones."
        ),
    ] = "watch",
    out: Out = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """Train, export, serve, calibrate and measure on people the model never saw, in one go."""
    from service.commands.demo import run_demo

    run_demo(data, out, seed, command=_command())


@bundle_app.command("list")
def bundle_list(
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of bundles; by default the shipped ones.")
    ] = None,
) -> None:
    """List the bundles of a folder."""
    from exporters import bundle as bundles
    from service.commands.tables import bundles_table
    from service.config import ZOO

    console.print(bundles_table(models or ZOO, bundles.find(models or ZOO)))


@bundle_app.command("verify")
def bundle_verify(path: Annotated[Path, typer.Argument(help="Bundle: DIR/NAME or DIR/NAME/VERSION.")]) -> None:
    """Check a bundle's digests and prior, and that its graph runs."""
    from exporters import bundle as bundles
    from service.engine.runtime import Runtime

    bundle = bundles.load(bundles.resolve(path))
    Runtime.of(bundle, max_batch=2)
    console.print(
        f"{bundle.manifest.name} version {bundle.manifest.version}: {len(bundle.manifest.files)} files as listed, "
        f"features {bundle.manifest.feature_dim}, digest {bundle.digest[:16]}",
        highlight=False,
    )


@bundle_app.command("convert")
def bundle_convert(
    path: Annotated[Path, typer.Argument(help="FP32 bundle: DIR/NAME or DIR/NAME/VERSION.")],
    models: Annotated[Path, typer.Option("--models", help="Folder of bundles to write the variant into.")],
    precision: Annotated[str, typer.Option(help="fp16.")] = "fp16",
    data: Annotated[
        Path | None, typer.Option("--data", help="Recordings to compare on; synthetic windows without.")
    ] = None,
    subjects: Subjects = "*",
    seed: Seed = 0,
) -> None:
    """Convert a bundle to half precision, through a gate on features and on what heads decide."""
    if precision != "fp16":
        raise typer.BadParameter(f"unknown precision {precision!r}; there is: fp16")
    from service.commands.conversion import run_conversion

    console.print(run_conversion(path, models, data=data, subjects=subjects, seed=seed), highlight=False)


@bundle_app.command("show")
def bundle_show(path: Annotated[Path, typer.Argument(help="Bundle: DIR/NAME or DIR/NAME/VERSION.")]) -> None:
    """Print a bundle's manifest."""
    from exporters import bundle as bundles

    manifest, _ = bundles.read_manifest(bundles.resolve(path))
    typer.echo(manifest.model_dump_json(indent=2))


def _command() -> str:
    """The command as it was given, for records."""
    return " ".join(["headway", *sys.argv[1:]])


def main() -> None:
    """Run the command; a failure is a sentence on stderr and exit status 1."""
    import os

    try:
        app()
    except (ValueError, RuntimeError, OSError, ImportError) as e:
        if os.environ.get("HEADWAY_TRACEBACK"):
            raise
        error_console.print(f"[red]headway:[/] {_sentence(e)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        error_console.print("interrupted")
        raise SystemExit(130) from None


def _sentence(error: Any) -> str:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        extra = {"onnxruntime": "cpu", "seglearn": "demo"}.get(package, "train")
        return f"this command needs {package}, which is not installed: pip install 'headway\\[{extra}]'"
    text = str(error) or type(error).__name__
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
