"""The command `headway`: its groups, its version, and how it fails.

`service.commands.interface` says what each command takes; what it does is imported when it runs, so that serving never
loads torch.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from rich.console import Console

from service.commands.interface import bundle, data, db, demo, fusion, keys, models, portable, serving, sweeping, users

app = typer.Typer(
    name="headway",
    help="Serve one frozen backbone to everyone, and a personal head to each user.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for group in (models, sweeping, fusion, serving, users, portable, demo):
    app.add_typer(group.app)
app.add_typer(data.app, name="data")
app.add_typer(bundle.app, name="bundle")
app.add_typer(keys.app, name="key")
app.add_typer(db.app, name="db")
app.add_typer(portable.user_app, name="user")

error_console = Console(stderr=True)


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


def main() -> None:
    """Run the command; a failure is a sentence on stderr and exit status 1."""
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
