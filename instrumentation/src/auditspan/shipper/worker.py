"""The one thread of a process that delivers: its own records at once, dead processes' beside them.

Theory of operation. The doorbell of the spool wakes the thread; it lingers for a moment so that neighbours travel
together, then sends what waits. What comes meanwhile rings again and is waited for again: a batch costs hundreds of
microseconds whatever is in it, so under load one record after the other would take more than its request. Own records
and those left over by dead processes take turns, so that neither a long backlog nor a busy service starves the other.
A batch is acknowledged in the spool only after the collector's OK; whatever happens in between, the same records are
sent again, and the collector knows them by their record id. So losing nothing needs no state here at all: this thread
may die at any point.

A forked child begins with its first record: it starts a thread and a connection of its own, and closes its copy
of the parent's.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import threading
import time
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from auditspan.shipper import notes
from auditspan.shipper.counts import DeliveryCounts, publish
from auditspan.shipper.otlp import NotTaken, Taken, connect
from auditspan.spool import place

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.shipper.otlp import Answer, Sender, Target
    from auditspan.spool import Batch, Segment, Spool

_log = logging.getLogger(__name__)

MAX_RECORDS: Final = 512
MAX_BYTES: Final = 3 * 1024 * 1024
_LINGER_S: Final = 0.2  # a batch costs 0.6 ms and 6 us a record; five a second of them are 0.3% of a core
_LOOK_S: Final = 2.0  # between looks for what dead processes left
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_REFUSES_ALL_WAIT_S: Final = 60.0
_REFUSED_IN_A_ROW: Final = 8  # single records; beyond that it is the collector, not the records
_SURELY_LARGE_BYTES: Final = 64 * 1024
_QUIET_S: Final = 60.0


class Shipper:
    """Delivers *spool* to *target* from a daemon thread. Nothing here raises into the application."""

    def __init__(
        self, spool: Spool, target: Target, *, exit_flush_s: float = 2.0, linger_s: float = _LINGER_S
    ) -> None:
        """Nothing happens before ``start``. *exit_flush_s* bounds what ``stop`` waits at the process's end."""
        self._spool = spool
        self._target = target
        self._exit_flush_s = exit_flush_s
        self._linger_s = linger_s
        self._begin()
        _at_fork(self)

    def _begin(self) -> None:
        """The state of a process that has sent nothing yet."""
        self._counts = DeliveryCounts()
        self._bell = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._sender: Sender | None = None
        self._left_over: Segment | None = None
        self._turn_of_left_over = False
        self._limit = MAX_RECORDS
        self._next_look = 0.0
        self._next_note = 0.0
        self._noted: DeliveryCounts | None = None
        self._wait_s = _FIRST_WAIT_S
        self._refused_in_a_row = 0
        self._trouble = ""
        self._quiet_until = 0.0
        self._deadline: float | None = None  # once stopping

    # --- called by the application's threads ---------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver, also what dead processes left; at the process's end ``stop`` runs by itself."""
        self._spool.on_append(self._ring)
        publish(self)
        self._start_thread()
        atexit.register(self.stop)

    def stop(self, flush_s: float | None = None) -> None:
        """Deliver what waits for at most *flush_s* (default: *exit_flush_s*), then end; the rest stays on disk."""
        atexit.unregister(self.stop)
        flush_s = self._exit_flush_s if flush_s is None else flush_s
        self._deadline = time.monotonic() + flush_s
        self._stopping.set()
        self._bell.set()
        thread = self._thread
        if thread is None:
            return
        thread.join(flush_s + 0.1)
        if not thread.is_alive():
            self._spool.close()

    def flush(self, timeout_s: float) -> bool:
        """Wait until this process's records are acknowledged; False when *timeout_s* was not enough."""
        until = time.monotonic() + timeout_s
        while self._spool.waiting():
            if time.monotonic() >= until:
                return False
            self._ring()
            time.sleep(0.005)
        return True

    def counts(self) -> DeliveryCounts:
        """A snapshot of the counters."""
        spool = self._spool.counts()
        return replace(
            self._counts,
            appended=spool.appended,
            shed=spool.shed,
            failed=spool.failed,
            oversize=spool.oversize,
            deferred=spool.deferred,
            torn=spool.torn,
            unsynced=spool.unsynced,
            waiting=self._spool.waiting(),
        )

    def _ring(self) -> None:
        if not self._bell.is_set():
            self._bell.set()
            if self._thread is None:
                self._start_thread()

    def _start_thread(self) -> None:
        if self._stopping.is_set() or not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="auditspan-shipper", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError as problem:
            # No more threads, or the interpreter is ending. The disk has the records.
            self._bell.clear()
            self._counts.last_error = str(problem)
        finally:
            self._starting.release()

    # --- the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress_instrumentation():  # our own traffic makes no spans, so no records either
            while not self._stopping.is_set():
                self._bell.wait(max(0.0, self._next_look - time.monotonic()))
                if self._bell.is_set():
                    self._stopping.wait(self._linger_s)
                self._bell.clear()  # before looking: what comes from now on rings again
                self._guarded(self._deliver_all)
            self._next_look = 0.0  # whatever threads left in memory is written before the last delivery
            self._guarded(self._deliver_all)
            self._guarded(self._end)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as problem:  # noqa: BLE001 - the thread must outlive whatever it is
            self._counts.last_error = f"{type(problem).__name__}: {problem}"
            self._tell("bug", f"delivery failed and is tried again: {self._counts.last_error}")
            self._stopping.wait(1.0)

    def _end(self) -> None:
        if self._left_over is not None:
            self._spool.release(self._left_over)
            self._left_over = None
        self._disconnect()
        self._note(time.monotonic())

    def _note(self, now: float) -> None:
        """Leave the counters where others can see them."""
        counts, folder = self.counts(), place(self._spool.folder)
        if counts == self._noted and now < self._next_note:
            return
        if self._noted is None:
            notes.sweep(folder)
        self._noted, self._next_note = counts, now + notes.REFRESH_S
        with contextlib.suppress(OSError):
            notes.write(folder, self._spool.stream_id, counts)

    def _deliver_all(self) -> None:
        while True:
            self._look_around()
            segment = self._choose()
            if segment is None or self._out_of_time():
                return
            if not self._deliver(segment):
                return

    def _look_around(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        self._spool.check()
        self._note(now)
        if self._left_over is None and not self._stopping.is_set():
            self._left_over = self._spool.left_over()

    def _choose(self) -> Segment | None:
        """Own segments and left-over ones in turns."""
        own = self._spool.next_segment()
        left = self._left_over
        if left is not None and (own is None or self._turn_of_left_over):
            self._turn_of_left_over = False
            return left
        self._turn_of_left_over = True
        return own

    def _deliver(self, segment: Segment) -> bool:
        """One batch of *segment*. False when there is nothing more to do for now."""
        try:
            batch = segment.read(self._limit, MAX_BYTES)
        except OSError as problem:
            return self._give_up(segment, problem)
        self._spool.count_torn(batch.skipped)
        if not batch.payloads:
            return self._finish(segment)
        answer = self._exchange(b"".join(batch.payloads))
        self._counts.sent += len(batch.payloads)
        if isinstance(answer, Taken):
            all_there_was = self._was_all(segment, batch)
            self._on_taken(segment, batch, answer)
            return not all_there_was
        return self._on_refused(segment, batch, answer)

    def _was_all(self, segment: Segment, batch: Batch) -> bool:
        """Whether what still waits has come while *batch* was on its way, and so has rung the bell."""
        return (
            segment.live
            and self._left_over is None
            and not self._stopping.is_set()
            and not batch.skipped
            and len(batch.payloads) < self._limit
            and sum(map(len, batch.payloads)) < MAX_BYTES // 2
        )

    def _finish(self, segment: Segment) -> bool:
        if segment is self._left_over:
            self._spool.release(segment)
            self._left_over = self._spool.left_over()
            return True
        self._spool.done(segment)
        return not segment.live

    def _give_up(self, segment: Segment, problem: OSError) -> bool:
        """A file that can't be read must not hold up the others; it stays where it is."""
        if segment is self._left_over:
            self._left_over = None
        self._spool.give_up(segment, problem)
        return True

    def _on_taken(self, segment: Segment, batch: Batch, answer: Taken) -> None:
        counts = self._counts
        if answer.rejected:
            counts.rejected += answer.rejected
            self._complain(
                f"the collector refused {answer.rejected} records for good: {answer.message[:500]}"
            )
        counts.acknowledged += len(batch.payloads) - min(answer.rejected, len(batch.payloads))
        if self._trouble:
            _log.warning(
                "auditspan: the collector at %s takes records again; %d of this process wait",
                self._target.endpoint,
                self._spool.waiting(),
            )
            self._trouble = ""
        self._wait_s = _FIRST_WAIT_S
        self._refused_in_a_row = 0
        self._limit = min(self._limit * 2, MAX_RECORDS)
        self._spool.acknowledge(segment, batch.end, len(batch.payloads))

    def _on_refused(self, segment: Segment, batch: Batch, answer: NotTaken) -> bool:
        self._counts.last_error = answer.reason
        one_only = len(batch.payloads) == 1
        if answer.kind in ("invalid", "too_large") and not one_only:
            self._limit = len(batch.payloads) // 2
            self._counts.retries += 1
            return True
        # RESOURCE_EXHAUSTED for one small record is somebody's quota, not the record.
        surely = answer.kind == "invalid" or (
            answer.kind == "too_large" and len(batch.payloads[0]) >= _SURELY_LARGE_BYTES
        )
        if surely:
            return self._put_aside(segment, batch, answer)
        self._counts.retries += 1
        self._tell_trouble(answer)
        if answer.retry_after_s is None:  # otherwise the collector itself spoke, and the connection is good
            self._disconnect()
        return self._back_off(answer.retry_after_s)

    def _put_aside(self, segment: Segment, batch: Batch, answer: NotTaken) -> bool:
        try:
            self._spool.set_aside(segment, batch.payloads[0])
        except OSError as problem:
            # Nobody else has it, so it stays where it is, in front of the others.
            self._tell("no room aside", f"a record that the collector refuses can't be set aside: {problem}")
            return self._back_off(_REFUSES_ALL_WAIT_S)
        self._spool.acknowledge(segment, batch.end, 1)
        self._counts.set_aside += 1
        self._refused_in_a_row += 1
        self._complain(
            f"the collector refuses a record ({answer.reason[:500]}); it is kept in {segment.path.stem}.bad"
        )
        if self._refused_in_a_row < _REFUSED_IN_A_ROW:
            return True
        self._tell(
            "refuses all",
            f"the collector at {self._target.endpoint} refuses every record ({answer.reason[:500]}). "
            "Is it a collector of OTLP traces? Records stay on disk meanwhile",
        )
        return self._back_off(_REFUSES_ALL_WAIT_S)

    def _back_off(self, hint_s: float | None) -> bool:
        """Wait before the next try, longer each time; False when the process ends meanwhile."""
        wait_s = max(hint_s or 0.0, self._wait_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, no secret
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)
        until = time.monotonic() + wait_s
        while (remaining := until - time.monotonic()) > 0:
            if self._stopping.wait(min(remaining, _LOOK_S)):
                return False  # one more try comes at the very end; the disk keeps the rest
            self._look_around()
        return True

    def _exchange(self, body: bytes) -> Answer:
        try:
            if self._sender is None:
                self._sender = connect(self._target)
            return self._sender.send(body, self._call_timeout_s())
        except OSError as problem:
            return NotTaken("later", str(problem))

    def _call_timeout_s(self) -> float:
        if self._deadline is None:
            return self._target.timeout_s
        remaining = max(0.05, self._deadline - time.monotonic())
        # A collector that was away a moment ago must not hold up the process's end.
        return min(remaining, 0.5 if self._trouble else self._target.timeout_s)

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _disconnect(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.close()

    # --- the log -------------------------------------------------------------------------------------------

    def _tell_trouble(self, answer: NotTaken) -> None:
        where = f"the collector at {self._target.endpoint}"
        kept = f"Records stay in {self._spool.folder} until it takes them."
        if answer.kind == "credentials":
            text = f"{where} refuses this service's credentials ({answer.reason[:500]}): set OTEL_AUDITSPAN_HEADERS."
        else:
            text = f"{where} takes no records ({answer.reason[:500]}): is OTEL_AUDITSPAN_ENDPOINT right?"
        self._tell(answer.kind, f"{text} {kept}")

    def _tell(self, trouble: str, text: str) -> None:
        """Say *text* once for each change of *trouble*."""
        if trouble != self._trouble:
            self._trouble = trouble
            _log.warning("auditspan: %s", text)

    def _complain(self, text: str) -> None:
        """Say *text*, at most once a minute; the counters have every case."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            _log.warning("auditspan: %s", text)

    # --- fork ----------------------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """In the child: forget the parent's thread and connection; the first record starts new ones."""
        sender, stopped = self._sender, self._stopping.is_set()
        self._begin()
        if sender is not None:
            sender.close()
        if stopped:
            self._stopping.set()


def _at_fork(shipper: Shipper) -> None:
    """Register the hook, which can't be taken back, without keeping *shipper* alive."""
    reference = weakref.ref(shipper)

    def run() -> None:
        found = reference()
        if found is not None:
            found.after_fork()

    os.register_at_fork(after_in_child=run)
