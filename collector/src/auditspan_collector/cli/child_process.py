"""A process of ours that never outlives us: settings in, lines back, and an end whatever happens.

Parent and child talk over two pipes, the child's stdin and stdout. The first line into it are its settings, as JSON:
passwords travel in a pipe, so they are on no command line and in no environment. The child's stdin stays open for as
long as the parent wants it, and closes when the parent is gone, kill -9 among the reasons: that is the child's sign to
end. A fresh interpreter each time: a fork would take over locks that threads held.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

MAX_PAUSE_S: Final = 30.0
# Having lived so long, a process that dies is started again at once: it is none that can't start.
PROVEN_S: Final = 60.0

_log = logging.getLogger(__name__)


class ChildProcess:
    """One run of one child, called *name* in the log. Not thread-safe, but for *tell*."""

    def __init__(
        self, name: str, arguments: Sequence[str], settings: bytes, *, keep_open: Sequence[int] = ()
    ) -> None:
        """Start ``python -m <arguments>`` and give it *settings*, one line of JSON without its end.

        *keep_open* are descriptors that the child holds for as long as it lives, such as a folder's lock. Raises
        OSError, with no child left, when it takes no settings.
        """
        self._name = name
        self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own interpreter, our own words
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the parent, who stops everything in order
            pass_fds=keep_open,
        )
        try:
            self.tell(settings)
        except OSError:
            self.end(((0.0, signal.SIGKILL),))
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """Its stdout."""
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        return self._process.stdout

    def tell(self, line: bytes) -> None:
        """Write *line* and its end into its stdin. Raises OSError when it listens no more."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def first_line(self, limit_s: float) -> bytes:
        """The first line that it writes. Raises TimeoutError, and EOFError when it ends instead."""
        received = b""
        deadline = time.monotonic() + limit_s
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.output], [], [], left)[0]:
                raise TimeoutError(f"{self._name} did not answer")
            piece = os.read(self.output.fileno(), 4096)
            if not piece:
                raise EOFError(f"{self._name} ended")
            received += piece
        return received

    def ended(self) -> str:
        """How it ended: ``exit status 1``, ``killed by SIGKILL``; empty while it lives."""
        status = self._process.poll()
        if status is None:
            return ""
        return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"

    def end(self, patience: Sequence[tuple[float, signal.Signals]]) -> None:
        """Close its stdin, *wait* and *close*."""
        self.close_input()
        self.wait(patience)
        self.close()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it ended."""
        self._process.send_signal(number)

    def wait(self, patience: Sequence[tuple[float, signal.Signals]]) -> None:
        """Return when it is gone; send each signal of *patience* after its seconds. The last should be SIGKILL."""
        for limit_s, number in patience:
            try:
                self._process.wait(limit_s)
                break
            except subprocess.TimeoutExpired:
                _log.warning("%s does not stop; sending it %s", self._name, number.name)
                self._process.send_signal(number)
        self._process.wait()

    def close(self) -> None:
        """Close both pipes; nobody may be reading any more."""
        self.close_input()
        self.output.close()

    def close_input(self) -> None:
        """Close its stdin; may be called again."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        # Closing flushes; a child that is gone reads nothing any more.
        with contextlib.suppress(OSError):
            self._process.stdin.close()


class Restarts:
    """When a child that died may be started again: at once after a long life, else after growing pauses."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started_at = 0.0
        self._deaths = 0
        self._next_try = 0.0

    def started(self) -> None:
        """It is started now."""
        self._started_at = self._clock()

    def died(self) -> float:
        """It died; the seconds until it may be started again."""
        now = self._clock()
        self._deaths = 0 if now - self._started_at > PROVEN_S else self._deaths + 1
        return self._pause(now)

    def failed(self) -> float:
        """It did not even start; the seconds until the next try."""
        self._deaths += 1
        return self._pause(self._clock())

    def age_s(self) -> float:
        """Since it was started."""
        return self._clock() - self._started_at

    def due(self) -> bool:
        """Whether the pause is over."""
        return self._clock() >= self._next_try

    def _pause(self, now: float) -> float:
        pause_s: float = min(MAX_PAUSE_S, 2.0 ** min(self._deaths - 1, 10)) if self._deaths else 0.0
        self._next_try = now + pause_s
        return pause_s
