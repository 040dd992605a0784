"""Several processes as one collector: started, watched, started again when they die, and never left behind.

    ports     held for all workers, so that no other collector can slip in between them (receiver.listening.reserve)
    workers   the first one alone, since it finds out whether the folder is free; then the others together
    metrics   one listener that asks all of them (worker_report)

The kernel spreads connections over the workers (SO_REUSEPORT). They share no state, so a worker that dies takes
nothing with it but the requests it was about to answer, and its spool is there for its next run. Of a collector that
was killed no worker is left: each ends with the pipe that its supervisor held.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec.structs import replace

from auditspan_collector import service
from auditspan_collector.cli import worker
from auditspan_collector.cli.child_process import ChildProcess, Restarts
from auditspan_collector.cli.data_folder import locked
from auditspan_collector.cli.worker_report import Greeting, Report, merged_registry
from auditspan_collector.errors import AuditspanError, ConfigError
from auditspan_collector.metrics import MetricsServer
from auditspan_collector.receiver.config import Address
from auditspan_collector.receiver.listening import claim, reserve
from auditspan_collector.spool import WORKERS_LOCK_FILE, check_shares, prepare_folder

if TYPE_CHECKING:
    from auditspan_collector.config import Config

START_LIMIT_S: Final = 60.0
STOP_MARGIN_S: Final = 5.0  # over collector.stop_limit_s, which a worker keeps by itself
TERMINATE_LIMIT_S: Final = 2.0
# The workers of a collector that was killed end at once; this long at most the next one waits for them.
PREVIOUS_RUN_LIMIT_S: Final = 2.0
REPORT_LIMIT_S: Final = 2.0
OVERDUE_LIMIT_S: Final = (
    0.1  # for a worker that let the last one pass: a scrape of many that hang must end in time
)
WATCH_EVERY_S: Final = 0.1
IN_USE: Final = (
    "spool.path: {folder} is in use by the workers of process {{process}}; stop that one, or give this one a folder "
    "of its own"
)

_log = logging.getLogger(__name__)


def build(config: Config) -> service.Service | Workers:
    """The collector that *config* describes: in this process, or of several."""
    return service.build(config) if config.collector.workers == 1 else Workers(config)


class WorkerProcess:
    """One worker, over all its runs. One thread starts, watches and stops it; *report* is for any thread."""

    def __init__(self, settings: worker.Settings, lock: int) -> None:
        """*lock* is the descriptor that a worker holds for as long as it lives."""
        self.number = settings.number
        self.deaths = 0
        self._settings = msgspec.json.encode(settings)
        self._lock = lock
        self._restarts = Restarts()
        self._child: ChildProcess | None = None
        self._run: _Run | None = None
        self._told = True

    @property
    def pid(self) -> int:
        """Its process id; 0 when there is none."""
        return self._child.pid if self._child else 0

    def spawn(self) -> None:
        """Start it; *wait* or *watch* says what came of that. Raises OSError."""
        self._restarts.started()
        self._told = False
        child = ChildProcess(
            f"worker {self.number}", (worker.MODULE,), self._settings, keep_open=(self._lock,)
        )
        self._child, self._run = child, _Run(child)

    def wait(self, limit_s: float) -> None:
        """Until it takes requests. Raises ConfigError or AuditspanError with its reason when it does not."""
        assert self._run is not None  # noqa: S101 - for the type checker
        self._run.settled.wait(limit_s)
        self._told = True
        greeting = self._run.greeting
        if greeting is None:
            raise AuditspanError(f"worker {self.number} did not start; the lines above say why")
        if greeting.error:
            raise (ConfigError if greeting.wrong_setting else AuditspanError)(greeting.error)

    def watch(self) -> None:
        """Start it again if it died, with growing pauses, and say how it is; to be called every now and then."""
        if self._child is not None and (how := self._child.ended()):
            reason = self._run.greeting.error if self._run and self._run.greeting else ""
            self._forget()
            self.deaths += 1
            _log.error(
                "worker %d DIED (%s); what it acknowledged is in its spool; it is started again in %.0f s",
                self.number,
                reason or how,
                self._restarts.died(),
            )
        if self._child is None and self._restarts.due():
            try:
                self.spawn()
            except OSError as error:
                _log.error(
                    "worker %d can't be started: %s; next try in %.0f s",
                    self.number,
                    error,
                    self._restarts.failed(),
                )
        elif not self._told and self._run is not None and self._run.settled.is_set():
            self._told = True
            if self._run.greeting is not None and not self._run.greeting.error:
                _log.warning("worker %d takes requests again", self.number)
        elif not self._told and self._child is not None and self._restarts.age_s() > START_LIMIT_S:
            _log.error("worker %d does not start within %.0f s; ending it", self.number, START_LIMIT_S)
            self._child.send(signal.SIGKILL)

    def report(self) -> Report | None:
        """What it says now; None when it does not answer in REPORT_LIMIT_S."""
        run = self._run
        return run.report(REPORT_LIMIT_S) if run is not None else None

    def ask_to_stop(self) -> None:
        """Begin a clean end; returns at once."""
        if self._run is not None:
            self._run.tell(worker.STOP)

    def end(self, limit_s: float) -> None:
        """Return when it is gone; in *limit_s* by itself, else by a signal."""
        if self._child is not None:
            self._child.wait(((limit_s, signal.SIGTERM), (TERMINATE_LIMIT_S, signal.SIGKILL)))
            self._forget()

    def _forget(self) -> None:
        if self._child is not None and self._run is not None:
            self._child.wait(())
            self._run.join()
            self._child.close()
        self._child = self._run = None


class _Run:
    """What one run of a worker says, read in a thread that ends with it."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self.settled = threading.Event()
        self.greeting: Greeting | None = None
        self._latest: Report | None = None
        self._asked = 0
        self._overdue = False
        self._ended = False
        self._news = threading.Condition()
        self._telling = threading.Lock()
        self._thread = threading.Thread(target=self._listen, name=f"worker-{child.pid}", daemon=True)
        self._thread.start()

    def report(self, limit_s: float) -> Report | None:
        """A fresh one, or None. While one is awaited no other is asked for, so a worker that hangs costs nothing."""
        if not self.settled.is_set():
            return None
        with self._news:
            if self._latest is None or self._latest.number == self._asked:
                self._asked += 1
                self.tell(b"%s %d" % (worker.REPORT, self._asked))
            wanted = self._asked
            limit_s = OVERDUE_LIMIT_S if self._overdue else limit_s
            self._news.wait_for(lambda: self._ended or self._is(wanted), limit_s)
            self._overdue = not self._is(wanted)
            return None if self._overdue else self._latest

    def _is(self, wanted: int) -> bool:
        return self._latest is not None and self._latest.number >= wanted

    def tell(self, line: bytes) -> None:
        """Say *line*; a worker that is gone hears nothing."""
        with self._telling:
            try:
                self._child.tell(line)
            except (OSError, ValueError):
                _log.debug("a worker that ended was told %r", line)

    def join(self) -> None:
        """After the worker's end: until nothing more comes."""
        self._thread.join()

    def _listen(self) -> None:
        try:
            for line in self._child.output:
                if self.greeting is None:
                    self.greeting = msgspec.json.decode(line, type=Greeting)
                    self.settled.set()
                    continue
                report = msgspec.json.decode(line, type=Report)
                with self._news:
                    self._latest = report
                    self._news.notify_all()
        except (ValueError, msgspec.DecodeError):
            _log.exception("a worker said what can't be understood")
        finally:
            self.settled.set()
            with self._news:
                self._ended = True
                self._news.notify_all()


class Workers:
    """A collector of several workers, with the face of a Service. *start*, *watch* and *stop* from one thread."""

    def __init__(self, config: Config) -> None:
        """*config* says how many: ``collector.workers``."""
        self._config = config
        self._running = ExitStack()
        self._workers: list[WorkerProcess] = []
        self.grpc_port = 0
        self.http_port = 0
        self.metrics_port = 0

    def start(self) -> None:
        """Start all; when this returns, each takes requests. Raises what the first that fails says, all ended again."""
        config = self._config
        check_shares(config.spool, config.collector.workers)
        with ExitStack() as started:
            folder = prepare_folder(config.spool)
            lock = started.enter_context(
                locked(
                    folder / WORKERS_LOCK_FILE,
                    wait_s=PREVIOUS_RUN_LIMIT_S,
                    taken=IN_USE.format(folder=folder),
                )
            )
            config = self._hold_ports(started, config)
            self._workers = [
                WorkerProcess(worker.Settings(number, config.collector.workers, config), lock)
                for number in range(1, config.collector.workers + 1)
            ]
            started.callback(self._end)
            self._spawn()
            self._serve_metrics(started)
            self._running = started.pop_all()
        line = service.started_line(config, self.grpc_port, self.http_port)
        _log.info("%s, %d workers", line, len(self._workers))

    def _hold_ports(self, started: ExitStack, config: Config) -> Config:
        """*config* with the ports that the workers share."""
        receiver = config.receiver
        held = {}
        for name in ("grpc", "http"):
            holder = reserve(f"receiver.{name}.listen", receiver.address(name))
            started.enter_context(holder)
            held[name] = holder.getsockname()[1]
        self.grpc_port, self.http_port = held["grpc"], held["http"]
        return replace(
            config,
            receiver=replace(
                receiver,
                grpc=replace(receiver.grpc, listen=_on(receiver.address("grpc"), held["grpc"])),
                http=replace(receiver.http, listen=_on(receiver.address("http"), held["http"])),
            ),
        )

    def _spawn(self) -> None:
        first, *others = self._workers
        try:
            first.spawn()
            first.wait(START_LIMIT_S)
            for each in others:
                each.spawn()
        except OSError as error:
            raise AuditspanError(f"a worker can't be started: {error}") from error
        for each in others:
            each.wait(START_LIMIT_S)

    def _serve_metrics(self, started: ExitStack) -> None:
        listen = self._config.telemetry.metrics_listen
        if not listen:
            return
        listener = claim("telemetry.metrics_listen", Address.parse(listen))
        self.metrics_port = listener.getsockname()[1]
        server = MetricsServer(merged_registry(self._workers), self.health)
        server.start(listener)
        started.callback(server.stop)

    def health(self) -> tuple[str, str]:
        """Why no worker takes requests, empty while any does; and what is to be said of those that do not."""
        problems = []
        for each in self._workers:
            report = each.report()
            problem = "it does not answer" if report is None else report.problem
            if problem:
                problems.append(f"worker {each.number}: {problem}")
        said = "; ".join(problems)
        return (said if len(problems) == len(self._workers) else "", said)

    def watch(self) -> None:
        """Start again what died; to be called every WATCH_EVERY_S or so."""
        for each in self._workers:
            each.watch()

    def wait_for_table(self, limit_s: float) -> bool:
        """Whether the table is there, so that it can be asked; waits for ClickHouse up to *limit_s*."""
        deadline = time.monotonic() + limit_s
        while True:
            if any(report.prepared for each in self._workers if (report := each.report())):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(WATCH_EVERY_S)

    def stop(self) -> None:
        """Have all workers stop cleanly, at the same time; then free ports and spools."""
        _log.info("collector stopping")
        self._running.close()
        _log.info("collector stopped")

    def _end(self) -> None:
        deadline = time.monotonic() + self._config.collector.stop_limit_s + STOP_MARGIN_S
        for each in self._workers:
            each.ask_to_stop()
        for each in self._workers:
            each.end(max(0.0, deadline - time.monotonic()))


def _on(address: Address, port: int) -> str:
    return str(Address(address.host, port))
