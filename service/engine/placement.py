"""Where the nodes of a graph really ran, read from ONNX Runtime's own profile of one run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ONNX Runtime leaves shape arithmetic on the CPU on purpose; these are what a device is asked for.
COMPUTE = frozenset(
    {"Conv", "FusedConv", "ConvTranspose", "ConvInteger", "QLinearConv", "Einsum", "LSTM", "GRU", "RNN"}
    | {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "MatMulNBits"}
    | {"Attention", "MultiHeadAttention", "QAttention"}
)


@dataclass(frozen=True, slots=True)
class Placement:
    """How many nodes ran on each provider, and which costly operators."""

    nodes: Mapping[str, int]
    compute: Mapping[str, tuple[str, ...]]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the nodes that ran on each provider, largest first."""
        total = sum(self.nodes.values())
        return {name: n / total for name, n in sorted(self.nodes.items(), key=lambda item: -item[1])}

    def fault(self, asked: Sequence[str]) -> str | None:
        """Say why this is not what was asked for; None when it is."""
        placed = ", ".join(f"{share:.0%} on {name}" for name, share in self.shares.items()) or "none anywhere"
        if not any(self.nodes.get(name) for name in asked):
            return f"no node of the graph ran on {' or '.join(asked)}: {placed}"
        lost = [f"{', '.join(ops)} on {name}" for name, ops in sorted(self.compute.items()) if name not in asked]
        if lost:
            return f"{' or '.join(asked)} was asked for, but ONNX Runtime runs {'; '.join(lost)} ({placed})"
        return None


def read(profile: Path) -> Placement:
    """Read a profile that ONNX Runtime wrote."""
    return of_events(json.loads(profile.read_bytes()))


def of_events(events: Iterable[Mapping[str, Any]]) -> Placement:
    """Count each node once, by the provider in its kernel event."""
    where: dict[str, tuple[str, str]] = {}
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and told.get("provider"):
            where[f"{told.get('node_index')} {event['name']}"] = (told["provider"], told.get("op_name", ""))
    compute: dict[str, set[str]] = {}
    for provider, op in where.values():
        if op in COMPUTE:
            compute.setdefault(provider, set()).add(op)
    return Placement(
        Counter(provider for provider, _ in where.values()), {p: tuple(sorted(o)) for p, o in compute.items()}
    )
