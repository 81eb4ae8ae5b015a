"""`headway serve` and `headway doctor`: a service, or what would become of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

# One for each setting; `serve` and `doctor` take them all.
Models = Annotated[Path | None, typer.Option(help="Folder of bundles; by default the shipped ones.")]
Host = Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")]
Port = Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one (default 8000).")]
MetricsPort = Annotated[
    int | None,
    typer.Option(help="Port of /metrics; the API's port serves it there; 0 takes a free one (default 9090)."),
]
Store = Annotated[str | None, typer.Option(help="URL of the store (default sqlite+aiosqlite:///headway.db).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or tensorrt (default cpu).")]
Frontends = Annotated[
    int | None, typer.Option(help="Processes that answer predictions (default 0: one a core, 8 at most).")
]
Threads = Annotated[
    int | None, typer.Option(help="ONNX Runtime threads inside one forward (default 0: by the machine).")
]
MaxBatch = Annotated[int | None, typer.Option(help="Most rows in one forward (default 64).")]
QueueRows = Annotated[int | None, typer.Option(help="Rows that may wait, a model (default 4096).")]
QueueSeconds = Annotated[float | None, typer.Option(help="s that rows may wait, by the measured rate (default 2).")]
MaxBodyBytes = Annotated[int | None, typer.Option(help="Largest request body (default 64 MiB).")]
ResidentHeads = Annotated[int | None, typer.Option(help="Personal heads in memory, a model (default 100000).")]
MaxDelayUs = Annotated[int | None, typer.Option(help="µs that a free runtime waits for more rows (default 0).")]
Dispatch = Annotated[str | None, typer.Option(help="Where batches run: auto, inline or thread.")]
HeadBankBytes = Annotated[int | None, typer.Option(help="Bytes of personal heads in memory, a model (default 1 GiB).")]
KeysFile = Annotated[Path | None, typer.Option(help="TOML file of keys; without it every request is answered.")]
DrainSeconds = Annotated[int | None, typer.Option(help="Time for requests in flight on SIGTERM (default 20).")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error (default info).")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings.")]


@app.command()
def serve(
    models: Models = None,
    host: Host = None,
    port: Port = None,
    metrics_port: MetricsPort = None,
    store: Store = None,
    device: Device = None,
    frontends: Frontends = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    queue_rows: QueueRows = None,
    queue_seconds: QueueSeconds = None,
    max_body_bytes: MaxBodyBytes = None,
    resident_heads: ResidentHeads = None,
    max_delay_us: MaxDelayUs = None,
    dispatch: Dispatch = None,
    head_bank_bytes: HeadBankBytes = None,
    keys: KeysFile = None,
    drain_seconds: DrainSeconds = None,
    log_level: LogLevel = None,
    config: Config = None,
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
        """Say where it answers, and what to try."""
        from exporters import bundle as bundles
        from service.commands.welcome import welcome

        names = list(bundles.find(settings.models))
        typer.echo(welcome(base, metrics_url, settings.models, names, keys=settings.keys is not None))

    with shared_folder() if settings.frontends > 1 else contextlib.nullcontext():
        from service.server import serve as run_server

        if not run_server(settings, announce):
            raise typer.Exit(1)


@app.command()
def doctor(
    models: Models = None,
    host: Host = None,
    port: Port = None,
    metrics_port: MetricsPort = None,
    store: Store = None,
    device: Device = None,
    frontends: Frontends = None,
    threads: Threads = None,
    max_batch: MaxBatch = None,
    queue_rows: QueueRows = None,
    queue_seconds: QueueSeconds = None,
    max_body_bytes: MaxBodyBytes = None,
    resident_heads: ResidentHeads = None,
    max_delay_us: MaxDelayUs = None,
    dispatch: Dispatch = None,
    head_bank_bytes: HeadBankBytes = None,
    keys: KeysFile = None,
    drain_seconds: DrainSeconds = None,
    log_level: LogLevel = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what `headway serve` with these settings will run on and why; exit status 1 when it would not be ready."""
    flags = dict(locals())
    from service.commands.doctor import run_doctor
    from service.config import load

    file, shown = flags.pop("config"), flags.pop("as_json")
    if not run_doctor(load(flags, file), as_json=shown):
        raise typer.Exit(1)
