"""`headway serve` and `headway doctor`: a service, or what would become of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


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
    queue_seconds: Annotated[
        float | None, typer.Option(help="s that rows may wait, by the measured rate (default 2).")
    ] = None,
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
        """Say where it answers, and what to try."""
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
    queue_seconds: Annotated[
        float | None, typer.Option(help="s that rows may wait, by the measured rate (default 2).")
    ] = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what `headway serve` with these settings will run on and why; exit status 1 when it would not be ready."""
    flags = dict(locals())
    from service.commands.doctor import run_doctor
    from service.config import load

    file, shown = flags.pop("config"), flags.pop("as_json")
    if not run_doctor(load(flags, file), as_json=shown):
        raise typer.Exit(1)
