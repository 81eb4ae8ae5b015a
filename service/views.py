"""Test-time augmentation: `tta=K` answers a window by the mean over K views of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.data.views import averaged, has_views, views
from models.heads.head import softmax
from service.engine.jobs import Result
from service.errors import BodyTooLarge, InvalidRequest
from service.loaded import LoadedModel


def viewed(model: LoadedModel, x: NDArray[Any], count: int) -> NDArray[Any]:
    """Return `count` views of each window `(n, …)`: `(n * count, …)`; slow enough for a thread.

    Raises:
        InvalidRequest: windows of this model have no views.
        BodyTooLarge: so many views of so many windows are more than a request may hold.
    """
    spec = model.bundle.manifest.input
    if not has_views(spec):
        raise InvalidRequest(f"tta needs views of a window, and texts have none: model {model.name!r} reads tokens")
    if count * x.nbytes > model.media.most_bytes:
        most = model.media.most_bytes // (count * (x.nbytes // len(x)))
        raise BodyTooLarge(f"with tta {count} at most {most} windows are accepted at a time, not {len(x)}")
    return views(x, spec, count)


async def features_of(model: LoadedModel, x: NDArray[Any], count: int = 1) -> NDArray[np.float32]:
    """Return features `(n, d)` of windows, each the mean over so many views; they give way to predictions.

    Raises:
        InvalidRequest, BodyTooLarge: as `viewed`.
        TooManyRequests, Unavailable: as the scheduler.
    """
    if count > 1:
        x = await asyncio.to_thread(viewed, model, x, count)
    return averaged(model.taken((await model.scheduler.submit(x, None, bulk=True)).features), count)


def together(model: LoadedModel, result: Result, count: int) -> Result:
    """Return what is said of windows, from what was said of so many views of each: features and logits are averaged."""
    scores, at = result.scores, 0
    if scores is not None:
        parts = []
        for output in model.each:
            logits = averaged(scores[:, at : at + output.columns], count)
            parts += [logits, softmax(logits)]
            at += 2 * output.columns
        scores = np.concatenate(parts, 1)
    return replace(result, features=averaged(result.features, count), scores=scores)
