"""Whatever comes in whatever order, each request gets its own rows' answer, by its own heads, once."""

import asyncio
import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporters.bundle import Padding
from models.heads.head import Head
from service.engine.head_bank import HeadBank
from service.engine.scheduler import Scheduler
from service.errors import DeadlineExceeded, TooManyRequests, Unavailable

MAX_BATCH, QUEUE, HEADS = 4, 24, 5


def distinct_heads():
    """A bank in whose slot `s` is the head (id, 1) -> (id + s, s * id)."""
    bank = HeadBank(Head(np.array([[1.0, 0.0], [0.0, 0.0]]), np.zeros(2)), HEADS)
    slots = [bank.insert((str(s), 1), Head(np.array([[1.0, s], [s, 0.0]]), np.zeros(2))) for s in range(1, HEADS)]
    assert slots == list(range(1, HEADS))
    return bank


BANK = distinct_heads()


class Backbone:
    """Features (id, 1) of rows (id, bad, …); remembers batches, and fails on a bad row."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, lengths=None):
        self.batches.append(x[:, 0].astype(int).tolist())
        if (x[:, 1] != 0).any():
            raise ValueError("bad row")
        return np.stack([x[:, 0], np.ones(len(x))], 1).astype(np.float32)

    @property
    def seen(self):
        return [row for batch in self.batches for row in batch]


@contextlib.asynccontextmanager
async def scheduling(backbone, **options):
    scheduler = Scheduler("test", backbone, BANK.table.logits, **{"max_batch": MAX_BATCH, **options})
    try:
        yield scheduler
    finally:
        await asyncio.to_thread(scheduler.stop)


def rows(first, count=1, width=2):
    x = np.zeros((count, width), np.float32)
    x[:, 0] = range(first, first + count)
    return x


class Asked:
    """One request and what became of it."""

    def __init__(self, ids, slots, bad, bulk):
        self.ids, self.slots, self.bad, self.bulk = ids, slots, bad, bulk
        self.outcomes, self.refused = [], None
        self.dropped_unanswered = self.late = self.never = False

    def check(self):
        if self.refused is not None:
            assert not self.outcomes
            return
        if self.dropped_unanswered:
            assert not self.outcomes, "a cancelled request was answered"
            return
        assert len(self.outcomes) == 1
        (outcome,) = self.outcomes
        if isinstance(outcome, Exception):
            assert isinstance(outcome, DeadlineExceeded) or (self.bad and str(outcome) == "bad row"), outcome
            return
        assert not self.bad
        assert outcome.features[:, 0].tolist() == self.ids
        if self.slots is None:
            assert outcome.scores is None
        else:
            wanted = [[i + s, s * i] if s else [i, 0] for i, s in zip(self.ids, self.slots, strict=True)]
            assert outcome.scores.tolist() == wanted


REQUEST = st.tuples(
    st.integers(1, 3 * MAX_BATCH),  # rows
    st.integers(-1, HEADS + 1),  # whose head: -1 features only, HEADS and over each row another
    st.sampled_from([0, 0, 1, 2, 3, 8]),  # priority
    st.booleans(),  # bulk
    st.sampled_from([2, 3]),  # width: two signatures
    st.sampled_from([None] * 6 + [0, 5]),  # a row that fails
    st.sampled_from([None] * 5 + [60.0, 0.0, 1e-9]),  # timeout
    st.sampled_from([None] * 4 + [0, 1, 2]),  # cancelled after so many turns of the loop
    st.integers(0, 2),  # turns until the next request
)


async def interleave(plan, inline):
    backbone, first, asked = Backbone(), 1, []
    loop = asyncio.get_running_loop()
    async with scheduling(backbone, queue_rows=QUEUE, inline=inline) as scheduler:
        for count, head, priority, bulk, width, bad, timeout, cancelled_after, pause in plan:
            x = rows(first, count, width)
            first += count
            slots = None if head < 0 else [head] * count if head < HEADS else [(head + i) % HEADS for i in range(count)]
            bad = None if bad is None or bad >= count else bad
            if bad is not None:
                x[bad, 1] = 1
            request = Asked(x[:, 0].astype(int).tolist(), slots, bad is not None, bulk)
            asked.append(request)
            own = None if slots is None else np.array(slots, np.int64)
            try:
                job = scheduler.enqueue(x, own, request.outcomes.append, timeout=timeout, priority=priority, bulk=bulk)
            except (TooManyRequests, DeadlineExceeded) as e:
                request.refused, expected = e, DeadlineExceeded if timeout == 0.0 else TooManyRequests
                assert type(request.refused) is expected
                continue
            request.late = timeout == 1e-9
            if cancelled_after is not None:
                for _ in range(cancelled_after):
                    await asyncio.sleep(0)
                request.dropped_unanswered = not request.outcomes
                job.cancel()
                request.never = inline and cancelled_after == 0
            for _ in range(pause):
                await asyncio.sleep(0)
        deadline = loop.time() + 10
        while scheduler.pending or any(
            not (r.outcomes or r.refused is not None or r.dropped_unanswered) for r in asked
        ):
            assert loop.time() < deadline, "a request was never answered"
            await asyncio.sleep(0 if inline else 0.0002)
    assert scheduler.pending == 0
    await asyncio.sleep(0)
    seen = set(backbone.seen)
    kinds = {i: r.bulk for r in asked for i in r.ids}
    for request in asked:
        request.check()
        never = request.refused is not None or request.never or request.late
        if never:
            assert seen.isdisjoint(request.ids), "a refused, late or dropped request reached the forward"
        if request.late and not request.dropped_unanswered:
            assert isinstance(request.outcomes[0], DeadlineExceeded)
    for batch in backbone.batches:
        assert len(batch) <= MAX_BATCH
        assert len({kinds[i] for i in batch}) == 1, "bulk rows beside predictions"


SLOWLY = [HealthCheck.too_slow]


@settings(max_examples=500, deadline=None, suppress_health_check=SLOWLY)
@given(st.lists(REQUEST, min_size=1, max_size=10))
def test_random_interleavings_on_the_event_loop(plan):
    asyncio.run(interleave(plan, inline=True))


@settings(max_examples=200, deadline=None, suppress_health_check=SLOWLY)
@given(st.lists(REQUEST, min_size=1, max_size=10))
def test_random_interleavings_on_a_thread(plan):
    asyncio.run(interleave(plan, inline=False))


async def order(scheduler, backbone, *requests):
    """Queue requests within one turn of the loop; returns batches."""
    await asyncio.gather(*(scheduler.submit(x, None, **options) for x, options in requests))
    return backbone.batches


async def test_higher_levels_go_first():
    backbone = Backbone()
    async with scheduling(backbone, max_batch=1, inline=True) as scheduler:
        levels = [(rows(i), {"priority": p}) for i, p in enumerate((3, 0, 8, 1, 2))]
        assert await order(scheduler, backbone, *levels) == [[3], [1], [4], [0], [2]]


@pytest.mark.parametrize(
    ("low", "high", "waited"), [({"priority": 3}, {"priority": 1}, 0.13), ({"bulk": True}, {}, 0.5)]
)
async def test_lower_levels_and_bulk_give_way_but_age(low, high, waited):
    backbone = Backbone()
    async with scheduling(backbone, max_batch=1, inline=True) as scheduler:
        assert await order(scheduler, backbone, (rows(1, 2), low), (rows(7), high)) == [[7], [1], [2]]
        backbone.batches.clear()
        answered = []
        scheduler.enqueue(rows(1), None, answered.append, **low)
        time.sleep(waited)  # noqa: ASYNC251 - the loop is held, so that both wait in the same turn
        scheduler.enqueue(rows(7), None, answered.append, **high)
        async with asyncio.timeout(10):
            while len(answered) < 2:
                await asyncio.sleep(0)
        assert backbone.batches == [[1], [7]]


async def test_rows_of_two_signatures_never_share_a_batch_and_fill_their_own():
    backbone = Backbone()
    async with scheduling(backbone, inline=True) as scheduler:
        batches = await order(scheduler, backbone, (rows(1), {}), (rows(5, 2, 3), {}), (rows(2), {}))
        assert batches == [[1, 2], [5, 6]]


class Gated(Backbone):
    """A backbone whose batches wait for a gate."""

    def __init__(self):
        super().__init__()
        self.entered, self.gate = threading.Event(), threading.Event()

    def __call__(self, x, lengths=None):
        self.entered.set()
        assert self.gate.wait(10)
        return super().__call__(x, lengths)


async def test_what_is_cancelled_late_or_too_much_while_a_batch_runs_never_runs():
    backbone = Gated()
    async with scheduling(backbone, queue_rows=6) as scheduler:
        running = asyncio.create_task(scheduler.submit(rows(1), None))
        await asyncio.to_thread(backbone.entered.wait, 10)
        cancelled = asyncio.create_task(scheduler.submit(rows(10, 2), None))
        late = asyncio.create_task(scheduler.submit(rows(20), None, timeout=0.01))
        await asyncio.sleep(0.03)
        cancelled.cancel()
        kept = asyncio.create_task(scheduler.submit(rows(30, 3), None))
        await asyncio.sleep(0)
        assert scheduler.pending == 6
        with pytest.raises(TooManyRequests, match="6 rows wait already and 6 may") as refused:
            await scheduler.submit(rows(40), None)
        assert refused.value.retry_after > 0
        backbone.gate.set()
        assert (await running).features.tolist() == [[1, 1]]
        assert (await kept).features[:, 0].tolist() == [30, 31, 32]
        with pytest.raises(DeadlineExceeded):
            await late
        assert backbone.seen == [1, 30, 31, 32]
        assert scheduler.pending == 0


async def test_a_delay_gathers_rows_and_ends_early_when_a_batch_is_full():
    for inline in (True, False):
        backbone = Backbone()
        async with scheduling(backbone, inline=inline, max_delay=0.15) as scheduler:
            first = asyncio.create_task(scheduler.submit(rows(1), None))
            await asyncio.sleep(0.02)
            await asyncio.gather(first, scheduler.submit(rows(2), None))
            assert backbone.batches == [[1, 2]]
        async with scheduling(Backbone(), inline=inline, max_delay=30) as scheduler, asyncio.timeout(10):
            await asyncio.gather(*(scheduler.submit(rows(i), None) for i in range(MAX_BATCH)))
            await scheduler.submit(rows(0, MAX_BATCH), None)


async def test_windows_of_nearly_one_length_share_a_batch_with_their_true_lengths():
    got = []

    def forward(x, lengths=None):
        got.append((x.shape, lengths.tolist()))
        return np.stack([x.sum(1), lengths], 1).astype(np.float32)

    padding = Padding(axis=1, multiple_of=8, maximum=64, lengths="lengths")
    async with scheduling(forward, inline=True, padding=padding) as scheduler:
        shapes = ((1, 5), (2, 8), (1, 9), (1, 3))
        answers = await asyncio.gather(*(scheduler.submit(np.ones(s, np.float32), None) for s in shapes))
    assert got == [((4, 8), [5, 8, 8, 3]), ((1, 16), [9])]
    assert [a.features.tolist() for a in answers] == [[[n, n]] * count for count, n in shapes]


@pytest.mark.parametrize("inline", [True, False])
async def test_a_stopped_scheduler_answers_what_waits_and_refuses_what_comes(inline):
    async with scheduling(Backbone(), inline=inline) as scheduler:
        waiting = [asyncio.create_task(scheduler.submit(rows(i, 3), None)) for i in range(5)]
        await asyncio.sleep(0)
        await asyncio.to_thread(scheduler.stop)
        assert [r.features[0, 0] for r in await asyncio.gather(*waiting)] == list(range(5))
        with pytest.raises(Unavailable, match="being unloaded"):
            await scheduler.submit(rows(1), None)


async def test_a_slow_model_refuses_what_would_wait_too_long():
    def forward(x, lengths=None):
        time.sleep(0.02 * len(x))
        return np.zeros((len(x), 2), np.float32)

    async with scheduling(forward, max_batch=2, queue_rows=1000, queue_seconds=0.1) as scheduler:
        await scheduler.submit(rows(0), None)  # from here on the rate is known: about 5 rows in 0.1 s
        asked = [asyncio.create_task(scheduler.submit(rows(i), None)) for i in range(40)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        refused = [a for a in answers if isinstance(a, TooManyRequests)]
        assert 30 <= len(refused) <= 38
        assert all(0 < a.retry_after < 1 for a in refused)
        bulk = [asyncio.create_task(scheduler.submit(rows(i), None, bulk=True)) for i in range(40)]
        assert not [a for a in await asyncio.gather(*bulk, return_exceptions=True) if isinstance(a, Exception)]
