"""Run each case some times, in turns, and keep the medians.

The systems take turns within a case, so that a machine that gets slower for a minute slows them all. The floor of the
same case and the same run is what a figure is a multiple of. The collector's CPU counts from the first request to
the last stored row, so the insert is in it; a first short load, before the clock, warms everything up.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from urllib.error import URLError

from bench.collector import interpreted, peers
from bench.collector.systems import System, several_workers
from bench.process import Cores, PeakMemory, Process, free_port, listens, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.results import Case
    from bench.settings import Settings

GENERATORS: Final = 2
WARM_UP_S: Final = 0.5
STORE_LIMIT_S: Final = 120.0
_COLUMNS: Final = (
    "spans_per_s",
    "cpu_us_per_span",
    "rss_anon_mb",
    "latency_p50_ms",
    "latency_p99_ms",
    "drained_s",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What the systems of one comparison have in common."""

    tagged_pct: int
    workers: int
    sink: str


class Lost(Exception):  # noqa: N818 - it says what happened
    """What was acknowledged is not what was stored."""


def run(settings: Settings) -> list[Case]:
    """All cases; a line each to *settings.say*. Raises Lost when a system lost or doubled a record of ours."""
    cases: list[Case] = []
    floors: dict[tuple[int, int], float] = {}
    for setting, systems in _plan(settings):
        taken: dict[str, list[Case]] = {system.name: [] for system in systems}
        # The collector takes more in a second than the store does: what is left is inserted after the load.
        seconds = settings.seconds / 2 if setting.sink == "embedded" else settings.seconds
        for turn in range(settings.repetitions):
            for system in systems:
                folder = settings.folder / f"{system.name}-{setting.tagged_pct}-{turn}"
                try:
                    taken[system.name].append(_once(system, setting, seconds, folder))
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        cases += _medians(setting, taken, floors)
        for case in cases[-len(systems) :]:
            settings.say(_line(case))
    return cases


def _plan(settings: Settings) -> list[tuple[Setting, list[System]]]:
    floor = System("floor", stores="nothing")
    ours = System("auditspan", stores="tagged")
    every = [floor, ours]
    if interpreted.differs():
        every.append(System("interpreted", stores="tagged"))
    else:
        settings.say("there is no compiled path here: auditspan is the interpreted one")
    if settings.peers and (program := peers.rotel(settings.folder, settings.say)):
        every.append(System("rotel", stores="all", program=program))
    fewer = [pct for pct in settings.tagged if pct in (5, 100)]
    plan = [(Setting(pct, 1, "counting"), every) for pct in settings.tagged]
    if several_workers():
        plan += [(Setting(pct, 2, "counting"), [floor, ours]) for pct in fewer]
    else:
        settings.say("`auditspan collect` has no --workers here: two workers are left out")
    plan += [(Setting(pct, 1, "embedded"), [ours]) for pct in fewer]
    wanted = {"floor", *(settings.systems or (system.name for system in every))}
    return [(setting, [system for system in systems if system.name in wanted]) for setting, systems in plan]


def _once(system: System, setting: Setting, seconds: float, folder: Path) -> Case:
    """One system under one load, from its start to its end."""
    folder.mkdir(parents=True)
    cores = Cores(setting.workers)
    with ExitStack() as running:
        sink = _SINKS[setting.sink](folder, cores, running)
        process, port = system.start(
            folder, store_port=sink.port, workers=setting.workers, cores=cores.system
        )
        running.enter_context(process)
        generators = [
            running.enter_context(generator(folder, port, setting.tagged_pct, cores))
            for _ in range(GENERATORS)
        ]
        for each in generators:
            assert each.hear() == "ready"
        expected = _settle(system, sink, process, loaded(generators, WARM_UP_S), before=0)
        with PeakMemory(process) as memory:
            before_s, started = process.cpu_s(), time.monotonic()
            taken = loaded(generators, seconds)
            stored = _settle(system, sink, process, taken, before=expected) - expected
            cpu_s, drained_s = process.cpu_s() - before_s, time.monotonic() - started
        sink.check()
    return _case(taken, cpu_s=cpu_s, drained_s=drained_s, stored=stored, rss_anon_mb=memory.mb)


def _settle(system: System, sink: Sink, process: Process, taken: dict[str, Any], *, before: int) -> int:
    """How many rows the sink has once everything that *system* acknowledged has arrived. Raises Lost."""
    kind = {"tagged": "tagged", "all": "spans"}.get(system.stores)
    if kind is None:
        return 0
    expected = before + taken[kind]
    try:
        wait_until(
            "everything stored", lambda: sink.rows() >= expected, limit_s=STORE_LIMIT_S, process=process
        )
    except TimeoutError:
        if system.stores == "tagged":
            raise Lost(f"{system.name} acknowledged {expected} records, {sink.rows()} are stored") from None
    rows = sink.rows()
    # A request that was refused or whose answer was lost may have been kept: nothing says how many.
    if system.stores == "tagged" and rows != expected and not taken["refused"]:
        raise Lost(f"{system.name} acknowledged {expected} records, {rows} are stored")
    return rows


def loaded(generators: list[Process], seconds: float) -> dict[str, Any]:
    """What all generators together saw, after sending at the same time for *seconds*."""
    for each in generators:
        each.tell(str(seconds))
    answers = [json.loads(each.hear()) for each in generators]
    refused: dict[str, int] = {}
    for answer in answers:
        for code, times in answer["refused"].items():
            refused[code] = refused.get(code, 0) + times
    return {
        "spans": sum(answer["spans"] for answer in answers),
        "tagged": sum(answer["tagged"] for answer in answers),
        "bytes": sum(answer["bytes"] for answer in answers),
        "elapsed_s": max(answer["elapsed_s"] for answer in answers),
        "latencies": sorted(each for answer in answers for each in answer["latencies"]),
        "refused": refused,
    }


def _case(taken: dict[str, Any], *, cpu_s: float, drained_s: float, stored: int, rss_anon_mb: float) -> Case:
    latencies = taken["latencies"]
    return {
        "spans_per_s": taken["spans"] / taken["elapsed_s"],
        "cpu_us_per_span": cpu_s * 1e6 / taken["spans"],
        "bytes_per_span": taken["bytes"] / taken["spans"],
        "acked": taken["spans"],
        "acked_tagged": taken["tagged"],
        "stored": stored,
        "refused": sum(taken["refused"].values()),
        "rss_anon_mb": rss_anon_mb,
        "latency_p50_ms": latencies[len(latencies) // 2] * 1e3,
        "latency_p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
        "drained_s": drained_s,
    }


def _medians(
    setting: Setting, taken: dict[str, list[Case]], floors: dict[tuple[int, int], float]
) -> list[Case]:
    """One case a system: medians of its figures, sums of what was counted, and its multiple of the floor.

    The floor has no sink, so one figure of it (*floors*, by tagged_pct and workers) does for all sinks.
    """
    like = (setting.tagged_pct, setting.workers)
    if "floor" in taken:
        floors[like] = statistics.median(case["cpu_us_per_span"] for case in taken["floor"])
    cases = []
    for name, turns in taken.items():
        middle = {column: statistics.median(case[column] for case in turns) for column in _COLUMNS}
        middle["rss_anon_mb"] = max(case["rss_anon_mb"] for case in turns)
        spread = [case["cpu_us_per_span"] for case in turns]
        cases.append(
            {
                "system": name,
                "tagged_pct": setting.tagged_pct,
                "workers": setting.workers,
                "sink": setting.sink,
                "spans_per_s": round(middle["spans_per_s"]),
                "cpu_us_per_span": round(middle["cpu_us_per_span"], 3),
                "cpu_us_per_span_min": round(min(spread), 3),
                "cpu_us_per_span_max": round(max(spread), 3),
                "ratio_to_floor": round(middle["cpu_us_per_span"] / floors[like], 2),
                "bytes_per_span": round(turns[0]["bytes_per_span"]),
                "acked": sum(case["acked"] for case in turns),
                "acked_tagged": sum(case["acked_tagged"] for case in turns),
                "stored": sum(case["stored"] for case in turns),
                "refused": sum(case["refused"] for case in turns),
                "repetitions": len(turns),
                **{column: round(middle[column], 1) for column in _COLUMNS[2:]},
            }
        )
    return cases


def _line(case: Case) -> str:
    return (
        f"  {case['tagged_pct']:3d}% tagged, {case['workers']} worker(s), {case['sink']:8s}  {case['system']:11s}"
        f" {case['cpu_us_per_span']:7.2f} us/span  {case['ratio_to_floor']:5.2f} x floor"
        f"  {case['spans_per_s']:9,} spans/s"
    )


def generator(folder: Path, port: int, tagged_pct: int, cores: Cores) -> Process:
    """`bench.collector.load` against *port*; it says "ready" first."""
    number = next(_numbers)  # of its own: no two send the same
    command = [sys.executable, "-m", "bench.collector.load", str(port), str(tagged_pct), str(number)]
    return Process(command, log=folder / f"load-{number}.log", cores=cores.load, talking=True)


_numbers = count(1)


class Sink:
    """Where rows go; *rows* counts what arrived, *check* looks for what should not be there."""

    def __init__(self, process: Process, port: int) -> None:
        """*process* listens on *port*."""
        self._process = process
        self.port = port

    def rows(self) -> int:
        """How many rows are stored."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise Lost when rows are wrong."""
        raise NotImplementedError


class CountingSink(Sink):
    """`bench.collector.sink`."""

    def rows(self) -> int:
        """Spans that were inserted, repeated blocks not counted."""
        return int(self._counted()["spans"])

    def check(self) -> None:
        """Blocks must hold as many rows as their names say."""
        if failed := self._counted()["failed"]:
            raise Lost(f"{failed} inserts held other rows than their tokens say")

    def _counted(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/counted", timeout=30) as answer:
            counted: dict[str, int] = json.load(answer)
            return counted


class EmbeddedSink(Sink):
    """`auditspan store`, on its own folder."""

    def rows(self) -> int:
        """Rows of the table; 0 while the collector has not made it."""
        return self._number("SELECT count() FROM audit.records", missing=0)

    def check(self) -> None:
        """No record twice, no index left out or given twice."""
        twice = self._number("SELECT count() - uniqExact(trace_id, span_id) FROM audit.records", missing=0)
        gaps = self._number(
            "SELECT sum(n != uniq OR n != last + 1) FROM (SELECT count() AS n, uniqExact(ledger_index) AS uniq, "
            "max(ledger_index) AS last FROM audit.records GROUP BY ledger_stream)",
            missing=0,
        )
        if twice or gaps:
            raise Lost(f"{twice} records are stored twice, {gaps} streams have gaps")

    def _number(self, sql: str, *, missing: int) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/", data=sql.encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.read())
        except URLError as error:
            if getattr(error, "code", 0) == 404:
                return missing
            raise


def counting(folder: Path, cores: Cores, running: ExitStack, *, port: int = 0) -> CountingSink:
    """A counting sink that answers, on *port* or on one that is free."""
    port = port or free_port()
    command = [sys.executable, "-m", "bench.collector.sink", str(port)]
    process = running.enter_context(Process(command, log=folder / "sink.log", cores=cores.load))
    wait_until("the sink", lambda: listens(port), limit_s=30, process=process)
    return CountingSink(process, port)


def _embedded(folder: Path, cores: Cores, running: ExitStack) -> Sink:
    process, port = start_store(folder, cores.load)
    running.enter_context(process)
    return EmbeddedSink(process, port)


def start_store(folder: Path, cores: frozenset[int]) -> tuple[Process, int]:
    """The embedded store in *folder*, answering; and its port."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "auditspan_collector.cli", "store"),
        *("--path", str(folder / "store"), "--listen", f"127.0.0.1:{port}"),
    ]
    process = Process(command, log=folder / "store.log", cores=cores)
    try:
        wait_until("the store", lambda: listens(port), limit_s=60, process=process)
    except BaseException:
        process.__exit__()
        raise
    return process, port


_SINKS: Final[dict[str, Callable[[Path, Cores, ExitStack], Sink]]] = {
    "counting": counting,
    "embedded": _embedded,
}
