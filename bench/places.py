"""Where the benchmarks keep what they make: models, heads, competitors' environments, logs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".bench"
MODELS, HEADS, STORES, LOGS, ENVIRONMENTS = (HOME / n for n in ("models", "heads", "stores", "logs", "env"))
RESULTS = ROOT / "docs" / "benchmarks"
SERVERS = ROOT / "bench" / "servers"
