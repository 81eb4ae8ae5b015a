"""What a model has done since it was loaded, in the shape of Triton's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from service.engine.jobs import BatchReport, Result


@dataclass(slots=True)
class _Total:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(seconds * 1e9)

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class _Batches:
    gathering: _Total = field(default_factory=_Total)
    inference: _Total = field(default_factory=_Total)
    heads: _Total = field(default_factory=_Total)

    def shown(self) -> dict[str, dict[str, int]]:
        return {
            "compute_input": self.gathering.shown(),
            "compute_infer": self.inference.shown(),
            "compute_output": self.heads.shown(),
        }


@dataclass(slots=True)
class ModelStatistics:
    """Counts and durations of one version. Requests are counted on the event loop, batches where they run."""

    last_inference: int = 0
    rows: int = 0
    batches: int = 0
    success: _Total = field(default_factory=_Total)
    fail: _Total = field(default_factory=_Total)
    queue: _Total = field(default_factory=_Total)
    by_size: dict[int, _Batches] = field(default_factory=dict)

    def batch(self, report: BatchReport) -> None:
        """Count a batch."""
        self.last_inference = time.time_ns() // 1_000_000  # wall clock: a moment, not a duration
        self.rows += report.rows
        self.batches += 1
        sizes = self.by_size.get(report.rows)
        if sizes is None:
            sizes = self.by_size[report.rows] = _Batches()
        sizes.gathering.add(report.gathering)
        sizes.inference.add(report.inference)
        sizes.heads.add(report.heads)

    def answered(self, result: Result, seconds: float) -> None:
        """Count a request that was answered after `seconds`."""
        self.success.add(seconds)
        self.queue.add(result.queue)

    def failed(self, seconds: float) -> None:
        """Count a request that was refused or failed."""
        self.fail.add(seconds)

    def shown(self, name: str, version: int) -> dict[str, Any]:
        """Return the entry of `model_stats`; input is the gathering of a batch, output its heads."""
        sizes = dict(sorted(self.by_size.copy().items()))
        parts = {
            part: {
                "count": sum(s.shown()[part]["count"] for s in sizes.values()),
                "ns": sum(s.shown()[part]["ns"] for s in sizes.values()),
            }
            for part in ("compute_input", "compute_infer", "compute_output")
        }
        nothing = _Total().shown()
        return {
            "name": name,
            "version": str(version),
            "last_inference": self.last_inference,
            "inference_count": self.rows,
            "execution_count": self.batches,
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": self.queue.shown(),
                **parts,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "response_stats": {},
            "batch_stats": [{"batch_size": size, **s.shown()} for size, s in sizes.items()],
            "memory_usage": [],
        }
