"""Behind one forward each row gets the head of each output that is its own, whatever rows it is batched with."""

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.heads.head import Head
from service.engine.head_bank import HeadBank
from service.engine.output_heads import OutputHeads
from service.engine.scheduler import Scheduler

DIM, HEADS = 5, 4
SHAPES = ((3, None), (2, np.array([0, 4])), (1, np.array([2])))
"""Rows of a head, and the columns that it is over, of each output."""


def bank(rows, dim, seed):
    rng = np.random.default_rng(seed)
    heads = [Head(rng.standard_normal((rows, dim)), rng.standard_normal(rows)) for _ in range(HEADS)]
    made = HeadBank(heads[0], HEADS)
    for slot, head in enumerate(heads[1:], 1):
        assert made.insert((str(slot), 1), head) == slot
    return made, heads


BANKS = [bank(rows, DIM if columns is None else len(columns), i) for i, (rows, columns) in enumerate(SHAPES)]
PARTS = [(columns, made.table.scores) for (_, columns), (made, _) in zip(SHAPES, BANKS, strict=True)]

REQUEST = st.tuples(
    st.lists(st.tuples(*[st.integers(0, HEADS - 1)] * len(SHAPES)), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)


def alone(z, slots):
    """What each output's head says of one row: its logits and, of each output, their softmax behind them."""
    found = []
    for (_, columns), (_, heads), slot in zip(SHAPES, BANKS, slots, strict=True):
        logits = heads[slot].logits(z if columns is None else z[columns])
        e = np.exp(logits - logits.max())
        found += [logits, e / e.sum()]
    return np.concatenate(found)


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=8), st.integers(0, 2**31))
def test_each_row_has_the_heads_of_its_own(requests, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((len(slots), DIM)).astype(np.float32) for slots, _, _ in requests]

    async def run():
        scheduler = Scheduler("test", lambda x, lengths=None: x, OutputHeads(PARTS), max_batch=4)
        try:
            asked = [
                scheduler.submit(x, None if features else np.array(slots, np.int64), bulk=bulk)
                for x, (slots, features, bulk) in zip(rows, requests, strict=True)
            ]
            return await asyncio.gather(*asked)
        finally:
            await asyncio.to_thread(scheduler.stop)

    for x, (slots, features, _), result in zip(rows, requests, asyncio.run(run()), strict=True):
        assert np.array_equal(result.features, x)
        if features:
            assert result.scores is None
        else:
            wanted = [alone(row, own) for row, own in zip(x, slots, strict=True)]
            assert np.allclose(result.scores, wanted, rtol=1e-4, atol=1e-4)
