"""Empty the spools of workers that are no more: what they acknowledged reaches ClickHouse without them.

A spool is emptied as its own worker would: by a drain, from the last released index, under its own stream. There is
no other way out of a spool, so a worker that comes back finds nothing half done. An emptied spool stays where it is:
it remembers what it has seen, and more workers than now go on with it.

One spool after another, so that memory and inserts are those of one more drain. One that can't be emptied, because it
is damaged, in use or refused for good, is said loudly and does not hold up the others; it keeps everything.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from auditspan_collector.errors import AuditspanError
from auditspan_collector.pipeline.control import Control
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.pipeline.drain import Config, DrainMetrics
    from auditspan_collector.spool import Config as SpoolConfig

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 0.1
_END_LIMIT_S: Final = 5.0  # of a drain that has nothing left to send


@dataclass(frozen=True, slots=True)
class _Left:
    """A spool that is being emptied, with an operator's way to it."""

    spool: Spool
    drain: Drain
    control: Control

    def stop(self, timeout_s: float) -> None:
        self.control.stop()
        self.drain.stop(timeout_s)
        self.spool.close()


class Takeover:
    """Empties left spools in a thread of its own: *start* once, *stop* once. Readable from any thread."""

    def __init__(
        self,
        spools: Sequence[SpoolConfig],
        client: ClickHouseClient,
        *,
        prepare: Callable[[], None],
        config: Config,
        metrics: DrainMetrics,
        deployment: str,
        collector: str,
        try_again_s: float = 5.0,
    ) -> None:
        """*spools* are those that were left, each with its folder; the others are as for a Drain and a Spool.

        One that can't be opened is tried again after *try_again_s*: a worker of an earlier run may need a while to
        end.
        """
        self._waiting = [(0.0, config) for config in spools]  # not before, by time.monotonic
        self._try_again_s = try_again_s
        self._client = client
        self._prepare = prepare
        self._config = config
        self._metrics = metrics
        self._names = (deployment, collector)
        self._open: list[_Left] = []
        self._said: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auditspan-takeover", daemon=True)
        self._deadline = 0.0

    def start(self) -> None:
        """Begin, when there is anything to empty."""
        if self._waiting:
            self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send what can be sent in *timeout_s*, and give the folders free; the rest is sent after the next start."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def records(self) -> int:
        """Records in the spools that are open: on their way to ClickHouse."""
        return sum(left.spool.backlog().records for left in tuple(self._open))

    @property
    def stopped(self) -> bool:
        """Whether one of them needs a person."""
        return any(left.drain.status.state == "stopped" for left in tuple(self._open))

    def _run(self) -> None:
        while not self._stop.is_set() and (self._waiting or self._open):
            self._close_the_empty()
            # One at a time; one that is stopped for good does not count.
            busy = any(left.drain.status.state != "stopped" for left in self._open)
            due = [entry for entry in self._waiting if entry[0] <= time.monotonic()]
            if due and not busy:
                self._waiting.remove(due[0])
                self._take(due[0][1])
            self._stop.wait(_LOOK_EVERY_S)
        for left in self._open:
            left.stop(max(0.0, self._deadline - time.monotonic()))
        self._open = []

    def _take(self, config: SpoolConfig) -> None:
        """Open one and start emptying it; when it can't be, it is tried again after the others."""
        try:
            spool = Spool.open(config, *self._names)
        except AuditspanError as error:
            self._waiting.append((time.monotonic() + self._try_again_s, config))
            self._say_once(
                f"the spool {config.path}, which a worker left, can't be taken over: {error}. What is in it waits; "
                "trying again every few seconds"
            )
            return
        records = spool.backlog().records
        if not records:
            spool.close()
            return
        log.warning("taking over %d records from the spool that a worker left, %s", records, config.path)
        drain = Drain(spool, self._client, prepare=self._prepare, config=self._config, metrics=self._metrics)
        drain.start()
        folder = Path(config.path)
        control = Control(folder, spool, drain, self._client, capacity_bytes=config.capacity_bytes)
        control.start()
        self._open.append(_Left(spool, drain, control))

    def _say_once(self, problem: str) -> None:
        if problem not in self._said:
            self._said.add(problem)
            log.error("%s", problem)

    def _close_the_empty(self) -> None:
        for entry in tuple(self._open):
            if entry.spool.backlog().records:
                continue
            entry.stop(_END_LIMIT_S)
            self._open.remove(entry)
            log.info("the spool that a worker left is empty: stream %s", entry.spool.stream)
