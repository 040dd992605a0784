"""The embedded store as a child: started, watched, started again when it dies, and never left behind.

The child reads its settings from stdin and stops when that closes. It writes one line of JSON with its port to stdout
once it answers.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from typing import TYPE_CHECKING, Final

import msgspec

from auditspan_collector.cli.child_process import ChildProcess, Restarts
from auditspan_collector.errors import AuditspanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.store import Config

SUPERVISED: Final = "--supervised"
START_LIMIT_S: Final = 60.0
CLOSE_LIMIT_S: Final = 10.0
TERMINATE_LIMIT_S: Final = 5.0

_log = logging.getLogger(__name__)


class StoreProcess:
    """A child that runs ``auditspan store``. Not thread-safe: one thread starts, watches and stops it."""

    def __init__(
        self,
        config: Config,
        *,
        keep_open: tuple[int, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*keep_open* are descriptors that the child holds for as long as it lives, such as a folder's lock."""
        self._config = config
        self._keep_open = keep_open
        self._child: ChildProcess | None = None
        self._restarts = Restarts(clock)
        self.port = 0

    @property
    def pid(self) -> int:
        """The child's process id; 0 when there is none."""
        return self._child.pid if self._child else 0

    def start(self) -> None:
        """Start the store and wait until it answers on ``port``. Raises AuditspanError when it does not."""
        self._restarts.started()
        try:
            self._child = ChildProcess(
                "the store",
                ("auditspan_collector.cli", "store", SUPERVISED),
                msgspec.json.encode(self._config),
                keep_open=self._keep_open,
            )
            self.port = int(json.loads(self._child.first_line(START_LIMIT_S))["port"])
        except (OSError, EOFError, ValueError, KeyError) as error:
            self.stop()
            raise AuditspanError("the store did not start; the line above says why") from error
        # A later start must serve where the collector and the readers look for it.
        host = self._config.listen.rpartition(":")[0]
        self._config = msgspec.structs.replace(self._config, listen=f"{host}:{self.port}")

    def revive(self) -> None:
        """Start the store again if it died, with growing pauses; to be called every now and then."""
        if self._child is not None and (how := self._child.ended()):
            self._child.end(())
            self._child = None
            _log.error(
                "the store DIED (%s); records wait in the spool; it is started again in %.0f s",
                how,
                self._restarts.died(),
            )
        if self._child is None and self._restarts.due():
            try:
                self.start()
            except AuditspanError as error:
                _log.error("%s; next try in %.0f s", error, self._restarts.failed())
            else:
                _log.warning("the store answers again on port %d", self.port)

    def stop(self) -> None:
        """End the child: by closing its stdin, then by SIGTERM, then by SIGKILL; return when it is gone."""
        if self._child is not None:
            self._child.end(((CLOSE_LIMIT_S, signal.SIGTERM), (TERMINATE_LIMIT_S, signal.SIGKILL)))
            self._child = None
