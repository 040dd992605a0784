"""The spool of one process: append from any thread; read, acknowledge and take over from the shipper's.

Theory of operation. The process owns one live segment, held open and locked. ``append`` writes one frame with
one ``write`` to it, so that whatever kills the process leaves whole frames and at most one torn at the end.
A full segment is closed and queued for the reader, in order; beyond a few it is let go instead, and comes back
the way a dead process's segments do: somebody finds its lock free. There is no other recovery.

After a fork the child must not write to the parent's segment, nor hold its lock by an inherited descriptor: an
flock belongs to the open file, so it lasts until the last copy is closed. The child closes its copies, which
does not unlock the parent's, and begins a stream and a segment of its own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from auditspan.spool import frames, tally
from auditspan.spool import segment as files
from auditspan.spool.counts import Losses, SpoolCounts
from auditspan.spool.folder import place, prepare
from auditspan.spool.room import WAIT_S, Room
from auditspan.spool.segment import Segment
from auditspan.spool.survey import survey, take_counts
from auditspan.spool.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from auditspan.wire import Pieces

_log = logging.getLogger(__name__)

LOCK_WAIT_S: Final = WAIT_S  # how long append waits for other threads before it leaves its record to them
_DEFERRED_RECORDS: Final = 1000  # in memory, for a disk that hangs; beyond that append sheds
_FORK_WAIT_S: Final = 0.5
_SYNC_WAIT_S: Final = 1.0
_RETRY_S: Final = 1.0  # after a failed write
_KEPT_CLOSED: Final = 4  # full segments held open for the reader; the rest are let go
_RETIRE_BYTES: Final = 1 << 20  # a delivered live segment of this size is replaced, to give its room back
_QUIET_S: Final = 60.0  # between complaints
_TELLING_BYTES: Final = 64 * 1024  # room that there must be to write that records were lost


class Spool:
    """See the module. Nothing here raises into the caller of ``append``; files are 0600, the folder 0700."""

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 256 << 20,
        segment_bytes: int = 8 << 20,
        sync: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Use *folder*, made when it is first needed, with at most about *max_bytes* in it, and as much set aside.

        The bound covers all processes that share the folder; each learns of the others' files every few
        seconds, so together they may overshoot by what they write in between. *sync* waits for the disk.
        """
        self.folder = folder
        self.max_bytes = max_bytes
        self.sync = sync
        self._segment_bytes = min(segment_bytes, max(max_bytes // 4, 1))
        self._clock = clock
        self._doorbell: Callable[[], None] | None = None
        self._tend: Callable[[int, str, int], bool] | None = None
        self._begin()
        _at_fork(self)

    def _begin(self) -> None:
        """The state of a process that has written nothing yet."""
        self.stream_id = secrets.token_hex(8)
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._sync_lock = threading.Lock()
        self._holding = threading.local()
        self._counts = SpoolCounts()
        self._losses = Losses(self._counts)
        self._live: Segment | None = None
        self._closed: deque[Segment] = deque()
        self._taken: set[Segment] = set()
        self._unreadable: set[str] = set()
        self._number = 0
        self._synced = (0, 0)  # segment number, offset
        self._used_bytes = 0  # of the folder, as of the last look plus what was written since
        self._bad_bytes = 0  # the same of what was set aside
        self._next_try = 0.0
        self._tallies = 0
        self._room = Room(self._clock)
        self._busy = False
        self._deferred: deque[bytes] = deque()
        self._complaint = ""
        self._said = False
        self._quiet_until = 0.0

    # --- writing: any thread -------------------------------------------------------------------------------

    def on_append(self, doorbell: Callable[[], None]) -> None:
        """Call *doorbell* after each append, in the appending thread; it must be quick and must not raise."""
        self._doorbell = doorbell

    def on_check(self, tend: Callable[[int, str, int], bool]) -> None:
        """Call *tend* with each ``check`` while there is room, in its thread; it must not raise.

        It is given how many records were lost, why, and since when (ns of Unix time), and answers whether it has told.
        """
        self._tend = tend

    def append(self, payload: bytes) -> bool:
        """Write one record; on True it survives this process, with ``sync`` power loss too. Never raises.

        False means that it is not kept, which is counted: the spool is full (and got no room in LOCK_WAIT_S), its
        folder can't be written, or the payload is too large. When another thread is writing for longer than
        LOCK_WAIT_S (a hanging disk, a process starved of CPU), the record is left to that thread, and True means that
        it is in memory.
        """
        if self._pid != os.getpid():  # forked by something that runs no Python hooks
            self.after_fork()
        if not 0 < len(payload) <= frames.MAX_PAYLOAD_BYTES:
            self._losses.count("oversize")
            self._complain(
                f"a record of {len(payload)} bytes is not kept; {frames.MAX_PAYLOAD_BYTES} is the most. Limit what goes "
                "on the span: OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"
            )
            return False
        frame = frames.pack(payload)
        waited = 0.0
        if self._is_full(len(frame)) and self._doorbell is not None:  # somebody reads, and makes room
            waited = self._room.wait(lambda: self._is_full(len(frame)))
        if not (self._lock.acquire(False) or self._lock.acquire(timeout=max(0.0, LOCK_WAIT_S - waited))):
            return self._defer(frame)
        mark = None
        try:
            kept = self._append_locked(frame)
            if self.sync and self._live is not None:
                mark = (self._number, self._live.size)
        except Exception as problem:  # noqa: BLE001 - whatever it is, the application's request goes on
            self._fail(problem)
            return False
        finally:
            self._lock.release()
        if kept:
            if mark is not None:
                self._wait_for_disk(mark)
            if self._doorbell is not None:
                self._doorbell()
        return kept

    def open_tally(self, pieces: Pieces) -> Tally:
        """A record that counts until it is closed, and is then appended by ``check``. Raises OSError."""
        with self._lock:  # a fork must not copy the descriptor before it is noted
            self._tallies += 1
            name = f"{self.stream_id}-c{self._tallies:06d}{tally.SUFFIX}"
            return Tally.create(prepare(self.folder) / name, pieces, sync=self.sync)

    def _is_full(self, size: int) -> bool:
        return self._used_bytes + size > self.max_bytes

    def _append_locked(self, frame: bytes) -> bool:
        if self._busy:
            # A signal handler of this very thread interrupted an append; that one writes it as it leaves.
            return self._defer(frame)
        self._busy = True
        try:
            kept = self._write(frame)
            while self._deferred:
                self._write(self._deferred.popleft())
        finally:
            self._busy = False
        return kept

    def _defer(self, frame: bytes) -> bool:
        if len(self._deferred) >= _DEFERRED_RECORDS:
            self._losses.count("shed")
            return False
        self._counts.deferred += 1
        self._deferred.append(frame)
        return True

    def _write(self, frame: bytes) -> bool:
        size = len(frame)
        if self._is_full(size):
            self._losses.count("shed")
            self._complain(
                f"the spool {self.folder} is full ({self.max_bytes} bytes); new records are not kept until the "
                "collector has taken some. Is it reachable? More room: OTEL_AUDITSPAN_SPOOL_MAX_BYTES"
            )
            return False
        if self._next_try and self._clock() < self._next_try:
            self._losses.count("failed")
            return False
        try:
            live = self._live
            if live is None or (live.size and live.size + size > self._segment_bytes):
                live = self._next_segment()
            written = os.write(live.fd, frame)
            if written != size:
                self._cut_off(live, written)
        except OSError as problem:
            self._fail(problem)
            return False
        live.size += size
        live.pending += 1
        self._used_bytes += size
        self._counts.appended += 1
        if self._complaint:
            self._recovered()
        return True

    def _cut_off(self, live: Segment, written: int) -> None:
        # Usually the disk filled up in mid-frame. Cut the torn piece off; if even that fails, no more frames
        # go behind it.
        try:
            os.ftruncate(live.fd, os.fstat(live.fd).st_size - written)
        except OSError:
            self._retire_live()
        raise OSError(28, "the disk took only a part of the record", str(live.path))

    def _next_segment(self) -> Segment:
        if self._live is not None:
            self._retire_live()
        used = prepare(self.folder)
        self._look()
        self._number += 1
        self._live = Segment.create(used / f"{self.stream_id}-{self._number:06d}{files.SUFFIX}")
        if self.sync:  # without this, power loss could take the new file's name away
            folder = os.open(used, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return self._live

    def _retire_live(self) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        with contextlib.suppress(OSError):
            if self.sync:
                os.fdatasync(live.fd)
            live.size = os.fstat(live.fd).st_size
        live.live = False
        if len(self._closed) < _KEPT_CLOSED:
            self._closed.append(live)
        else:
            live.close()

    def _wait_for_disk(self, mark: tuple[int, int]) -> None:
        """Wait until *mark* is on disk; threads that come while one waits share the next wait."""
        if not self._sync_lock.acquire(timeout=_SYNC_WAIT_S):
            self._counts.unsynced += 1
            return
        try:
            if self._synced >= mark:
                return
            live, number = self._live, self._number
            if live is None or number != mark[0]:
                return  # closing it waited for the disk
            reached = live.size
            os.fdatasync(live.fd)
            self._synced = (number, reached)
        except OSError as problem:
            if self._number != number:
                return  # retired meanwhile, and closing it waited for the disk
            self._counts.unsynced += 1
            self._complain(f"{self.folder}: {problem}; records are written but may not survive power loss")
        finally:
            self._sync_lock.release()

    def _fail(self, problem: Exception) -> None:
        self._losses.count("failed")
        self._next_try = self._clock() + _RETRY_S
        self._complain(
            f"can't keep audit records in {self.folder}: {problem}. The application is not affected; records are "
            "lost until the folder can be written. Another place: OTEL_AUDITSPAN_SPOOL_DIR"
        )

    def _complain(self, text: str) -> None:
        """Say *text* once, not at every record; at most one complaint in _QUIET_S."""
        if text == self._complaint:
            return
        self._complaint = text
        if self._clock() >= self._quiet_until:
            self._quiet_until = self._clock() + _QUIET_S
            self._said = True
            _log.warning("auditspan: %s", text)

    def _recovered(self) -> None:
        counts, self._complaint, self._next_try = self._counts, "", 0.0
        if self._said:
            self._said = False
            _log.warning(
                "auditspan: records are kept in %s again; %d since the start were not",
                self.folder,
                counts.lost(),
            )

    # --- reading: the shipper's thread ---------------------------------------------------------------------

    def next_segment(self) -> Segment | None:
        """The oldest of this process's segments with something to deliver; None when all is delivered."""
        with self._lock:
            if self._closed:
                return self._closed[0]
            live = self._live
            return live if live is not None and live.waiting_bytes() else None

    def left_over(self) -> Segment | None:
        """Lock one segment that its writer left behind, or None. Hand it back through ``done``."""
        used = place(self.folder)
        for name in self._look():
            if name.endswith(files.SUFFIX) and name not in self._unreadable:
                try:
                    with self._lock:  # a fork must not copy the descriptor before it is noted
                        taken = Segment.take(used / name)
                        if taken is not None:
                            self._taken.add(taken)
                            return taken
                except OSError as problem:
                    self._unreadable.add(name)
                    _log.warning("auditspan: %s can't be read and stays: %s", used / name, problem)
        return None

    def acknowledge(self, segment: Segment, end: int, records: int) -> None:
        """The collector has *records* up to *end* of *segment*; what is delivered to its end is deleted."""
        with contextlib.suppress(OSError):
            segment.acknowledge(end)
        with self._lock:
            segment.pending = max(0, segment.pending - records)
            if segment is self._live:
                if segment.acknowledged < segment.size or segment.size < _RETIRE_BYTES:
                    return
                self._retire_live()
        self.done(segment)

    def done(self, segment: Segment) -> None:
        """Delete *segment* if it is delivered to its end and nobody writes it; otherwise leave it as it is."""
        if segment.live or segment.fd < 0 or segment.acknowledged < segment.size:
            return
        with self._lock:
            if segment in self._closed:
                self._closed.remove(segment)
            self._taken.discard(segment)
            self._used_bytes = max(0, self._used_bytes - segment.size)
            self._room.made()
            with contextlib.suppress(OSError):
                segment.delete()

    def set_aside(self, segment: Segment, payload: bytes) -> None:
        """Keep a record that the collector refuses in the segment's ``.bad`` file, as a frame.

        Raises OSError, also when the folder's ``.bad`` files have come to *max_bytes*: what is set aside has a bound
        of its own, so that it takes no room from what can be delivered.
        """
        frame = frames.pack(payload)
        if self._bad_bytes + len(frame) > self.max_bytes:
            raise OSError(
                28, f"the .bad files hold {self._bad_bytes} bytes; look at them, then remove or rename them"
            )
        segment.set_aside(frame)
        self._bad_bytes += len(frame)

    def give_up(self, segment: Segment, problem: OSError) -> None:
        """Leave a segment that can't be read where it is, and go on with the others."""
        _log.warning("auditspan: %s can't be read and stays: %s", segment.path, problem)
        with self._lock:
            if segment is self._live:
                self._retire_live()
            if segment in self._closed:
                self._closed.remove(segment)
            self._taken.discard(segment)
            self._unreadable.add(segment.path.name)
            segment.close()

    def count_torn(self, places: int) -> None:
        """Count *places* where damaged bytes were skipped."""
        self._counts.torn += places

    def check(self) -> None:
        """Write what threads left in memory, learn how full the folder is, and carry on in a new file when
        somebody removed the folder or the file. Call it every second or so.
        """
        names = self._look()
        with self._lock:
            if self._deferred and not self._busy:
                self._append_locked(self._deferred.popleft())
            gone = [segment for segment in self._held() if not _in_place(segment)]
            if gone:
                _log.warning(
                    "auditspan: somebody removed files of the spool %s; it goes on in a new one", self.folder
                )
                self._retire_live()
                for segment in gone:
                    self._rescue(segment)
        if not self._is_full(_TELLING_BYTES) and self._clock() >= self._next_try:
            self._tell_of_losses()
            take_counts(place(self.folder), names, self.append)

    def _tell_of_losses(self) -> None:
        if self._tend is None:
            return
        untold = self._losses.untold()
        if self._tend(untold.lost, untold.reason, untold.since_ns) and untold.lost:
            self._losses.tell(untold)

    def _held(self) -> list[Segment]:
        return [*self._closed, *([self._live] if self._live is not None else [])]

    def _rescue(self, segment: Segment) -> None:
        """Copy what is not delivered from a removed file, which lives only as long as it is open.

        What can't be copied now stays open, to be delivered from memory of the kernel or copied later.
        """
        if segment.fd < 0:
            return
        while (batch := segment.read(1, frames.MAX_PAYLOAD_BYTES)).payloads:
            if not self._write(frames.pack(batch.payloads[0])):
                return
            self._counts.appended -= 1
            segment.acknowledged = batch.end
        if segment in self._closed:
            self._closed.remove(segment)
        segment.close()

    def _look(self) -> tuple[str, ...]:
        """Names in the folder, oldest first; notes their size and removes litter."""
        found = survey(place(self.folder))
        if found is None:
            return ()
        self._used_bytes, self._bad_bytes = found.used_bytes, found.bad_bytes
        return found.names

    # --- both ----------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Records of this process that are not acknowledged yet and whose segment it still holds."""
        with self._lock:
            live = self._live
            return sum(segment.pending for segment in self._closed) + (
                live.pending if live is not None else 0
            )

    def counts(self) -> SpoolCounts:
        """A copy of the counters."""
        return replace(self._counts)

    def close(self) -> None:
        """Let go of all segments; what is not delivered stays for the next process. ``append`` opens a new one."""
        with self._lock:
            self._retire_live()
            for segment in [*self._closed, *self._taken]:
                self.done(segment)
                segment.close()
            self._closed.clear()
            self._taken.clear()

    def release(self, segment: Segment) -> None:
        """Hand back what ``left_over`` gave; what is not delivered of it stays for the next taker."""
        self.done(segment)
        with self._lock:
            self._taken.discard(segment)
            segment.close()

    def before_fork(self) -> None:
        """Hold the spool still, for a bounded time, so that the child gets whole state. Pair with the next."""
        self._holding.held = self._lock.acquire(timeout=_FORK_WAIT_S)

    def after_fork_in_parent(self) -> None:
        """Let the spool go on."""
        if getattr(self._holding, "held", False):
            self._holding.held = False
            self._lock.release()

    def after_fork(self) -> None:
        """In the child: drop the parent's files without unlocking them, and begin a stream of its own."""
        inherited = [*self._held(), *self._taken]
        self._begin()
        for segment in inherited:
            with contextlib.suppress(OSError):
                segment.close()


def _in_place(segment: Segment) -> bool:
    try:
        return segment.in_place()
    except OSError:
        return True  # a folder that can't be looked into now is no reason to give the file up


def _at_fork(spool: Spool) -> None:
    """Register the hooks, which can't be taken back, without keeping *spool* alive."""
    reference = weakref.ref(spool)

    def run(step: Callable[[Spool], None]) -> None:
        found = reference()
        if found is not None:
            step(found)

    os.register_at_fork(
        before=lambda: run(Spool.before_fork),
        after_in_parent=lambda: run(Spool.after_fork_in_parent),
        after_in_child=lambda: run(Spool.after_fork),
    )
