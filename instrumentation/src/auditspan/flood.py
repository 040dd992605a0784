"""Fold a flood of denied requests that nobody answers for into records that say how many there were.

Anybody can send such requests, as many as they like; each in full would fill the disk and hide the rest. Per action,
route and address, the first ones of an interval are recorded in full. What comes beyond is counted, on disk, and one
record an interval says how many, from the first one's start to the last one's end. As long as a flood lasts, its next
intervals have no records in full. Sums are exact: the records in full plus ``audit.folded.count`` of the others is
what came, also after ``kill -9``.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.util.types import AnyValue

_MAX_KEYS: Final = 4096  # actions, routes and addresses that are told apart
_MAX_OPEN: Final = 64  # counters: each holds a file open, of which the application may need many itself
_LOCK_WAIT_S: Final = 0.05
ANY: Final = "*"  # instead of an address, then of a route, once there are too many


class Key(NamedTuple):
    """What is counted together. *route* is empty where none matched: its text would be the client's to choose."""

    action: str
    route: str
    address: str
    rejected: str  # why a signed header was not believed


class Counter(Protocol):
    """A record that still counts; see ``auditspan.spool.tally``."""

    def add(self, end_time_ns: int) -> None:
        """One more. Raises OSError."""

    def close(self) -> None:
        """It is over: let the record be written."""


@dataclass(slots=True)
class _Interval:
    """The running interval of one key: it ends at *until*; *full* of its requests are recorded in full."""

    until: float
    full: int
    seen: int = 0
    counter: Counter | None = None


@dataclass(slots=True)
class Flood:
    """See the module. Thread-safe.

    *full* is the number of records in full per interval; *interval_s* 0 folds nothing.
    """

    full: int
    interval_s: float
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _running: dict[Key, _Interval] = field(default_factory=dict)
    _open: int = 0

    def takes(self, key: Key, end_time_ns: int, begin: Callable[[Key], Counter | None]) -> bool:
        """Whether a denied request is counted; otherwise it is to be recorded in full.

        *begin* makes a counter from this request; None or OSError means that it can't be counted.
        """
        if not self.interval_s:
            return False
        if not self._lock.acquire(timeout=_LOCK_WAIT_S):
            return False  # a disk that hangs holds up one thread, not all
        try:
            key, interval = self._interval(key)
            interval.seen += 1
            if interval.seen <= interval.full:
                return False
            counter = interval.counter or self._begin(key, begin)
            if counter is not None:
                counter.add(end_time_ns)
            return counter is not None
        except OSError:
            return False
        finally:
            self._lock.release()

    def _begin(self, key: Key, begin: Callable[[Key], Counter | None]) -> Counter | None:
        """A counter for *key*; once many are open, one for all addresses, and at last for all routes."""
        if self._open >= _MAX_OPEN:
            key = key._replace(address=ANY)
        if self._open >= 2 * _MAX_OPEN:
            key = Key("", ANY, ANY, "")
        key, interval = self._interval(key)
        if interval.counter is None:
            interval.counter = begin(key)
            self._open += interval.counter is not None
        interval.seen += 1  # a flood by itself, whoever else is counted there
        return interval.counter

    def tend(self, *, everything: bool = False) -> None:
        """End intervals that are over, *everything* when the process ends, and forget quiet ones."""
        if not self._running:
            return
        now = self.clock()
        if not self._lock.acquire(timeout=_LOCK_WAIT_S):
            return
        try:
            for key, interval in list(self._running.items()):
                if everything or now >= interval.until:
                    if not interval.seen:
                        del self._running[key]
                    self._next(interval, now)
        finally:
            self._lock.release()

    def after_fork(self) -> None:
        """In the child: what the parent counts is the parent's."""
        inherited, self._lock, self._running, self._open = self._running, threading.Lock(), {}, 0
        for interval in inherited.values():
            if interval.counter is not None:
                interval.counter.close()  # this process's copy; the parent's stays locked

    def _interval(self, key: Key) -> tuple[Key, _Interval]:
        now = self.clock()
        if key not in self._running and len(self._running) >= _MAX_KEYS:
            key = Key("", ANY, ANY, "")
        interval = self._running.get(key)
        if interval is None:
            interval = self._running[key] = _Interval(now + self.interval_s, self.full)
        elif now >= interval.until:
            self._next(interval, now)
        return key, interval

    def _next(self, interval: _Interval, now: float) -> None:
        counter, interval.counter = interval.counter, None
        if counter is not None:
            counter.close()
            self._open -= 1
        interval.full = 0 if interval.seen > self.full else self.full
        interval.seen, interval.until = 0, now + self.interval_s


def address_in(attributes: Mapping[str, AnyValue], addresses: tuple[str, ...]) -> str:
    """The other end of the connection: the first of *addresses* that is there."""
    return next((str(attributes[name]) for name in addresses if name in attributes), "")


def is_nobody(actor_id: str, origin: str) -> bool:
    """Whether nobody answers for a request of this actor."""
    return origin == names.UNVERIFIED and actor_id in (names.ANONYMOUS, names.UNKNOWN)
