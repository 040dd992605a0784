"""What the collector costs with an empty spool, and with what an hour without ClickHouse leaves in it.

One collector lives through all of it, and the hour is made short by sending nothing but tagged spans:

    warm up   as many records as fill the collector's memory of those it has seen, stored again
    measure   "start": accepting with an empty spool; then a small backlog, and the first of it being sent
    away      ClickHouse is not there until an hour's records are on disk
    measure   "backlog": accepting on top of them; the first of them being sent
    drain     until the sink has every acknowledged record

While accepting is measured there is no sink, so nothing is sent; while sending is, nothing comes. The floor takes turns
with the collector, as in the suite "collector".
"""

from __future__ import annotations

import shutil
import statistics
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bench.collector.suite import GENERATORS, Lost, counting, generator, loaded
from bench.collector.systems import System
from bench.process import Cores, PeakMemory, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.collector.suite import CountingSink
    from bench.process import Process
    from bench.results import Case
    from bench.settings import Settings

TAGGED_PCT: Final = 5  # while accepting is measured
# More than the collector remembers (spool.dedup_window_records), so that its memory is full before it is looked at.
WARM_UP_RECORDS: Final = 300_000
# Sent while the clock runs: seconds of work, in ranges of ten thousand.
SENT_RECORDS: Final = 200_000
# Of a record on the disk; the spool and its copy in the system's memory must not be what fills the machine.
RECORD_BYTES: Final = 1_300
SPOOL_BYTES: Final = 24 << 30
STORE_LIMIT_S: Final = 1_800.0


def run(settings: Settings) -> list[Case]:
    """Two cases, "start" and "backlog". Raises Lost when not all that was acknowledged was stored, once."""
    wanted = settings.records
    records = min(wanted, shutil.disk_usage(settings.folder).free // 2 // RECORD_BYTES)
    if records < wanted:
        settings.say(f"  the disk has room for {records:,} records only, of {wanted:,}")
    with ExitStack() as running:
        line = _Line(settings.folder / "backlog", settings, running)
        line.fill(min(WARM_UP_RECORDS, records))
        line.drain()
        start = line.accepting()
        line.fill(min(SENT_RECORDS * 3 // 2, records))
        start |= line.sending()
        line.drain()
        start |= line.memory()
        line.fill(records)
        full = line.accepting() | line.sending() | line.memory()
        line.drain()
    return [_case("start", start), _case("backlog", full)]


def _case(when: str, measured: dict[str, Any]) -> Case:
    return {
        "system": "auditspan",
        "when": when,
        "tagged_pct": TAGGED_PCT,
        "workers": 1,
        **{name: round(value, 3) for name, value in measured.items()},
    }


@dataclass(frozen=True, slots=True)
class _Target:
    """A system that is sent to, and who sends."""

    process: Process
    generators: list[Process]


class _Line:
    """A collector, the floor, clients of both, and a sink that comes and goes."""

    def __init__(self, folder: Path, settings: Settings, running: ExitStack) -> None:
        """Start all but the sink."""
        folder.mkdir()
        self._folder = folder
        self._settings = settings
        self._cores = Cores(1)
        self._running = running
        self._store_port = free_port()
        self._ours = self._started(System("auditspan", stores="tagged", spool_bytes=SPOOL_BYTES))
        self._floor = self._started(System("floor", stores="nothing"))
        self._filler = self._clients(self._ours_port, 100)
        self._acknowledged = 0
        self._stored = 0  # by the sinks that ended
        self._peak_mb = 0.0
        self._sink: CountingSink | None = None
        self._serving = ExitStack()
        running.callback(self._serving.close)
        self.collector = self._ours.process

    def _started(self, system: System) -> _Target:
        process, port = system.start(
            self._folder, store_port=self._store_port, workers=1, cores=self._cores.system
        )
        self._running.enter_context(process)
        if system.name == "auditspan":
            self._ours_port = port
        return _Target(process, self._clients(port, TAGGED_PCT))

    def _clients(self, port: int, tagged_pct: int) -> list[Process]:
        clients = [
            self._running.enter_context(generator(self._folder, port, tagged_pct, self._cores))
            for _ in range(GENERATORS)
        ]
        for each in clients:
            assert each.hear() == "ready"
        return clients

    @property
    def backlog(self) -> int:
        """Records that were acknowledged and are not stored."""
        return self._acknowledged - self._stored - (self._sink.rows() if self._sink else 0)

    def fill(self, records: int) -> None:
        """Have so many more acknowledged."""
        enough = self._acknowledged + records
        with self._watched():
            while self._acknowledged < enough:
                self._send(self._filler, self._settings.seconds)
        self._settings.say(f"  {self.backlog:,} records wait, {self._disk_mb():,.0f} MB on disk")

    def _send(self, clients: list[Process], seconds: float) -> dict[str, Any]:
        taken = loaded(clients, seconds)
        if taken["refused"]:
            raise RuntimeError(f"the collector refused requests: {taken['refused']}")
        self._acknowledged += taken["tagged"]
        return taken

    def accepting(self) -> dict[str, Any]:
        """CPU per span while nothing is sent to a sink, beside the floor's."""
        waiting = self.backlog
        turns = []
        with self._watched():
            for _ in range(self._settings.repetitions):
                floor_us, _ = self._turn(self._floor, counts=False)
                ours_us, taken = self._turn(self._ours, counts=True)
                turns.append((ours_us, ours_us / floor_us, taken))
        latencies = sorted(each for *_, taken in turns for each in taken["latencies"])
        measured = {
            "backlog_records": waiting,
            "backlog_mb": self._disk_mb(),
            "cpu_us_per_span": statistics.median(us for us, *_ in turns),
            "cpu_us_per_span_min": min(us for us, *_ in turns),
            "cpu_us_per_span_max": max(us for us, *_ in turns),
            "ratio_to_floor": statistics.median(ratio for _, ratio, _ in turns),
            "spans_per_s": statistics.median(taken["spans"] / taken["elapsed_s"] for *_, taken in turns),
            "latency_p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        }
        self._settings.say(
            f"  {waiting:9,} wait  accepting {measured['cpu_us_per_span']:.2f} us/span"
            f"  {measured['ratio_to_floor']:.2f} x floor  {self._peak_mb:.0f} MB"
        )
        return measured

    def _turn(self, target: _Target, *, counts: bool) -> tuple[float, dict[str, Any]]:
        before_s = target.process.cpu_s()
        seconds = self._settings.seconds
        taken = self._send(target.generators, seconds) if counts else loaded(target.generators, seconds)
        return (target.process.cpu_s() - before_s) * 1e6 / taken["spans"], taken

    def sending(self) -> dict[str, Any]:
        """CPU per record of what waits, while nothing comes."""
        waiting = self.backlog
        sink = self._open_sink()
        # The collector looks for ClickHouse every few seconds.
        self._wait_for(1)
        with self._watched():
            before_s, rows, left = self.collector.cpu_s(), sink.rows(), self.backlog
            self._wait_for(rows + min(SENT_RECORDS, left))
            sent = sink.rows() - rows
            us = (self.collector.cpu_s() - before_s) * 1e6 / sent if sent else 0.0
        self._settings.say(f"  {waiting:9,} wait  sending {us:.2f} us/record  {self._peak_mb:.0f} MB")
        return {"send_cpu_us_per_record": us}

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with PeakMemory(self.collector) as memory:
            yield
        self._peak_mb = max(self._peak_mb, memory.mb)

    def memory(self) -> dict[str, Any]:
        """The highest since it was asked for last."""
        found, self._peak_mb = self._peak_mb, 0.0
        return {"rss_anon_mb": found}

    def drain(self) -> None:
        """Until nothing waits; then the sink goes away. Raises Lost."""
        sink = self._open_sink()
        expected = self._acknowledged - self._stored
        try:
            self._wait_for(expected)
        except TimeoutError:
            raise Lost(f"{expected} records were acknowledged, {sink.rows()} are stored") from None
        sink.check()
        if (rows := sink.rows()) != expected:
            raise Lost(f"{expected} records were acknowledged, {rows} are stored")
        self._stored += rows
        self._sink = None
        self._serving.close()

    def _open_sink(self) -> CountingSink:
        if self._sink is None:
            self._sink = counting(self._folder, self._cores, self._serving, port=self._store_port)
        return self._sink

    def _wait_for(self, rows: int) -> None:
        sink = self._open_sink()
        wait_until(f"{rows} rows", lambda: sink.rows() >= rows, limit_s=STORE_LIMIT_S, process=self.collector)

    def _disk_mb(self) -> float:
        return (self._folder / "spool" / "data.mdb").stat().st_blocks * 512 / (1 << 20)
