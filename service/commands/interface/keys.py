"""`headway key`: keys of a service, in a file that holds their digests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Make and remove the keys that a service asks for.", no_args_is_help=True)

File = Annotated[Path, typer.Option(help="File of keys, as `headway serve --keys` takes it.")]
Name = Annotated[str, typer.Argument(help="Whose key it is; the audit trail names it.")]


@app.command()
def add(
    name: Name,
    file: File = Path("keys.toml"),
    planes: Annotated[
        str, typer.Option(help="data (predictions), control (users, calibrations, models), metrics; commas between.")
    ] = "data",
) -> None:
    """Make a key and print it: it is not kept. A service that is running knows it within two seconds."""
    from service.keys import add as make

    secret = make(file, name, [plane.strip() for plane in planes.split(",") if plane.strip()])
    typer.echo(secret)
    typer.echo(f"{name} ({planes}) is in {file}; clients send the header 'Authorization: Bearer KEY'", err=True)


@app.command()
def remove(name: Name, file: File = Path("keys.toml")) -> None:
    """Remove a key; a service that is running refuses it within two seconds."""
    from service.keys import remove as take

    take(file, name)
    typer.echo(f"{name} is no more in {file}")


@app.command("list")
def names(file: File = Path("keys.toml")) -> None:
    """List names and planes."""
    from service.keys import PLANES, read

    for name, key in read(file).items():
        typer.echo(f"{name}  {','.join(plane for plane in PLANES if plane in key.planes)}")
