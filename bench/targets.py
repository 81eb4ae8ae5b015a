"""Targets beside what was measured: a table that ends in PASS or FAIL, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One target: what it is of, what was wanted, what was measured, and whether that is it; None: not judged."""

    name: str
    wanted: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """The last column."""
        return {True: "PASS", False: "**FAIL**", None: "not judged"}[self.met]


def table(targets: Sequence[Target]) -> str:
    """Return the targets as Markdown."""
    lines = ["| target | wanted | measured | |", "|--|--|--|--|"]
    lines += [f"| {t.name} | {t.wanted} | {t.measured} | {t.verdict} |" for t in targets]
    return "\n".join(lines) + "\n"


def missed(targets: Sequence[Target]) -> bool:
    """Return whether any target was missed."""
    return any(t.met is False for t in targets)


def write(file: Path, results: dict[str, Any], targets: Sequence[Target]) -> None:
    """Write results and targets as JSON, and print the table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps({"targets": [asdict(t) for t in targets], **results}, indent=1) + "\n")
    partial.rename(file)
    print(f"\n{table(targets)}\n{'FAIL' if missed(targets) else 'PASS'}; all figures: {file}")
