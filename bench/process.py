"""Start a process on chosen cores, and read from /proc what it used.

CPU time is user and system time of all threads, of the children that still run and of those that ended
(proc(5), /proc/pid/stat fields 14 to 17, in ticks of 10 ms: a case must use far more than that to mean something).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_SAMPLE_S: Final = 0.05
_END_LIMIT_S: Final = 20.0


class Cores:
    """Which cores the measured system runs on, and which everything else does."""

    def __init__(self, wanted: int) -> None:
        """*wanted* cores for the system; where none would be left for the load, both share all there are."""
        every = sorted(os.sched_getaffinity(0))
        self.apart = len(every) > wanted
        self.system = frozenset(every[:wanted]) if self.apart else frozenset(every)
        self.load = frozenset(every[wanted:]) if self.apart else frozenset(every)


class Process:
    """A process that ends with the ``with`` block; its output goes to a file, so that no pipe can fill up."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cores: frozenset[int],
        environ: Mapping[str, str] | None = None,
        talking: bool = False,
    ) -> None:
        """*talking* connects its stdin and stdout to us, line by line; otherwise both stdout and stderr go to *log*."""
        ours = os.sched_getaffinity(0)
        self._log = log
        with log.open("ab") as out:
            # Threads and children inherit the cores of the thread that starts them.
            os.sched_setaffinity(0, cores)
            try:
                self._child = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE if talking else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if talking else out,
                    stderr=out,
                    env={**os.environ, **(environ or {})},
                    start_new_session=True,
                    text=True,
                )
            finally:
                os.sched_setaffinity(0, ours)
        self.pid = self._child.pid

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """End it: SIGTERM, then SIGKILL. An *error* is told how it was until then, and what it logged last."""
        if error is not None:
            state = "ran" if self._child.poll() is None else f"had ended with {self._child.returncode}"
            error.add_note(f"{self._log.stem} {state}; its log: {self._log.read_text()[-1000:]}")
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._child.poll() is None:
                self._child.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_END_LIMIT_S)
                break
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()

    def tell(self, line: str) -> None:
        """Write *line* to its stdin."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def hear(self) -> str:
        """The next line of its stdout. Raises RuntimeError with what it logged when it ended instead."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._log.stem} ended: {self._log.read_text()[-2000:]}")
        return line.strip()

    def check(self) -> None:
        """Raise RuntimeError with what it logged unless it runs."""
        if self._child.poll() is not None:
            raise RuntimeError(
                f"{self._log.stem} ended with {self._child.returncode}: {self._log.read_text()[-2000:]}"
            )

    def cpu_s(self) -> float:
        """Seconds of CPU so far: all threads, and all children, running and ended."""
        return sum(map(_cpu_s, _with_children(self.pid)))

    def rss_anon_mb(self) -> float:
        """Resident memory that is no file's (RssAnon), of the largest among it and its children, in MB (2**20)."""
        return max(map(_rss_anon_mb, _with_children(self.pid)))


class PeakMemory:
    """Watches *process* while the ``with`` block runs; `mb` is then the highest RssAnon seen."""

    def __init__(self, process: Process) -> None:
        self.mb = 0.0
        self._process = process
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        """Start watching."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self.mb = max(self.mb, self._process.rss_anon_mb())


def free_port() -> int:
    """A TCP port on loopback that nobody uses now, below those that the system gives to clients."""
    while True:
        port = random.randint(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(what: str, condition: Callable[[], bool], *, limit_s: float, process: Process) -> None:
    """Return when *condition* holds. Raises RuntimeError when *process* ends, TimeoutError after *limit_s*."""
    deadline = time.monotonic() + limit_s
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s} s")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on *port* of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{each}/task").iterdir())
            for task in tasks:
                found += map(int, (task / "children").read_text().split())
    return found


def _cpu_s(pid: int) -> float:
    try:
        # The name stands in brackets and may hold anything, brackets too.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0  # it ended just now, and counts with its parent
    return sum(map(int, fields[11:15])) * _TICK_S


def _rss_anon_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0
