"""The way of a data-plane request: decode, heads, scheduler, encode. No task where nothing must be waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from service import answers, mixed, output_answers, views
from service.answered import Answered
from service.answers import JSON, Headers
from service.call import Call, Decoded
from service.catalogue import Catalogue
from service.decoding import Decoder, inflate_and_decode
from service.engine.head_table import HeadMoved
from service.engine.jobs import Result
from service.errors import DeadlineExceeded, HeadwayError, Unavailable, error_body
from service.keys import Keyring
from service.loaded import LoadedModel
from service.observability import Metrics
from service.output_heads import HeadsOfOutputs, followed, heads_asked_for, rows_of
from service.personal.observations import Observations
from service.personal.records import StoreError
from service.personal.resolved import Heads
from service.protocol import compression

log = logging.getLogger("headway")
access = logging.getLogger("headway.access")

DECODED_HERE = 256 * 1024
"""Bodies up to so many bytes are decoded on the event loop; larger ones, unless binary, on a thread."""
MOST_MOVES = 3
"""Times that a request looks its heads up anew because one moved while its rows waited."""


class DataPlane:
    """Answers calls of the data plane; all methods belong to the event loop.

    Attributes:
        models: what is served.
        metrics: where requests are counted.
        heads: set when there is a store.
        draining: whether new calls are refused.
        feedback: answers that may still be corrected.
        observations: rows of users whose heads follow them; None where nobody learns from them.
        keys: whose calls are answered; None for everybody's. Whoever reads from the wire asks it.
    """

    def __init__(self, models: Catalogue, metrics: Metrics, max_body: int) -> None:
        self.models, self.metrics, self.max_body = models, metrics, max_body
        self.heads: Heads | None = None
        self.keys: Keyring | None = None
        self.draining = False
        self.feedback = Answered()
        self.observations: Observations | None = None
        self._decoders = {task: Decoder(offer) for task, offer in answers.OFFERS.items()}
        self._of_outputs: WeakKeyDictionary[LoadedModel, Decoder] = WeakKeyDictionary()
        self._waiting: set[asyncio.Task[None]] = set()

    def begin(self, call: Call) -> None:
        """Take a call on its way. Its answer goes to `call.reply`, perhaps before this returns."""
        try:
            if self.draining:
                raise Unavailable("the service is draining", retry_after=1)
            candidates = self.models.candidates(call.model, call.version)
            call.loaded = candidates[0]
            if b"content-encoding" in call.headers or (
                len(call.body) > DECODED_HERE and b"inference-header-content-length" not in call.headers
            ):
                self._later(call, self._decode_elsewhere(call, candidates), *candidates)
            else:
                newest = candidates[0]
                manifest = newest.bundle.manifest
                # What several outputs need is not called where there is one, here and below: it is the hot path.
                decoder = self._decoder_of(newest) if newest.outputs else self._decoders[manifest.task]
                call.decoded = decoder.decode(call, manifest.input)
                self._choose(call, candidates)
        except Exception as e:
            self.fail(call, e)

    def cancel(self, call: Call) -> None:
        """The client went away: what has not run yet does not run."""
        if call.over:
            return
        call.over = True
        if call.task is not None:
            call.task.cancel()
        if call.job is not None:
            call.job.cancel()
        for part in call.parts:
            self.cancel(part)
        self._release(call)

    def fail(self, call: Call, error: Exception) -> None:
        """Answer with an error in the one shape."""
        self._release(call)
        if call.over:
            return
        if not isinstance(error, HeadwayError):
            log.error("request %s failed", call.request_id, exc_info=error)
        status, code, headers, body = error_body(error, call.request_id)
        self.metrics.refused(code)
        if call.loaded is not None:
            call.loaded.statistics.failed(time.monotonic() - call.begin)
        self._reply(call, status, [(b"content-type", JSON), *headers], body)

    async def _decode_elsewhere(self, call: Call, candidates: list[LoadedModel]) -> None:
        spec, offer = candidates[0].bundle.manifest.input, self._decoder_of(candidates[0]).offer
        call.decoded = await asyncio.to_thread(inflate_and_decode, call, spec, offer, self.max_body)
        self._choose(call, candidates)

    def _decoder_of(self, model: LoadedModel) -> Decoder:
        """Return what reads requests to a model: one a task, and one a model with several outputs."""
        manifest = model.bundle.manifest
        if not model.outputs:
            return self._decoders[manifest.task]
        found = self._of_outputs.get(model)
        if found is None:
            found = self._of_outputs[model] = Decoder(output_answers.offer_of(manifest))
        return found

    def _choose(self, call: Call, candidates: list[LoadedModel]) -> None:
        """Choose the version: the one asked for, else the newest in which the user has a head, else the newest."""
        assert call.decoded is not None
        model: LoadedModel | None = candidates[0]
        user, wanted = call.decoded.asked.user_id, call.decoded.wanted
        if wanted and len(candidates) > 1:  # older versions may not have all outputs
            first = candidates[0].bundle.manifest.output  # which is all that a version with one output has
            candidates = [m for m in candidates if set(wanted) <= set(m.bundle.manifest.names or (first,))]
        if len(candidates) > 1:  # a request has one form: packed parts by name, or one input
            candidates = [m for m in candidates if mixed.part_names(m) == mixed.part_names(candidates[0])]
        if user is not None and len(candidates) > 1:
            model = self._heads_of(call.decoded, candidates[0]).preferred(candidates, user)
            if model is None:
                self._later(call, self._find_version(call, candidates, user), *candidates)
                return
        elif call.decoded.per_row is not None and len(candidates) > 1:
            self._later(call, self._deal(call, call.decoded, candidates), *candidates)
            return
        assert model is not None
        self._find_heads(call, call.decoded, model)

    async def _deal(self, call: Call, decoded: Decoded, candidates: list[LoadedModel]) -> None:
        """Give each row to the version that its user would get alone."""
        assert decoded.users is not None
        assert decoded.per_row is not None
        groups = await mixed.dealt(self._heads_of(decoded, candidates[0]), candidates, decoded.per_row.users())
        newest, *others = groups
        if not others:
            self._find_heads(call, decoded, newest)
            return
        mixed.check_alike(groups, decoded.wanted)
        if decoded.media is not None:
            x = await asyncio.to_thread(newest.media.rows, decoded.media)
        else:
            x = decoded.windows(newest.bundle.manifest.input)
        users = decoded.users(len(x))
        call.parts = mixed.Mixed(call, decoded, candidates[0], partial(self._joined, call)).deal(x, users, groups)
        for part, model in zip(call.parts, groups, strict=True):
            try:
                assert part.decoded is not None
                self._find_heads(part, part.decoded, model)
            except Exception as e:
                self.fail(part, e)

    def _joined(self, call: Call, status: int, headers: Headers, body: bytes, results: Sequence[Result]) -> None:
        call.parts = ()  # no cycle is left
        if results:
            headers.append(answers.timing(results, time.monotonic() - call.begin))
        self._send(call, status, headers, body)

    async def _find_version(self, call: Call, candidates: list[LoadedModel], user: str) -> None:
        assert call.decoded is not None
        heads = self._heads_of(call.decoded, candidates[0])
        self._find_heads(call, call.decoded, await mixed.version_of(heads, candidates, user))

    def _find_heads(self, call: Call, decoded: Decoded, model: LoadedModel) -> None:
        call.loaded = model
        if decoded.media is not None and decoded.asked.tta == 1 and model.media.is_quick(decoded.media):
            self._take_rows(call, decoded, model, model.media.rows(decoded.media))
            return
        if decoded.media is not None or decoded.asked.tta > 1:
            self._later(call, self._make_rows(call, decoded, model), model)
            return
        self._take_rows(call, decoded, model, decoded.windows(model.bundle.manifest.input))

    async def _make_rows(self, call: Call, decoded: Decoded, model: LoadedModel) -> None:
        rows = await asyncio.to_thread(_rows, decoded, model)
        if not call.over:
            self._take_rows(call, decoded, model, rows)

    def _take_rows(self, call: Call, decoded: Decoded, model: LoadedModel, rows: NDArray[Any]) -> None:
        asked, call.x = decoded.asked, rows
        if decoded.users is not None:
            call.users = decoded.users(len(call.x) // asked.tta)
            finder = self._heads_of(decoded, model) if model.outputs else self._heads
            heads = finder.resident(model, call.users, asked.head_version, asked.fallback)
            if heads is None:
                self._later(call, self._fetch_heads(call, decoded, model), model)
                return
            call.heads = heads
        self._queue(call, decoded, model)

    async def _fetch_heads(self, call: Call, decoded: Decoded, model: LoadedModel) -> None:
        assert call.users is not None
        asked = decoded.asked
        left = None if asked.timeout is None else call.begin + asked.timeout - time.monotonic()
        try:
            async with asyncio.timeout(left):
                heads = self._heads_of(decoded, model)
                call.heads = await heads.fetched(model, call.users, asked.head_version, asked.fallback)
        except TimeoutError as e:
            raise DeadlineExceeded("the timeout passed while the user's head was fetched") from e
        self._queue(call, decoded, model)

    def _queue(self, call: Call, decoded: Decoded, model: LoadedModel) -> None:
        if call.over:
            self._release(call)
            return
        assert call.x is not None
        asked = decoded.asked
        slots = None if call.users is None else np.array([h.slot for h in call.heads], np.int64)
        if slots is not None and model.outputs:
            slots = rows_of(model, slots)
        call.job = model.scheduler.enqueue(
            call.x,
            slots if slots is None or asked.tta == 1 else np.repeat(slots, asked.tta, 0),
            partial(self._done, call, decoded, model),
            timeout=None if asked.timeout is None else call.begin + asked.timeout - time.monotonic(),
            priority=asked.priority,
            bulk=call.users is None,
        )

    def _later(self, call: Call, coroutine: Coroutine[Any, Any, None], *models: LoadedModel) -> None:
        """Go on in a task, for something must be waited for; `models` stay loaded until it ends."""
        for model in models:
            model.uses += 1

        def ended(task: asyncio.Task[None]) -> None:
            coroutine.close()  # a task that was cancelled before its first step never touched it
            call.task = None
            self._waiting.discard(task)
            for model in models:
                model.uses -= 1

        call.task = asyncio.get_running_loop().create_task(self._guarded(call, coroutine))
        self._waiting.add(call.task)
        call.task.add_done_callback(ended)

    async def _guarded(self, call: Call, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except StoreError as e:
            self.fail(call, Unavailable(str(e), retry_after=2))
        except Exception as e:
            self.fail(call, e)

    def _done(self, call: Call, decoded: Decoded, model: LoadedModel, outcome: Result | Exception) -> None:
        heads = call.heads
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if decoded.asked.tta > 1:
                outcome = views.together(model, outcome, decoded.asked.tta)
            if decoded.asked.feedback:
                output = model.of(decoded.wanted[0]) if decoded.wanted else model
                features = output.taken(outcome.features)
                outcome.prediction_id = self.feedback.keep(output, decoded.asked.user_id, features)
            if self.observations is not None and self.observations.advised:
                outcome.advised = self.observations.advised_to(model, decoded.asked.user_id)
            headers, body = decoded.encode(model, outcome, heads)
        except HeadMoved as e:
            self._again(call, decoded, model, e)
            return
        except Exception as e:
            self.fail(call, e)
            return
        self._release(call)
        total = time.monotonic() - call.begin
        headers.append(answers.timing((outcome,), total))
        if model.outputs:
            self.metrics.answered_by(model, outcome, heads_asked_for(model, heads, decoded.wanted))
        else:
            self.metrics.answered(model, outcome, heads)
        if call.users is not None and self.observations is not None and self.observations.wanted:
            for output, own in followed(model, heads) if model.outputs else ((model, heads),):
                self.observations.saw(output, call.users, own, output.taken(outcome.features))
        model.statistics.answered(outcome, total)
        self._send(call, 200, headers, body)

    def _send(self, call: Call, status: int, headers: Headers, body: bytes) -> None:
        """Answer, compressed where that is asked for and worth it."""
        if len(body) > compression.WORTH_IT:
            headers.append((b"vary", b"Accept-Encoding"))
            coding = compression.wanted(call.header(b"accept-encoding"))
            if coding is not None:
                headers.append((b"content-encoding", coding.encode()))
                self._later(call, self._compress(call, headers, body, coding))
                return
        self._reply(call, status, headers, body)

    def _again(self, call: Call, decoded: Decoded, model: LoadedModel, moved: HeadMoved) -> None:
        """Look the heads up anew, for one moved; not for ever."""
        if call.moves >= MOST_MOVES:
            crowded = Unavailable("heads make room for others faster than they are used", retry_after=1)
            crowded.__cause__ = moved
            self.fail(call, crowded)
            return
        call.moves += 1
        self._release(call)
        self._later(call, self._fetch_heads(call, decoded, model), model)

    async def _compress(self, call: Call, headers: Headers, body: bytes, coding: str) -> None:
        self._reply(call, 200, headers, await asyncio.to_thread(compression.compress, body, coding))

    def _reply(self, call: Call, status: int, headers: Headers, body: bytes) -> None:
        if call.is_part:
            if not call.over:
                call.over = True
                call.reply(status, headers, body)
            return
        self.metrics.request(call.loaded, call.endpoint, status, time.monotonic() - call.begin)
        headers.append((b"x-request-id", call.request_id.encode("latin-1")))
        if access.isEnabledFor(logging.DEBUG):
            seconds = time.monotonic() - call.begin
            access.debug("POST %s %s %.1f ms %s", call.endpoint, status, seconds * 1e3, call.request_id)
        if not call.over:
            call.over = True
            call.reply(status, headers, body)

    def _release(self, call: Call) -> None:
        if call.heads and call.loaded is not None:
            finder = self._heads
            if call.loaded.outputs and call.decoded is not None:
                finder = self._heads_of(call.decoded, call.loaded)
            finder.release(call.loaded, call.heads)
            call.heads = ()

    def _heads_of(self, decoded: Decoded, newest: LoadedModel) -> Heads:
        """Return what finds the heads that a request wants, of a version or of those up to it."""
        return HeadsOfOutputs(self._heads, decoded.wanted) if newest.outputs else self._heads

    @property
    def _heads(self) -> Heads:
        if self.heads is None:
            raise Unavailable("the service is starting", retry_after=1)
        return self.heads


def _rows(decoded: Decoded, model: LoadedModel) -> NDArray[Any]:
    """Make a request's rows, of media or of views; slow enough that it is done on a thread."""
    media = decoded.media
    rows = decoded.windows(model.bundle.manifest.input) if media is None else model.media.rows(media)
    return rows if decoded.asked.tta == 1 else views.viewed(model, rows, decoded.asked.tta)
