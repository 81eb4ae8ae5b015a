"""The table of values in the chart's README, made from the comments of `values.yaml`.

`python tests/deploy/values_table.py` says whether the README agrees and exits with 1 where it does not; `--write` puts
the table in. A value is a leaf of `values.yaml`; its description is the comment that begins with `# --` above it.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "headway"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"


class ValuesTableError(ValueError):
    """A value without a description, or a README without the two marks."""


def descriptions(text: str) -> dict[str, str]:
    """Return the `# --` comment of every described key, by its dotted path."""
    found: dict[str, str] = {}
    path: list[str] = []
    comment: str | None = None
    for line in text.splitlines():
        if said := re.match(r"\s*# -- (.*)", line):
            comment = said[1].strip()
        elif key := re.match(r"( *)([A-Za-z]+):", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if comment:
                found[".".join(path)] = comment
            comment = None
    return found


def leaves(values: dict[str, Any], described: dict[str, str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value with its dotted path; a described mapping is one value, any other is gone into."""
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in described:
            yield from leaves(value, described, f"{path}.")
        else:
            yield path, value


def table(text: str) -> str:
    """Return the Markdown table of a `values.yaml`.

    Raises:
        ValuesTableError: a value has no description.
    """
    described = descriptions(text)
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for path, default in leaves(yaml.safe_load(text), described):
        if path not in described:
            raise ValuesTableError(f"{path} has no description in values.yaml: put a '# -- …' comment above it.")
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {described[path].replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def with_table(readme: str, text: str) -> str:
    """Return the README with the table of `text` between its marks.

    Raises:
        ValuesTableError: the marks are not there.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValuesTableError(f"The chart's README needs the lines {BEGIN} and {END} around its table of values.")
    return f"{head}{BEGIN}\n{table(text)}\n{END}{tail}"


def main(arguments: list[str]) -> int:
    """Check the README, or write it with `--write`; return the exit status."""
    readme = CHART / "README.md"
    current = readme.read_text(encoding="utf-8")
    wanted = with_table(current, (CHART / "values.yaml").read_text(encoding="utf-8"))
    if "--write" in arguments:
        readme.write_text(wanted, encoding="utf-8")
    elif current != wanted:
        sys.stderr.write("The chart's README is behind values.yaml: run python tests/deploy/values_table.py --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
