"""A head that moves between its look-up and its use is looked up anew, and not for ever."""

import numpy as np
import pytest

from service.app import create_app
from service.engine.head_table import HeadMoved
from tests.conftest import running

BODY = {"inputs": np.ones((3, 2, 4)).tolist()}


@pytest.mark.parametrize(("moves", "status"), [(1, 200), (3, 200), (4, 503)])
async def test_a_head_that_moves_is_looked_up_anew(moves, status, settings, monkeypatch):
    app = create_app(settings)
    async with running(app) as client:
        own = app.state.services
        scheduler, resolver = own.models.get("tiny").scheduler, own.resolver
        scores, fetched, calls, fetches = scheduler._apply_heads, resolver.fetched, [], []

        def moving(z, slots):
            calls.append(len(z))
            if len(calls) <= moves:
                raise HeadMoved
            return scores(z, slots)

        async def counted(*arguments):
            fetches.append(arguments[1])
            return await fetched(*arguments)

        monkeypatch.setattr(scheduler, "_apply_heads", moving)
        monkeypatch.setattr(resolver, "fetched", counted)
        answer = await client.post("/v2/models/tiny/predict?user_id=ana", json=BODY)
        assert answer.status_code == status
        if status == 200:
            assert len(answer.json()["predictions"]) == 3
        else:
            assert answer.json()["code"] == "unavailable"
            assert answer.headers["retry-after"] == "1"
        assert fetches[-1] == ["ana"] * 3
        assert len(calls) == min(moves, 3) + 1
        assert own.models.get("tiny").scheduler.pending == 0
