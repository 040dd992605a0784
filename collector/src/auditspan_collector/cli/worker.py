"""One worker of a collector, as a process: ``python -m auditspan_collector.cli.worker``, started by *workers* only.

Lines on stdin, the supervisor's: first the settings; then ``report 7`` asks for Report 7, and ``stop`` for a clean
end. The end of stdin is the end of the supervisor, and the worker's at once: what was acknowledged is on disk, and
whoever starts the collector again finds ports and spools free. Lines on stdout: a Greeting, then Reports.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from auditspan_collector import service
from auditspan_collector.cli.foreground import keep_freed_memory, raise_file_limit
from auditspan_collector.cli.log import log_to_stderr
from auditspan_collector.cli.worker_report import Greeting, Report, families
from auditspan_collector.config import Config  # noqa: TC001 - msgspec reads the annotation
from auditspan_collector.errors import AuditspanError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector.service import Service

MODULE: Final = "auditspan_collector.cli.worker"
STOP: Final = b"stop"
REPORT: Final = b"report"


class Settings(msgspec.Struct, frozen=True):
    """What a worker is given: worker *number*, from 1, *of* so many, in the collector that *config* describes."""

    number: int
    of: int
    config: Config


def main() -> int:
    """Serve until told to stop; the exit status."""
    stop = threading.Event()
    # An init system may send it to every process of a service; like the supervisor's word, it may come twice.
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    answers = _own_stdout()
    lines = _lines()
    settings = msgspec.json.decode(next(lines), type=Settings)
    log_to_stderr(settings.config.telemetry.log_level, process=f"worker{settings.number}")
    raise_file_limit()
    keep_freed_memory()
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines, stop, asked), name="supervisor", daemon=True).start()
    worker = service.build(settings.config, service.Place(settings.number, settings.of))
    try:
        worker.start()
    except AuditspanError as error:
        wrong = isinstance(error, ConfigError)
        _say(answers, Greeting(error=str(error), wrong_setting=wrong))
        return 2 if wrong else 1
    _say(answers, Greeting())
    threading.Thread(target=_report, args=(worker, answers, asked), name="reports", daemon=True).start()
    stop.wait()
    worker.stop()
    return 0


def _own_stdout() -> BinaryIO:
    """The way to the supervisor; whatever else writes to stdout reaches stderr instead of garbling it."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _lines() -> Iterator[bytes]:
    """What the supervisor says. Not sys.stdin: an interpreter that ends while a thread reads that aborts."""
    pending = b""
    while piece := os.read(0, 1 << 16):
        *whole, pending = (pending + piece).split(b"\n")
        yield from whole


def _listen(lines: Iterator[bytes], stop: threading.Event, asked: queue.SimpleQueue[int]) -> None:
    for line in lines:
        word, _, number = line.partition(b" ")
        if word == STOP:
            stop.set()
        elif word == REPORT:
            asked.put(int(number))
    os._exit(1)


def _report(worker: Service, answers: BinaryIO, asked: queue.SimpleQueue[int]) -> None:
    assert worker.metrics is not None  # noqa: S101 - it is started; for the type checker
    registry = worker.metrics.registry
    while True:
        number = asked.get()
        _say(answers, Report(number, worker.problem, worker.prepared, families(registry)))


def _say(answers: BinaryIO, what: Greeting | Report) -> None:
    # Without a supervisor nobody needs an answer; _listen ends the process.
    with contextlib.suppress(OSError):
        answers.write(msgspec.json.encode(what) + b"\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
