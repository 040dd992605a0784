"""Measure two services by turns that differ in one extractor, each in a process of its own.

Extractors change classes and listen for ever, so one process can't have both. Two forks of one process can: same
hashes, same modules, nearly the same memory, on one core. Time is CPU time, of the thread that answers or (where others do)
of the process. What counts is how many times as much a slice takes as the one before or after it: the middle of all turns, and
of several pairs of processes, since each is lucky or unlucky with its memory for all its life. That many times the fastest slice
is the figure. What no neighbour on the machine changes is counted besides: Python's function calls.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from auditspan import bootstrap
from opentelemetry import trace
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from bench.instrumentation.calls import provider, records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from multiprocessing.connection import Connection
    from pathlib import Path
    from typing import Self

SLICE: Final = 10  # requests; a few ms, since the speed of a shared machine comes and goes in longer ones
WARM_UP: Final = 100  # requests
_LIMIT_S: Final = 60.0  # for one answer of a process


class Service:
    """The SDK of a process, with Auditspan and some of its *extractors*, as ``opentelemetry-instrument`` starts them."""

    def __init__(self, folder: Path, extractors: Iterable[str], *, measured: bool) -> None:
        """*measured* says that the extractor in question is among them."""
        self.measured = measured
        self.provider = provider(ParentBased(ALWAYS_ON), folder)
        trace.set_tracer_provider(self.provider)
        self._extractors = [importlib.import_module(f"auditspan.extractors.{name}") for name in extractors]
        bootstrap.start_extractors(self._extractors)

    def instrument(self, instrumentor: str, start: Callable[..., object], *what: Any) -> None:
        """Call the *start* of an *instrumentor*, ``module:Class``, with the hooks of our extractors."""
        given = {"tracer_provider": self.provider, "meter_provider": NoOpMeterProvider()}
        arguments, afterwards = bootstrap.hooks(instrumentor, given, self._extractors)
        start(*what, **arguments)
        afterwards()


@dataclass(frozen=True)
class Subject:
    """A service, measured *on* something with the *extractor* and without it; *beside* are extractors that both have.

    A request leaves so many *records*, without and with it; *tells* is what only those with it say. *service* makes
    what answers requests for some orders, and says the seconds of CPU that count where not all do. *whole* says that other threads than the caller's do the work.
    """

    on: str
    extractor: str
    service: Callable[[Service], Callable[[range], float | None]]
    beside: tuple[str, ...] = ()
    records: tuple[int, int] = (1, 1)
    tells: bytes = b"alice"
    whole: bool = False
    case: str = "extractor"


class _Ended(NamedTuple):
    """What a process leaves: so many records, whether they tell what the extractor does, and the calls of a last slice."""

    records: int
    tells: bool
    calls: int


class _Turn:
    """One of the two, in a process of its own."""

    def __init__(self, subject: Subject, folder: Path, *, measured: bool) -> None:
        context = multiprocessing.get_context("fork")
        self._orders, theirs = context.Pipe()
        self._name = f"{subject.on} {'with' if measured else 'without'} {subject.extractor}"
        self._process = context.Process(target=_run, args=(theirs, subject, folder, measured), daemon=True)
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until it is warm."""
        self._answer()

    def serve(self, orders: range) -> float:
        """CPU us a request."""
        self._orders.send(orders)
        return float(self._answer()) / len(orders) * 1e6

    def end(self) -> _Ended:
        """What became of all its requests; the process ends."""
        self._orders.send(None)
        found: _Ended = self._answer()
        return found

    def _answer(self) -> Any:
        if not self._orders.poll(_LIMIT_S):
            raise TimeoutError(f"{self._name}: no answer within {_LIMIT_S} s")
        try:
            return self._orders.recv()
        except EOFError:
            raise RuntimeError(f"{self._name}: its process ended") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.join(_LIMIT_S)
        self._process.kill()


def _run(orders: Connection, subject: Subject, folder: Path, measured: bool) -> None:  # noqa: FBT001 - a process's target
    names = (*subject.beside, *([subject.extractor] if measured else ()))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # both on one core, with the same neighbours
    serve = subject.service(Service(folder, names, measured=measured))
    serve(range(WARM_UP))
    orders.send(0.0)
    gc.freeze()  # what is there stays, and need not be looked at between slices
    clock = time.process_time if subject.whole else time.thread_time
    after = WARM_UP
    while (asked := orders.recv()) is not None:
        after = asked.stop
        gc.collect()
        started = clock()
        counted = serve(asked)
        orders.send(clock() - started if counted is None else counted)
    calls = _calls(lambda: serve(range(after, after + SLICE)))
    found = list(records(folder))
    orders.send(_Ended(len(found), any(subject.tells in record for record in found), calls))


def _calls(once: Callable[[], object]) -> int:
    """How many functions of Python *once* calls in this thread."""
    calls = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        once()
    finally:
        sys.setprofile(None)
    return calls


def measure(subject: Subject, folder: Path, rounds: int, pairs: int) -> dict[str, Any]:
    """The case: *rounds* slices of each of the two, in so many *pairs* of processes."""
    found = [_pair(subject, folder / str(number), rounds) for number in range(pairs)]
    base, ratio = min(one.base_us for one in found), median(one.ratio for one in found)
    return {
        "case": subject.case,
        "on": subject.on,
        "base_us": round(base, 1),
        "us": round(base * ratio, 1),
        "added_us": round(base * (ratio - 1), 1),
        "ratio": round(ratio, 3),
        "extractor": subject.extractor,
        "added_calls": round(found[0].calls, 1),
    }


class _Found(NamedTuple):
    """Of one pair: CPU us a request without the extractor, how many times as many with it, and more calls of functions."""

    base_us: float
    ratio: float
    calls: float


def _pair(subject: Subject, folder: Path, rounds: int) -> _Found:
    spent: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        both = [
            stack.enter_context(_Turn(subject, folder / str(measured), measured=measured))
            for measured in (False, True)
        ]
        for one in both:
            one.wait()
        for turn in range(rounds):
            orders = range(WARM_UP + turn * SLICE, WARM_UP + (turn + 1) * SLICE)
            for which in (0, 1) if turn % 2 else (1, 0):
                spent[which].append(both[which].serve(orders))
        ended = [one.end() for one in both]
        _check(subject, [(one.records, one.tells) for one in ended], WARM_UP + (rounds + 1) * SLICE)
    ratio = median(ours / base for base, ours in zip(*spent, strict=True))
    return _Found(min(spent[0]), ratio, (ended[1].calls - ended[0].calls) / SLICE)


def _check(subject: Subject, found: list[tuple[int, bool]], requests: int) -> None:
    """What was measured is what it says: every record is there, and the extractor was heard in one of the two."""
    wanted = [
        (requests * each, measured or not subject.tells)
        for each, measured in zip(subject.records, (False, True), strict=True)
    ]
    if found != wanted:
        raise RuntimeError(
            f"{subject.on}: records, and whether they tell, were to be {wanted}, but are {found}"
        )
