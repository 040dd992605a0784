"""Start processes, wait until they answer, and stop every one of them whatever happens.

Each process leads a session of its own, so that Ctrl-C reaches only the program that started them, which then stops
them in order; and so that whatever a process left behind can be ended with it.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

STOP_S = 10.0  # a process may take this long after SIGTERM
TAIL_LINES = 15


class Failed(Exception):  # noqa: N818 - the end of a program, told to its reader
    """The program can't go on; the message says why, for a person."""


def free_address() -> str:
    """A loopback address that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def accepts_connections(address: str) -> bool:
    """Whether somebody listens on *address*, ``host:port``."""
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """Whether a GET of *url* gets 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, http.client.HTTPException):
        return False


class Processes:
    """The processes that were started. Leaving the ``with`` block stops all but the first, and then that one, on which
    the others lean.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start *command* in *folder*; its output goes to ``<name>.log``."""
        with self.log(name).open("wb") as log, _uninterrupted():
            process = self._running[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=folder,
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return process

    def run(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        given: str,
        limit_s: float,
    ) -> None:
        """Run *command* to its end, *given* on its standard input. Raises Failed when it fails or *limit_s* is over."""
        process = self.start(name, command, environment, folder, stdin=subprocess.PIPE)
        try:
            process.communicate(given.encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name} did not end within {limit_s:.0f} s\n{self.tail(name)}") from None
        if process.returncode:
            raise Failed(f"{name} ended with status {process.returncode}\n{self.tail(name)}")
        del self._running[name]

    def said(self, name: str, text: str) -> bool:
        """Whether *text* is in the output of *name*."""
        return text in self.log(name).read_text(encoding="utf-8", errors="replace")

    def wait_until(self, name: str, ready: Callable[[], bool], limit_s: float) -> float:
        """Wait until *ready* says so; returns the seconds. Raises Failed when *name* ends or *limit_s* is over."""
        started = time.monotonic()
        while not ready():
            self.check(name)
            if time.monotonic() - started > limit_s:
                raise Failed(f"{name} did not answer within {limit_s:.0f} s\n{self.tail(name)}")
            time.sleep(0.05)
        return time.monotonic() - started

    def check(self, *names: str) -> None:
        """Raise Failed when one of *names*, or of all processes, has ended."""
        for name in names or self._running:
            status = self._running[name].poll()
            if status is not None:
                raise Failed(f"{name} ended with status {status}\n{self.tail(name)}")

    def log(self, name: str) -> Path:
        """Where the output of *name* goes."""
        return self._logs / f"{name}.log"

    def tail(self, name: str) -> str:
        """The end of what *name* said."""
        lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"--- the end of {self.log(name)}", *lines[-TAIL_LINES:]])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C would leave processes behind; each stop is bounded instead.
        before = {sign: signal.signal(sign, signal.SIG_IGN) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            first, *others = self._running.values() or [None]
            _stop([*others])
            _stop([first] if first else [])
            self._running.clear()
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait: a process that is started and not yet known would be left behind."""
    came: list[int] = []
    before = {
        sign: signal.signal(sign, lambda sign, _: came.append(sign))
        for sign in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
        if came:
            signal.raise_signal(came[0])


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop *processes* at the same time."""
    for process in processes:
        process.terminate()
    limit = time.monotonic() + STOP_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, limit - time.monotonic()))
        # The session's id is the process's, and stays taken while anybody is in it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
