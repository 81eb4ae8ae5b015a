"""The results as JSON, as Markdown tables and as plots. `python bench/report.py serving.json` writes them anew."""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench import plots

COLUMNS = (
    "share of raw", "answers/s", "rows/s", "p50 ms", "p99 ms", "CPU-µs", "client CPU-µs", "MiB", "processes",
    "foreign cores",
)  # fmt: skip
LEGEND = """\
Shares are of the raw rate measured right before and after that server, rows against rows: of its best batch size
for one window a request, of the same batch size for more. CPU-µs: of the server's whole process tree, a request;
it holds on a busy machine, where rates do not. MiB: of the tree, shared pages in part. Foreign cores: processor
time that went to neither server nor client. Latencies are wrk's, corrected for coordinated omission. Every server
answers with the user's own head, was checked to do so before it was timed, and has 2 workers (Headway: as many
front ends as its name says, else its own default). Only Headway keeps heads in a store and calibrates; the others
read a table."""
FIELDS = (
    "share", "rate", "row_rate", "p50", "p99", "cpu_us", "client_us", "memory", "processes", "foreign_cores",
    "refused", "failed",
)  # fmt: skip


def write(results: dict[str, Any], out: Path) -> None:
    """Write `out`.json, `out`.md and, where there is something to plot, `out`-*.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(results, indent=1) + "\n"), (".md", table(results))):
        partial = out.with_suffix(f"{suffix}.part")
        partial.write_text(text)
        partial.rename(out.with_suffix(suffix))
    plots.draw(medians(results), out)


def medians(results: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, float]]:
    """Return medians over the rounds by (model, users, rows, body, concurrency, server)."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in results["cells"]:
        key = (cell["model"], cell["users"], cell["rows"], cell["body"], cell["concurrency"], cell["server"])
        groups[key].append(cell)
    return {key: {f: statistics.median(c[f] or 0 for c in cells) for f in FIELDS} for key, cells in groups.items()}


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = _head(results)
    found = medians(results)
    for group in sorted({key[:4] for key in found}):
        model, users, batch, body = group
        whose = f"{users:,} user{'s' * (users > 1)}, {batch} window{'s' * (batch > 1)} a request"
        lines += ["", f"## {model}, {whose}, body {body}", ""]
        lines += [f"| server | c | {' | '.join(COLUMNS)} |", "|--|" + "--:|" * (len(COLUMNS) + 1)]
        rows = [(key[5], key[4], value) for key, value in found.items() if key[:4] == group]
        for server, connections, v in sorted(rows, key=lambda r: (r[1], -r[2]["rate"])):
            cells = (
                f"{v['share']:.2f} | {v['rate']:.0f} | {v['row_rate']:.0f} | {v['p50'] / 1e3:.2f} "
                f"| {v['p99'] / 1e3:.2f} | {v['cpu_us']:.0f} | {v['client_us']:.0f}"
            )
            bad = f" ({v['refused']:.0f} refused, {v['failed']:.0f} failed)" if v["refused"] or v["failed"] else ""
            lines.append(
                f"| {server}{bad} | {connections} | {cells} | {v['memory'] / 2**20:.0f} | {v['processes']:.0f} "
                f"| {v['foreign_cores']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _head(results: dict[str, Any]) -> list[str]:
    where = results["machine"]
    lines = [
        f"# {results['title']}",
        "",
        f"`{results['command']}`, {results['options']['at']}, commit {where['commit'][:12]}: ",
    ]
    lines[-1] += f"{where['processor']}, {where['cores']} cores, Linux {where['kernel']}, {where['wrk']}."
    lines += ["", LEGEND]
    raw: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in results["raw"]:
        for batch, rate in one["rates"].items():
            raw[one["model"], int(batch)].append(rate)
    for (model, batch), rates in raw.items():
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        median = f"median {statistics.median(rates):.0f} rows/s ({spread})"
        lines += ["", f"Raw ONNX Runtime on {model}, no HTTP, batch {batch}: {median}."]
    lines.append("")
    for name, versions in results["versions"].items():
        packages = ", ".join(f"{k} {v}" for k, v in versions.items() if k != "setup")
        lines += [f"* **{name}**: {versions['setup']} ({packages})"]
    for name, reason in results["failures"].items():
        lines.append(f"* **not measured: {name}**: {' '.join(reason.split())}")
    return lines


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(json.loads(Path(name).read_text()), Path(name).with_suffix(""))
