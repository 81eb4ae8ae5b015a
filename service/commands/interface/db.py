"""`headway db`: the store's tables and its audit trail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The store of users' heads: its tables and its audit trail.", no_args_is_help=True)

Store = Annotated[str | None, typer.Option("--store", help="URL of the store; by default as `headway serve` finds it.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings.")]


@app.command()
def upgrade(store: Store = None, config: Config = None) -> None:
    """Make the store's tables, or bring them to this release; in one transaction, and nothing where they are."""
    from service.personal.upgrade import upgrade as run_upgrade

    before, after = asyncio.run(run_upgrade(_url(store, config)))
    typer.echo(f"revision {after}, as it was" if before == after else f"revision {before or 'none'} -> {after}")


@app.command()
def check(store: Store = None, config: Config = None) -> None:
    """Say of which revision the store's tables are; exit status 1 where this release cannot use them."""
    from service.personal import schema
    from service.personal.upgrade import current

    found = asyncio.run(current(_url(store, config)))
    typer.echo(f"revision {found or 'none'}; this release uses {schema.REVISION}")
    if found != schema.REVISION:
        raise typer.Exit(1)


@app.command()
def audit(
    store: Store = None,
    config: Config = None,
    user: Annotated[str | None, typer.Option("--user", help="Only of this user.")] = None,
    last: Annotated[int, typer.Option("--last", min=1, help="So many of the newest lines.")] = 100,
) -> None:
    """Print the audit trail, a JSON object a line: when, by whom, what, of whom (a pseudonym), the guard's verdict."""
    from service.commands.audit import run_audit

    run_audit(_url(store, config), user, last)


def _url(store: str | None, config: Path | None) -> str:
    from service.config import load

    return load({"store": store}, config).store
