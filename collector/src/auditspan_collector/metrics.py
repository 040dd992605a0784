"""Count what is accepted, kept, refused, spooled and inserted, and show it to Prometheus.

One registry a collector, none global. The rooms say what happened through small protocols of their own and know
nothing of Prometheus; what the spool holds is read when somebody asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from auditspan_collector.hosts import Hosts
from auditspan_collector.pipeline import quarantine
from auditspan_collector.pipeline.drain import State
from auditspan_collector.receiver.answers import refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from auditspan_collector.errors import AuditspanError
    from auditspan_collector.pipeline.drain import Drain
    from auditspan_collector.pipeline.takeover import Takeover
    from auditspan_collector.record import Selection
    from auditspan_collector.spool import Spool

_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_REQUEST_LIMIT_S: Final = 10.0
_MAX_MARKS: Final = 4096


class Metrics:
    """All metrics of one collector. Thread-safe; no method raises or waits."""

    def __init__(self, *, version: str, stream: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Otherwise each counter comes with a second series, of when it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        Info("auditspan_collector", "This collector", registry=self.registry).info(
            {"version": version, "stream": stream}
        )
        self._receiver()
        self._intake()
        self._drain()
        self._held: dict[str, Gauge] = {}
        self._spool()

    def _receiver(self) -> None:
        self._requests = Counter(
            "auditspan_receiver_requests",
            "Requests answered, by transport (grpc, http) and outcome: ok, or why it was refused",
            ["transport", "outcome"],
            registry=self.registry,
        )
        self._body_bytes = Counter(
            "auditspan_receiver_body_bytes",
            "Bytes of request bodies as they were read; over HTTP before decompression",
            ["transport"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "auditspan_receiver_request_duration_seconds",
            "From the first byte of a request to its answer, the wait for the disk included",
            ["transport"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        # Finding the children of a metric costs more than counting. Transports and outcomes are few.
        self._answers = cache(
            lambda transport, outcome: (
                self._requests.labels(transport, outcome),
                self._body_bytes.labels(transport),
                self._request_seconds.labels(transport),
            )
        )

    def _intake(self) -> None:
        self._spans = Counter(
            "auditspan_spans_received", "Spans in valid requests, audited or not", registry=self.registry
        )
        self._tagged = Counter(
            "auditspan_spans_tagged",
            "Spans with audit attributes, ordinary copies not among them",
            registry=self.registry,
        )
        self._copies = Counter(
            "auditspan_spans_copies",
            "Ordinary copies of records that come by their service's spool; not kept",
            registry=self.registry,
        )
        self._invalid = Counter(
            "auditspan_spans_invalid",
            "Audit-tagged spans refused for their ids; named in partial_success",
            registry=self.registry,
        )
        self._kept = Counter("auditspan_records_kept", "Records sealed and on disk", registry=self.registry)
        self._duplicates = Counter(
            "auditspan_records_duplicate",
            "Records that were on disk already; a sender's retry",
            registry=self.registry,
        )
        self._flagged = Counter(
            "auditspan_records_flagged",
            "Records kept whose sequence number or record id came before: with other content (conflict), or so long ago "
            "that its content is no longer known (forgotten)",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("conflict", "forgotten"):
            self._flagged.labels(reason)
        self._commit_seconds = Histogram(
            "auditspan_commit_duration_seconds",
            "One commit to disk",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._group_requests = Histogram(
            "auditspan_commit_requests",
            "Requests that shared a commit",
            buckets=_SIZES,
            registry=self.registry,
        )
        self._not_kept = Counter(
            "auditspan_commit_refused_requests",
            "Requests whose commit failed: spool_full, shutting_down, or internal",
            ["reason"],
            registry=self.registry,
        )

    def _drain(self) -> None:
        self._inserted = Counter(
            "auditspan_drain_inserted_records",
            "Records stored in ClickHouse and released",
            registry=self.registry,
        )
        self._insert_seconds = Histogram(
            "auditspan_drain_insert_duration_seconds",
            "One range from its first byte sent to its release",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "auditspan_drain_failures",
            "Tries that failed: transient ones are repeated, a permanent one stops the drain",
            ["kind"],
            registry=self.registry,
        )
        for kind in ("transient", "permanent"):
            self._failures.labels(kind)

    def _spool(self) -> None:
        for name, help_text in (
            ("records", "Records on disk that ClickHouse does not have yet"),
            ("bytes", "Disk that they take"),
            ("capacity_bytes", "Disk that they may take before senders are refused"),
            (
                "oldest_age_seconds",
                "How long the oldest of them waits, as far as this process knows; 0 when none does",
            ),
        ):
            self._held[name] = Gauge(f"auditspan_spool_{name}", help_text, registry=self.registry)
        self._held["quarantined_records"] = Gauge(
            "auditspan_spool_quarantined_records",
            "Records set aside with `auditspan spool quarantine` and not in ClickHouse",
            registry=self.registry,
        )
        self._left = Gauge(
            "auditspan_spool_left_records",
            "Records in the spool that is being emptied for a worker that is no more",
            registry=self.registry,
        )
        self._state = _DrainState()
        self.registry.register(self._state)

    def watch(self, spool: Spool, drain: Drain, *, folder: Path, capacity_bytes: int) -> None:
        """Show what *spool* in *folder* holds and how *drain* is, read at each scrape; call once, before they start."""
        ages = _Ages(spool, self._clock)
        spool.on_commit(ages.committed)
        self._held["records"].set_function(lambda: spool.backlog().records)
        self._held["bytes"].set_function(lambda: spool.backlog().bytes)
        self._held["capacity_bytes"].set(capacity_bytes)
        self._held["quarantined_records"].set_function(
            lambda: sum(each.records for each in quarantine.listed(folder))
        )
        self._held["oldest_age_seconds"].set_function(ages.oldest_s)
        self._state.drain = drain

    def watch_takeover(self, takeover: Takeover) -> None:
        """Show how the spools of former workers are emptied; call once, before that starts."""
        self._left.set_function(lambda: takeover.records)
        self._state.takeover = takeover

    # receiver.ReceiverMetrics

    def answered(self, transport: str, outcome: str, *, body_bytes: int, duration_s: float) -> None:
        """A request was answered."""
        requests, bodies, seconds = self._answers(transport, outcome)
        requests.inc()
        bodies.inc(body_bytes)
        seconds.observe(duration_s)

    # pipeline.intake.IntakeMetrics

    def selected(self, selection: Selection) -> None:
        """A request was read, with what it holds; before its commit."""
        self._spans.inc(selection.spans)
        for counter, count in (
            (self._tagged, selection.tagged),
            (self._copies, selection.copies),
            (self._invalid, selection.invalid),
        ):
            if count:
                counter.inc(count)

    def committed(self, *, requests: int, records: int, duplicates: int, elapsed_s: float) -> None:
        """A group is on disk."""
        self._kept.inc(records)
        self._duplicates.inc(duplicates)
        self._commit_seconds.observe(elapsed_s)
        self._group_requests.observe(requests)

    def flagged(self, *, conflicts: int, forgotten: int) -> None:
        """Records are kept whose key came before."""
        self._flagged.labels("conflict").inc(conflicts)
        self._flagged.labels("forgotten").inc(forgotten)

    def refused(self, error: BaseException, *, requests: int) -> None:
        """So many requests failed with *error* at the spool."""
        reason = refusal(error).reason if isinstance(error, Exception) else "internal"
        self._not_kept.labels(reason).inc(requests)

    # pipeline.drain.DrainMetrics

    def inserted(self, *, records: int, elapsed_s: float) -> None:
        """A range is stored and released."""
        self._inserted.inc(records)
        self._insert_seconds.observe(elapsed_s)

    def retrying(self, error: AuditspanError, *, delay_s: float) -> None:  # noqa: ARG002 - the log says why
        """A try failed; the next comes after *delay_s*."""
        self._failures.labels("transient").inc()

    def stopped(self, error: BaseException) -> None:  # noqa: ARG002 - the log says why
        """Nothing is sent any more, until *resumed*."""
        self._failures.labels("permanent").inc()

    def resumed(self) -> None:
        """The drain goes on after *stopped*; its state is read at each scrape."""


def markdown() -> str:
    """docs/metrics.md: every metric of ours with its type and meaning."""
    registry = Metrics(version="", stream="").registry
    rows = [
        f"| `{family.name}{_SUFFIX.get(family.type, '')}` | {family.type} | {family.documentation} |"
        for family in registry.collect()
        if family.name.startswith("auditspan_")
    ]
    return "\n".join([INTRODUCTION, *rows, ""])


_SUFFIX: Final = {"counter": "_total", "info": "_info"}  # what the exposition adds to a name
INTRODUCTION: Final = """\
# Metrics

The collector serves Prometheus metrics on `telemetry.metrics_listen` (`http://127.0.0.1:8888/metrics`), and on
`/healthz` of the same address `ok`, or with status 503 why it takes no records. gRPC's health service says the same.
A full spool or disk is such a reason until a commit succeeds, or nobody has tried for 15 seconds, so that whoever
balances load by it finds out. That needs no restart: use it for readiness, not for liveness. Beside its own it shows the
process's (`process_resident_memory_bytes`, `process_cpu_seconds_total`, `process_open_fds`, ...).

Worth an alarm:

- `auditspan_drain_state{state="stopped"} == 1`: ClickHouse refuses for good, a person is needed. Nothing is lost while
  the spool has room. `auditspan spool list` says why, `retry` and `quarantine` are the ways out.
- `auditspan_spool_quarantined_records > 0`: records are set aside and not in ClickHouse.
- `auditspan_spool_oldest_age_seconds > 300`: records don't reach ClickHouse.
- `auditspan_spool_bytes / auditspan_spool_capacity_bytes > 0.8`: soon senders will be asked to come back later.
- `rate(auditspan_receiver_requests_total{outcome!="ok"}[5m]) > 0`: something is refused; `outcome` says why.
- `rate(auditspan_spans_invalid_total[5m]) > 0`: a service sends records that can't be kept.
- `rate(auditspan_records_flagged_total{reason="conflict"}[5m]) > 0`: somebody sends two different records under one
  number or id; the view `conflicts` shows them.

| metric | type | meaning |
|---|---|---|"""


class _DrainState(Collector):
    """``auditspan_drain_state``, one series a state, 1 for the present one."""

    def __init__(self) -> None:
        self.drain: Drain | None = None
        self.takeover: Takeover | None = None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "auditspan_drain_state",
            "1 for what the drain does: running, retrying (ClickHouse is away), stopped (needs a person)",
            labels=["state"],
        )
        now = self.drain.status.state if self.drain else None
        if self.takeover is not None and self.takeover.stopped:
            now = "stopped"
        for state in get_args(State):
            family.add_metric([state], float(state == now))
        yield family


class _Ages:
    """When the records of the spool were committed, to the second; what was there before the start counts from it."""

    def __init__(self, spool: Spool, clock: Callable[[], float]) -> None:
        self._spool = spool
        self._clock = clock
        self._lock = threading.Lock()
        # (the index after a commit, when it was), both ascending
        self._marks: deque[tuple[int, float]] = deque([(spool.next_index, clock())])

    def committed(self) -> None:
        """Remember a commit; called in the committing thread."""
        now, following = self._clock(), self._spool.next_index
        with self._lock:
            self._forget_released()
            self._mark(following, now, apart_s=1.0)
            if len(self._marks) > _MAX_MARKS:
                apart_s = (now - self._marks[0][1]) / (_MAX_MARKS // 2)
                old, self._marks = self._marks, deque()
                for index, then in old:
                    self._mark(index, then, apart_s=apart_s)

    def _mark(self, index: int, then: float, *, apart_s: float) -> None:
        """Add a mark, or let the last one stand for it too: with its older time, so no age is told too small."""
        if self._marks and then - self._marks[-1][1] < apart_s:
            self._marks[-1] = (index, self._marks[-1][1])
        else:
            self._marks.append((index, then))

    def oldest_s(self) -> float:
        """Age of the oldest record that is not released, or 0."""
        with self._lock:
            self._forget_released()
            return self._clock() - self._marks[0][1] if self._marks else 0.0

    def _forget_released(self) -> None:
        released = self._spool.released_index
        while self._marks and self._marks[0][0] <= released:
            self._marks.popleft()


class MetricsServer:
    """``/metrics`` for Prometheus and ``/healthz`` for probes. Start once, stop once."""

    def __init__(self, registry: CollectorRegistry, healthy: Callable[[], tuple[str, str]]) -> None:
        """*healthy* gives an empty text, or why the collector takes no records; and what else is to be said."""
        self._registry = registry
        self._healthy = healthy
        self._server: _HttpServer | None = None

    def start(self, listener: socket.socket) -> None:
        """Serve on *listener*, which this takes over."""
        self._server = _HttpServer(listener, self._registry, self._healthy)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a slow scrape does not hold up a shutdown

    def __init__(
        self, listener: socket.socket, registry: CollectorRegistry, healthy: Callable[[], tuple[str, str]]
    ) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.hosts = Hosts(
            listener.getsockname()[0],
            hint="telemetry.metrics_listen on an address that others reach takes any",
            programs_by_any_name=True,
        )
        self.registry = registry
        self.healthy = healthy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is nothing to report."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_LIMIT_S
    server: _HttpServer

    def do_GET(self) -> None:
        """Answer a scrape or a probe."""
        path = self.path.partition("?")[0]
        refused = self.server.hosts.refusal(
            *(self.headers.get(name) for name in ("Host", "Origin", "Sec-Fetch-Site"))
        )
        if refused is not None:
            self._answer(refused.status, f"{refused.message}\n".encode(), "text/plain; charset=utf-8")
        elif path == "/metrics":
            encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, encoder(self.server.registry), content_type)
        elif path == "/healthz":
            problem, remark = self.server.healthy()
            text = problem or (f"ok, but {remark}" if remark else "ok")
            self._answer(503 if problem else 200, f"{text}\n".encode(), "text/plain; charset=utf-8")
        else:
            self._answer(404, b"/metrics or /healthz\n", "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Say nothing of what serves this."""
        return "auditspan"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """No line a scrape."""
