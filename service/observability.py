"""Metrics for Prometheus (base units, bounded labels, never a user), request ids and request logs.

`task` is one of several outputs. Of a model with one it is empty, which Prometheus takes for no label: its series are
those that it had before there was this label.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.catalogue import Catalogue
from service.engine.jobs import BatchReport, Result
from service.engine.statistics import Cell
from service.frontends.folder import VARIABLE
from service.loaded import LoadedModel
from service.personal.resolved import ResolvedHead

log = logging.getLogger("headway.access")

LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


_PROCESS = secrets.token_hex(6)
_sequence = itertools.count(secrets.randbits(16))


class Metrics:
    """All metrics of one service, in registries of its own.

    Attributes:
        exposed: what a scrape gets; where several processes serve, of all of them.
    """

    def __init__(self, models: Catalogue, device: str = "") -> None:
        r = CollectorRegistry()
        self.requests = Counter(
            "headway_requests", "Requests answered.", ["model", "version", "endpoint", "code"], registry=r
        )
        self.request_duration = Histogram(
            "headway_request_duration_seconds", "From the first byte in to the last byte out.", ["model", "endpoint"],
            buckets=LATENCY_BUCKETS, registry=r,
        )  # fmt: skip
        self.queue_duration = Histogram(
            "headway_queue_duration_seconds", "Wait for the runtime.", ["model"], buckets=LATENCY_BUCKETS, registry=r
        )
        self.inference_duration = Histogram(
            "headway_inference_duration_seconds", "One forward of a batch.", ["model", "provider"],
            buckets=LATENCY_BUCKETS, registry=r,
        )  # fmt: skip
        self.head_duration = Histogram(
            "headway_head_duration_seconds", "Heads of a batch.", ["model"], buckets=LATENCY_BUCKETS, registry=r
        )
        self.batch_rows = Histogram(
            "headway_batch_rows", "Rows in a batch.", ["model"], buckets=ROW_BUCKETS, registry=r
        )
        self.rejected = Counter("headway_rejected", "Requests refused.", ["reason"], registry=r)
        self.calibrations = Counter(
            "headway_calibrations", "Calibrations by outcome.", ["model", "task", "outcome"], registry=r
        )
        self.calibration_duration = Histogram(
            "headway_calibration_duration_seconds", "Stages of a calibration.", ["stage"],
            buckets=LATENCY_BUCKETS, registry=r,
        )  # fmt: skip
        self.feature_drift = Histogram(
            "headway_feature_drift",
            "Distance of users' rows from what their calibration leads to expect, of users whose heads follow them.",
            ["model", "task"], buckets=(0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0, 8.0), registry=r,
        )  # fmt: skip
        self.adaptations = Counter(
            "headway_adaptations", "Adaptations without labels by outcome.", ["model", "task", "outcome"], registry=r
        )
        self.predictions = Counter(
            "headway_predictions", "Rows predicted, by kind of head.", ["model", "task", "head"], registry=r
        )
        # Of several processes, that which keeps the store sets it.
        self.store_up = Gauge(
            "headway_store_up", "1 while the store answers.", registry=r, multiprocess_mode="mostrecent"
        )
        self.store_staleness = Gauge(
            "headway_store_staleness_seconds",
            "Since other services' changes were last read; beyond 2, heads may be old.",
            registry=r, multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.frontends = Gauge(
            "headway_frontends_ready", "Front ends that answer; 0 where one process does all.", registry=r,
            multiprocess_mode="mostrecent",
        )  # fmt: skip
        self.frontend_ends = Counter("headway_frontend_ends", "Front ends that ended and were replaced.", registry=r)
        build = Gauge(
            "headway_build_info", "What is running.", ["version", "provider", "torch_free"],
            registry=r, multiprocess_mode="max",
        )  # fmt: skip
        if device:
            build.labels(__version__, device, "true").set(1)
        self.exposed = CollectorRegistry()
        self.exposed.register(_OfAllProcesses(r))
        self.exposed.register(_Levels(models))
        self._served: dict[LoadedModel, _Served] = {}
        self._requests: dict[tuple[LoadedModel | None, str, int], tuple[Counter, Histogram]] = {}

    def answered(self, model: LoadedModel, result: Result, heads: Sequence[ResolvedHead]) -> None:
        """Count rows that were answered, by kind of head, and how long they waited."""
        served = self._of(model)
        served.queue.observe(result.queue)
        served.answered(heads)

    def answered_by(
        self, model: LoadedModel, result: Result, heads: Iterable[tuple[LoadedModel, Sequence[ResolvedHead]]]
    ) -> None:
        """Do the same for several outputs, each of which has answered the rows by heads of its own."""
        self._of(model).queue.observe(result.queue)
        for output, own in heads:
            self._of(output).answered(own)

    def batch(self, model: LoadedModel, report: BatchReport) -> None:
        """Observe one batch."""
        served = self._of(model)
        served.inference.observe(report.inference)
        served.heads.observe(report.heads)
        served.rows.observe(report.rows)

    def request(self, model: LoadedModel | None, endpoint: str, status: int, seconds: float) -> None:
        """Count a request of the data plane and observe its duration."""
        found = self._requests.get((model, endpoint, status))
        if found is None:
            name, version = ("", "") if model is None else (model.name, str(model.version))
            found = self._requests[model, endpoint, status] = (
                self.requests.labels(name, version, endpoint, str(status)),
                self.request_duration.labels(name, endpoint),
            )
        found[0].inc()
        found[1].observe(seconds)

    def drifted(self, drift: float, model: LoadedModel) -> None:
        """Observe the drift of a user's rows in an output, without whose."""
        self.feature_drift.labels(model.name, model.output).observe(drift)

    def refused(self, code: str) -> None:
        """Count a request that was refused, by the error's code."""
        self.rejected.labels(code).inc()

    def forget(self, model: LoadedModel) -> None:
        """Let go of a model that was unloaded; its series stay, for counters do not go back."""
        for each in (model, *model.outputs):
            self._served.pop(each, None)
        self._requests = {key: found for key, found in self._requests.items() if key[0] is not model}

    def _of(self, model: LoadedModel) -> _Served:
        found = self._served.get(model)
        if found is None:
            name, task = model.name, model.each[0].output
            found = self._served[model] = _Served(
                self.queue_duration.labels(name),
                self.inference_duration.labels(name, model.runtime.provider),
                self.head_duration.labels(name),
                self.batch_rows.labels(name),
                self.predictions.labels(name, task, "personal"),
                self.predictions.labels(name, task, "shared"),
            )
        return found


class _Served(NamedTuple):
    """A model's series, looked up once: finding a series by its labels costs more than counting."""

    queue: Histogram
    inference: Histogram
    heads: Histogram
    rows: Histogram
    personal: Counter
    shared: Counter

    def answered(self, heads: Sequence[ResolvedHead]) -> None:
        """Count rows by kind of head."""
        personal = sum(1 for h in heads if h.version)
        shared = len(heads) - personal
        if personal:
            self.personal.inc(personal)
        if shared:
            self.shared.inc(shared)


class _OfAllProcesses(Collector):
    """What the processes of a service have counted, where there are several; else what this one has."""

    def __init__(self, own: CollectorRegistry) -> None:
        self._own = own

    def collect(self) -> Iterable[Metric]:
        """Yield the families, those without series too."""
        folder = os.environ.get(VARIABLE)
        if folder is None:
            yield from self._own.collect()
            return
        together = {metric.name: metric for metric in MultiProcessCollector(None, folder).collect()}  # type: ignore[no-untyped-call]
        for metric in self._own.collect():
            yield together.get(metric.name, Metric(metric.name, metric.documentation, metric.type))


class _Levels(Collector):
    """Levels read at scrape time: rows pending and resident heads."""

    def __init__(self, models: Catalogue) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """Yield the families."""
        pending = GaugeMetricFamily("headway_pending_rows", "Rows that wait for the runtime.", labels=["model"])
        of_output = ["model", "task"]
        resident = GaugeMetricFamily("headway_heads_resident", "Personal heads in memory.", labels=of_output)
        size = GaugeMetricFamily("headway_heads_resident_bytes", "Bytes they take.", labels=of_output)
        ready = GaugeMetricFamily("headway_model_ready", "1 while the model answers.", labels=["model", "version"])
        counts = {
            what: CounterMetricFamily(f"headway_head_cache_{what}", f"Head cache {what}.", labels=of_output)
            for what in ("hits", "misses", "evictions")
        }
        for name, loaded in self._models.by_name().items():
            live = [m for m in loaded if isinstance(m, LoadedModel)]
            pending.add_metric([name], sum(int(m.memory.counts[:, Cell.PENDING].sum()) for m in live))
            for task in dict.fromkeys(output.output for m in live for output in m.each) or ("",):
                which, outputs = [name, task], [o for m in live for o in m.each if o.output == task]
                resident.add_metric(which, sum(len(m.bank) for m in outputs))
                size.add_metric(which, sum(m.bank.nbytes for m in outputs))
                for what, family in counts.items():
                    elsewhere = {"hits": Cell.HITS, "misses": Cell.MISSES}.get(what)
                    counted = sum(int(m.memory.counts[1:, elsewhere].sum()) for m in outputs if elsewhere is not None)
                    family.add_metric(which, sum(getattr(m.bank, what) for m in outputs) + counted)
            for m in loaded:
                ready.add_metric([name, str(m.version)], float(isinstance(m, LoadedModel)))
        yield from (pending, resident, size, ready, *counts.values())


class RequestScope:
    """Plain ASGI middleware: a request id, the duration and the outcome of every request.

    The endpoint is the matched route's name and the model is noted by the route; a raw path is never a label.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        state = scope.setdefault("state", {})
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), None)
        request_id = request_id_of(given)
        state["request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                if not state.get("recorded"):
                    headers.append((b"x-request-id", request_id.encode("latin-1")))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._record(scope, state, status, time.perf_counter() - begin)

    def _record(self, scope: Scope, state: dict[str, object], status: int, seconds: float) -> None:
        if state.get("recorded"):
            return
        model, endpoint = str(state.get("model", "")), _endpoint(scope)
        self._metrics.requests.labels(model, str(state.get("model_version", "")), endpoint, str(status)).inc()
        self._metrics.request_duration.labels(model, endpoint).observe(seconds)
        if status >= 400:
            self._metrics.rejected.labels(str(state.get("error_code", status))).inc()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s %s %.1f ms %s", scope["method"], endpoint, status, seconds * 1e3, state["request_id"])


def request_id_of(given: bytes | None) -> str:
    """Return the request id that the client gave, if it is one, or a new one."""
    if given is not None and 0 < len(given) <= 128 and given.isascii() and given.decode("ascii").isprintable():
        return given.decode("ascii")
    return _PROCESS + f"{next(_sequence):08x}"


def _endpoint(scope: Scope) -> str:
    return str(getattr(scope.get("route"), "name", "other"))
