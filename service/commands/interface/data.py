"""`headway data`: recordings, got, made and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.interface.options import Out, Seed, Subjects, console

app = typer.Typer(help="Get, make and check recordings.", no_args_is_help=True)


@app.command("download")
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


@app.command("watch")
def data_watch(
    out: Out = Path("data/watch"),
    apart: Annotated[
        bool, typer.Option("--apart", help="Accelerometer and gyroscope in a folder each, as for `headway fuse`.")
    ] = False,
) -> None:
    """Convert the smartwatch recordings inside PyPI's seglearn (10 people, 7 exercises)."""
    from models.data import watch

    files = watch.convert_watch(out, apart=apart)
    console.print(
        f"{len({file.name for file in files})} subjects written to {out}\n{watch.WATCH_NOTICE}", highlight=False
    )


@app.command("synth")
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


@app.command("check")
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
