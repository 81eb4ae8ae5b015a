"""Writes the generated parts of the documents: `make docs`. A test fails when they are out of date."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from service import errors
from service.app import create_app
from service.config import Settings
from service.state import Services

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"


def settings_table() -> str:
    """Every setting: flag, environment variable, default, meaning."""
    lines = ["| flag | environment | default | meaning |", "|--|--|--|--|"]
    for name, field in Settings.model_fields.items():
        default = "the shipped bundles" if name == "models" else f"`{field.default}`"
        lines.append(f"| `--{name.replace('_', '-')}` | `HEADWAY_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def errors_table() -> str:
    """Every refusal: status, code, when."""
    found = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, errors.HeadwayError)]
    lines = ["| status | `code` | when |", "|--|--|--|"]
    found.sort(key=lambda e: (e.status, e.code))
    lines += [f"| {e.status} | `{e.code}` | {(e.__doc__ or '').splitlines()[0]} |" for e in found]
    return "\n".join(lines)


def metrics_table() -> str:
    """Every metric: name, type, labels, meaning."""
    services: Services = create_app(Settings()).state.services
    lines = ["| metric | type | labels | meaning |", "|--|--|--|--|"]
    for family in services.metrics.exposed.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in _labels(services, family.name))
        lines.append(f"| `{name}` | {family.type} | {labels or '–'} | {family.documentation} |")
    return "\n".join(lines)


def _labels(services: Services, name: str) -> tuple[str, ...]:
    for metric in vars(services.metrics).values():
        if getattr(metric, "_name", None) == name:
            return tuple(metric._labelnames)
    if name == "headway_build_info":
        return ("version", "provider", "torch_free")
    return ("model", "version") if name == "headway_model_ready" else ("model",)


def endpoints_table() -> str:
    """Every endpoint, from the OpenAPI document."""
    lines = ["| | path | what |", "|--|--|--|"]
    paths = create_app(Settings()).openapi()["paths"]
    lines += [
        f"| {verb.upper()} | `{path}` | {what['summary']} |"
        for path in sorted(paths)
        for verb, what in paths[path].items()
    ]
    return "\n".join(lines)


PARTS = {
    "settings": ("configuration.md", settings_table),
    "metrics": ("configuration.md", metrics_table),
    "endpoints": ("api.md", endpoints_table),
    "errors": ("api.md", errors_table),
}


def rendered(file: Path) -> str:
    """A document with its generated parts made anew."""
    text = file.read_text()
    for name, (document, table) in PARTS.items():
        if document == file.name:
            head, rest = text.split(BEGIN.format(name), 1)
            _, tail = rest.split(END, 1)
            text = f"{head}{BEGIN.format(name)}\n{table()}\n{END}{tail}"
    return text


def main() -> None:
    """Write all documents with generated parts."""
    for document in sorted({document for document, _ in PARTS.values()}):
        file = DOCS / document
        file.write_text(rendered(file))
        sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
