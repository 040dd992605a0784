"""The embedded store as a child: started, watched, started again when it dies, and never left behind.

Parent and child talk over two pipes. The parent writes the store's settings as one line of JSON into the child's
stdin and keeps it open: when it closes, for whatever reason, kill -9 of the parent among them, the child stops. The
child writes one line of JSON with its port to stdout once it answers. Passwords travel in the pipe, so they are on
no command line and in no environment.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

import msgspec

from auditspan_collector.errors import AuditspanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.store import Config

SUPERVISED: Final = "--supervised"
START_LIMIT_S: Final = 60.0
CLOSE_LIMIT_S: Final = 10.0
TERMINATE_LIMIT_S: Final = 5.0
MAX_PAUSE_S: Final = 30.0
# Having lived so long, a store that dies is started again at once: it is no store that can't start.
PROVEN_S: Final = 60.0

_log = logging.getLogger(__name__)


class StoreProcess:
    """A child that runs ``auditspan store``. Not thread-safe: one thread starts, watches and stops it."""

    def __init__(
        self, config: Config, *, keep_open: tuple[int, ...] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """*keep_open* are descriptors that the child holds for as long as it lives, such as a folder's lock."""
        self._config = config
        self._keep_open = keep_open
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._deaths = 0
        self._next_try = 0.0
        self.port = 0

    @property
    def pid(self) -> int:
        """The child's process id; 0 when there is none."""
        return self._child.pid if self._child else 0

    def start(self) -> None:
        """Start the store and wait until it answers on ``port``. Raises AuditspanError when it does not."""
        self._started_at = self._clock()
        child = self._child = subprocess.Popen(  # noqa: S603 - our own interpreter, our own words
            [sys.executable, "-m", "auditspan_collector.cli", "store", SUPERVISED],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for the parent, who stops the collector first
            pass_fds=self._keep_open,
        )
        assert child.stdin is not None  # noqa: S101 - for the type checker
        try:
            child.stdin.write(msgspec.json.encode(self._config) + b"\n")
            child.stdin.flush()
            self.port = int(json.loads(self._first_line(child))["port"])
        except (OSError, ValueError, KeyError) as error:
            self.stop()
            raise AuditspanError("the store did not start; the line above says why") from error
        # A later start must serve where the collector and the readers look for it.
        host = self._config.listen.rpartition(":")[0]
        self._config = msgspec.structs.replace(self._config, listen=f"{host}:{self.port}")

    def _first_line(self, child: subprocess.Popen[bytes]) -> bytes:
        assert child.stdout is not None  # noqa: S101 - for the type checker
        received = b""
        deadline = self._clock() + START_LIMIT_S
        while not received.endswith(b"\n"):
            left = deadline - self._clock()
            if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
                raise TimeoutError("the store did not answer")
            piece = os.read(child.stdout.fileno(), 4096)
            if not piece:
                raise EOFError("the store ended")
            received += piece
        return received

    def revive(self) -> None:
        """Start the store again if it died, with growing pauses; to be called every now and then."""
        now = self._clock()
        if self._child is not None and (status := self._child.poll()) is not None:
            self._close_pipes()
            self._child = None
            self._deaths = 0 if now - self._started_at > PROVEN_S else self._deaths + 1
            pause_s = min(MAX_PAUSE_S, 2.0 ** (self._deaths - 1)) if self._deaths else 0.0
            self._next_try = now + pause_s
            _log.error(
                "the store DIED (%s); records wait in the spool; it is started again in %.0f s",
                _how(status),
                pause_s,
            )
        if self._child is None and now >= self._next_try:
            try:
                self.start()
            except AuditspanError as error:
                self._deaths += 1
                self._next_try = self._clock() + min(MAX_PAUSE_S, 2.0 ** (self._deaths - 1))
                _log.error("%s; next try in %.0f s", error, self._next_try - self._clock())
            else:
                _log.warning("the store answers again on port %d", self.port)

    def stop(self) -> None:
        """End the child: by closing its stdin, then by SIGTERM, then by SIGKILL; return when it is gone."""
        if self._child is None:
            return
        self._close_pipes()
        for limit_s, number in ((CLOSE_LIMIT_S, signal.SIGTERM), (TERMINATE_LIMIT_S, signal.SIGKILL)):
            try:
                self._child.wait(limit_s)
                break
            except subprocess.TimeoutExpired:
                _log.warning("the store does not stop; sending it %s", number.name)
                self._child.send_signal(number)
        self._child.wait()
        self._child = None

    def _close_pipes(self) -> None:
        assert self._child is not None  # noqa: S101 - for the type checker
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                # Closing flushes; a child that is gone reads nothing any more.
                with contextlib.suppress(OSError):
                    pipe.close()


def _how(status: int) -> str:
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
