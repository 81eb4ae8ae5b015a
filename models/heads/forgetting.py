"""Forgetting a class: its windows taken out of sufficient statistics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.heads.statistics import Statistics


def without_class(stats: Statistics, label: int) -> Statistics:
    """Return the statistics of all windows but those of one class, in closed form.

    Sums per class go exactly. What the class added to a repetition's second moment is known exactly for its mean; its
    scatter, known over all repetitions together, is taken out of each by its share of the windows (exact for one
    repetition).
    """
    n = stats.count[label]
    if not n.sum():
        return stats
    total = stats.total[label]
    around = np.einsum("ri,rj->rij", total, total) / np.maximum(n, 1.0)[:, None, None]
    scatter = stats.class_moment[label] - around.sum(0)
    moment = stats.repetition_moment - around - scatter * (n / n.sum())[:, None, None]
    count, sums, class_moment = stats.count.copy(), stats.total.copy(), stats.class_moment.copy()
    count[label], sums[label], class_moment[label] = 0.0, 0.0, 0.0
    keep = np.flatnonzero(count.sum(0) > 0)
    return replace(
        stats,
        repetitions=tuple(stats.repetitions[i] for i in keep),
        count=count[:, keep],
        total=sums[:, keep],
        class_moment=class_moment,
        repetition_moment=moment[keep],
    )
