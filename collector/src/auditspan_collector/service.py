"""The composition root: builds a collector's rooms, starts them in order, stops them in reverse.

One process has one Service: the whole collector, or one of its workers, which share ports and divide the spool.

    start   spool -> metrics -> intake -> drain -> receivers -> health says serving
    stop    health says so -> receivers finish what runs -> intake commits what waits -> drain sends what it can -> spool

The order is the promise. Receivers start last, so that no request is taken that could not be kept; they stop first,
so that each request that was begun gets its answer. What the drain does not send in time is sent after the next start.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.errors import ShuttingDown, SpoolFull
from auditspan_collector.metrics import Metrics, MetricsServer
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.control import Control
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.pipeline.encode import encoder
from auditspan_collector.pipeline.intake import Intake
from auditspan_collector.pipeline.takeover import Takeover
from auditspan_collector.receiver.config import Address
from auditspan_collector.receiver.grpc import GrpcReceiver
from auditspan_collector.receiver.http import HttpReceiver
from auditspan_collector.receiver.listening import claim
from auditspan_collector.receiver.senders import Senders
from auditspan_collector.spool import Spool, left_over, share
from auditspan_collector.transcode import COMPILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.config import Config
    from auditspan_collector.pipeline.intake import IntakeMetrics
    from auditspan_collector.record import Selection
    from auditspan_collector.spool import Config as SpoolConfig

# Of the limit; the rest is the drain's.
_RECEIVERS_SHARE: Final = 0.4
_MIN_DRAIN_S: Final = 1.0
# A full spool is believed to be full for this long after a refusal. Then requests must be let through to find out:
# whoever balances load by our health would never send one again. Longer than what senders are told to wait.
_FULL_S: Final = 15.0
_LOG_EVERY_S: Final = 60.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Which worker of a collector this process is: *number*, from 1, *of* so many."""

    number: int = 1
    of: int = 1


def build(config: Config, place: Place | None = None) -> Service:
    """A collector that *start* brings up, or the worker at *place* in one. Touches nothing yet.

    A worker has its share of ``config.spool``, listens on ports that somebody holds for all, and serves no metrics.
    """
    return Service(config, place or Place())


class Service:
    """One collector in this process. *start* once, *stop* once, from the same thread."""

    def __init__(self, config: Config, place: Place) -> None:
        """For *build*."""
        self._config = config
        self._place = place
        self._running = ExitStack()
        self._deadline = 0.0
        self._health = Health()
        self._prepared = threading.Event()
        self.grpc_port = 0
        self.http_port = 0
        self.metrics_port = 0
        self.stream = ""
        self.metrics: Metrics | None = None

    def start(self) -> None:
        """Start everything; when it returns, requests are answered and the ports are known.

        ClickHouse need not be there. Raises ConfigError, SpoolInUse or SpoolDamaged, with everything stopped again.
        """
        config, place = self._config, self._place
        with ExitStack() as started:
            own = share(config.spool, place.number, place.of)
            spool = Spool.open(own, config.collector.deployment, config.collector.name)
            started.callback(spool.close)
            self.stream = spool.stream
            metrics = self.metrics = Metrics(version=version("auditspan-collector"), stream=spool.stream)
            client = ClickHouseClient(config.clickhouse)
            started.callback(client.close)
            drain = Drain(
                spool,
                client,
                prepare=partial(self._prepare, client),
                config=config.drain,
                metrics=metrics,
            )
            folder = Path(own.path)
            metrics.watch(spool, drain, folder=folder, capacity_bytes=own.capacity_bytes)
            intake = Intake(
                spool,
                encoder(config.limits, config.tagging.rules),
                config=config.intake,
                metrics=self._health.watching(metrics),
            )
            self._serve_metrics(started, metrics)
            drain.start()
            started.callback(lambda: drain.stop(max(_MIN_DRAIN_S, self._left_s())))
            control = Control(folder, spool, drain, client, capacity_bytes=own.capacity_bytes)
            control.start()
            started.callback(control.stop)
            self._take_over(started, client, metrics)
            intake.start()
            started.callback(intake.stop)
            self._receive(started, intake, metrics)
            self._running = started.pop_all()
        if place.of > 1:
            _log.info("worker %d of %d started: stream %s", place.number, place.of, self.stream)
        else:
            _log.info("%s, stream %s", started_line(config, self.grpc_port, self.http_port), self.stream)
        if not COMPILED and place.number == 1:
            _log.warning(
                "the hot path is not compiled here: each span costs about ten times the CPU. Install a C compiler and "
                "Python's headers, then auditspan-collector again"
            )

    def stop(self, limit_s: float | None = None) -> None:
        """Answer what runs, keep what was taken, send what can be sent in *limit_s*; then free ports and spool.

        The limit is ``collector.stop_limit_s`` when none is given.
        """
        limit_s = self._config.collector.stop_limit_s if limit_s is None else limit_s
        self._deadline = time.monotonic() + limit_s
        name = "collector" if self._place.of == 1 else f"worker {self._place.number}"
        _log.info("%s stopping", name)
        self._running.close()
        _log.info("%s stopped", name)

    @property
    def problem(self) -> str:
        """Why requests are not kept; empty when they are."""
        return self._health.problem()

    @property
    def prepared(self) -> bool:
        """Whether the table is there, so that it can be asked."""
        return self._prepared.is_set()

    def watch(self) -> None:
        """Nothing: this process is all there is. A collector of several workers starts again what died."""

    def wait_for_table(self, limit_s: float) -> bool:
        """Whether the table is there, so that it can be asked; waits for ClickHouse up to *limit_s*."""
        return self._prepared.wait(limit_s)

    def _left_s(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _prepare(self, client: ClickHouseClient) -> None:
        clickhouse = self._config.clickhouse
        for step in migrate(client, clickhouse.database, clickhouse.cluster):
            _log.info("database %s: %s", clickhouse.database, step)
        self._prepared.set()

    def _serve_metrics(self, started: ExitStack, metrics: Metrics) -> None:
        listen = self._config.telemetry.metrics_listen
        if not listen or self._place.of > 1:
            return
        listener = claim("telemetry.metrics_listen", Address.parse(listen))
        self.metrics_port = listener.getsockname()[1]
        server = MetricsServer(metrics.registry, lambda: (self.problem, ""))
        server.start(listener)
        started.callback(server.stop)

    def _take_over(self, started: ExitStack, client: ClickHouseClient, metrics: Metrics) -> None:
        takeover = Takeover(
            left_for(self._config.spool, self._place),
            client,
            prepare=partial(self._prepare, client),
            config=self._config.drain,
            metrics=metrics,
            deployment=self._config.collector.deployment,
            collector=self._config.collector.name,
        )
        metrics.watch_takeover(takeover)
        takeover.start()
        started.callback(lambda: takeover.stop(self._left_s() / 2))

    def _receive(self, started: ExitStack, intake: Intake, metrics: Metrics) -> None:
        config = self._config.receiver
        senders = Senders(config)
        shared = self._place.of > 1
        grpc = GrpcReceiver(config, senders, intake.submit, metrics, offer=intake.offer, shared=shared)
        http = HttpReceiver(config, senders, intake.submit, metrics, shared=shared)
        started.callback(lambda: _stop_together(grpc, http, self._left_s() * _RECEIVERS_SHARE))
        grpc.start()
        http.start()
        self.grpc_port, self.http_port = grpc.port, http.port
        self._health.on_change(grpc.serving)
        # First of all, so that whoever balances load sends nothing more.
        started.callback(self._health.stopping)


def _later(delay_s: float, call: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, call)
    timer.daemon = True
    timer.start()


class Health:
    """Whether requests are kept: no while starting and stopping, and no after a commit failed until one succeeds.

    With a full spool or disk also no, until a commit succeeds or nobody has tried for 15 s. The log says when
    refusing begins and when it has ended, at most once a minute. Thread-safe.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], None] = _later,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._later = later
        self._full = ""  # the problem, as long as a full spool is one
        self._refused_at = 0.0
        self._refused_requests = 0  # since the log said that it begins; 0 while it has not
        self._began_at = float("-inf")
        self._problem = "starting"
        self._tell: Callable[[bool], None] = lambda healthy: None  # noqa: ARG005 - nobody is told yet

    def problem(self) -> str:
        """Why requests are not kept; empty when they are."""
        return self._problem

    def on_change(self, tell: Callable[[bool], None]) -> None:
        """Requests are kept from now on; *tell* is called with the state at once and at every change."""
        self._tell = tell
        self._set("")

    def stopping(self) -> None:
        """No more requests; for good."""
        self._set("stopping")

    def watching(self, metrics: IntakeMetrics) -> IntakeMetrics:
        """*metrics*, listened to on its way."""
        return _Listening(self, metrics)

    def committed(self) -> None:
        """A commit succeeded."""
        if self._problem:
            self._full = ""
            self._set("")
        if self._refused_requests:
            _log.info(
                "records are taken again; %d requests were refused in %.0f s",
                self._refused_requests,
                self._clock() - self._began_at,
            )
            self._refused_requests = 0

    def failed(self, error: BaseException, *, requests: int = 1) -> None:
        """A commit of so many requests failed."""
        if isinstance(error, SpoolFull):
            self._refused(str(error), requests)
        elif not isinstance(error, ShuttingDown):
            self._set(f"the last commit to the spool failed: {error}")

    def _refused(self, problem: str, requests: int) -> None:
        now = self._refused_at = self._clock()
        if self._refused_requests:
            self._refused_requests += requests
        elif now - self._began_at >= _LOG_EVERY_S:
            self._began_at, self._refused_requests = now, requests
            _log.warning("records are refused, senders keep them and try again: %s", problem)
        if not self._full:
            self._later(_FULL_S, self._still_full)
        self._full = problem
        self._set(problem)

    def _still_full(self) -> None:
        """Called _FULL_S after the first refusal, and again for as long as others follow."""
        full, left_s = self._full, self._refused_at + _FULL_S - self._clock()
        if full and left_s > 0:
            self._later(left_s, self._still_full)
        elif full:
            self._full = ""
            if self._problem == full:
                self._set("")

    def _set(self, problem: str) -> None:
        with self._lock:
            if self._problem == "stopping":
                return
            changed = bool(problem) != bool(self._problem)
            self._problem = problem
            if changed:
                self._tell(not problem)


class _Listening:
    """IntakeMetrics that pass everything on."""

    def __init__(self, health: Health, metrics: IntakeMetrics) -> None:
        self._health = health
        self._metrics = metrics

    def selected(self, selection: Selection) -> None:
        self._metrics.selected(selection)

    def committed(self, *, requests: int, records: int, duplicates: int, elapsed_s: float) -> None:
        self._health.committed()
        self._metrics.committed(
            requests=requests, records=records, duplicates=duplicates, elapsed_s=elapsed_s
        )

    def flagged(self, *, conflicts: int, forgotten: int) -> None:
        self._metrics.flagged(conflicts=conflicts, forgotten=forgotten)

    def refused(self, error: BaseException, *, requests: int) -> None:
        self._health.failed(error, requests=requests)
        self._metrics.refused(error, requests=requests)


def left_for(config: SpoolConfig, place: Place) -> list[SpoolConfig]:
    """The spools of workers that are no more which the worker at *place* empties; each falls to one worker."""
    return [
        share(config, number, place.of)
        for number in left_over(config, place.of)
        if (number - 1) % place.of + 1 == place.number
    ]


def started_line(config: Config, grpc_port: int, http_port: int) -> str:
    """What is said once requests are taken: where, and where they go."""
    return (
        f"collector started: OTLP/gRPC on {_listening(config.receiver.grpc.listen, grpc_port)}, "
        f"OTLP/HTTP on {_listening(config.receiver.http.listen, http_port)}, ClickHouse at {config.clickhouse.url}"
    )


def _stop_together(grpc: GrpcReceiver, http: HttpReceiver, grace_s: float) -> None:
    other = threading.Thread(target=http.stop, args=(grace_s,))
    other.start()
    grpc.stop(grace_s)
    other.join()


def _listening(listen: str, port: int) -> str:
    return str(Address(Address.parse(listen).host, port))
