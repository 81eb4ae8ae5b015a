"""Documents say what is so."""

import re
import subprocess
from pathlib import Path

import pytest

from service.commands.docs import DOCS, PARTS, rendered
from service.config import Settings

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("document", sorted({d for d, _ in PARTS.values()}))
def test_generated_parts_are_up_to_date(document):
    file = DOCS / document
    assert file.read_text() == rendered(file), "run `make docs`"


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_every_setting_is_a_flag(command):
    import typer.main

    from service.cli import app

    found = typer.main.get_command(app).commands[command]
    assert set(Settings.model_fields) <= {p.name for p in found.params}


@pytest.mark.parametrize("file", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda f: f.name)
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", file.read_text()):
        assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_make_help_lists_the_targets():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("install", "demo", "serve", "test", "check", "check-deploy", "zoo"):
        assert f"make {target} " in shown
