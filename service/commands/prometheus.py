"""Quantiles of a histogram, read from a service's /metrics as Prometheus would."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families


def quantiles(metrics_url: str, name: str, labels: dict[str, str], wanted: tuple[float, ...]) -> dict[float, float]:
    """Estimate quantiles of histogram `name`, interpolating inside a bucket; in the histogram's unit.

    Raises:
        LookupError: nothing was observed under these labels.
    """
    text = httpx.get(metrics_url, timeout=10).raise_for_status().text
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items():
                edge = float(sample.labels["le"])
                buckets[edge] = buckets.get(edge, 0.0) + sample.value
    edges = sorted(buckets)
    total = buckets[edges[-1]] if edges else 0.0
    if not total:
        raise LookupError(f"{metrics_url} has nothing of {name} with {labels}")
    return {q: _quantile(edges, buckets, q * total) for q in wanted}


def _quantile(edges: list[float], buckets: dict[float, float], rank: float) -> float:
    low, below = 0.0, 0.0
    for edge in edges:
        if buckets[edge] >= rank:
            if edge == float("inf"):
                return low
            inside = buckets[edge] - below
            return low + (edge - low) * ((rank - below) / inside if inside else 1.0)
        low, below = edge, buckets[edge]
    return low
