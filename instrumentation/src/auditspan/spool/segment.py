"""One segment file: written by one process, read by whoever holds its lock, deleted once the collector has it.

The lock is an ``flock`` on the segment itself. Its owner is the process that writes it or, once that one is
dead or done, the one that delivers it; the kernel drops the lock with the process, so a segment whose lock is
free is left over and anybody's to deliver. Two rules keep this race-free:

* A segment gets its name only when it is already locked (made as ``.new``, then renamed): nobody can see one
  that is about to be written as left over.
* Whoever takes a lock then looks whether the name still leads to the file it locked: the previous owner may
  have delivered and deleted it between opening and locking.

How far the collector has it stands beside it in ``.ack``, replaced atomically. A lost or damaged ``.ack``
means that records are sent again, which the collector notices by their record id; never that one is skipped.
What can't be delivered (torn bytes, records that the collector refuses) is kept in ``.bad``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from auditspan.spool import frames

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".spool"
NEW_SUFFIX: Final = ".new"
ACK_SUFFIX: Final = ".ack"
ACK_NEW_SUFFIX: Final = ".ack-new"
BAD_SUFFIX: Final = ".bad"
COUNT_SUFFIX: Final = ".count"  # see tally
SUFFIXES: Final = (SUFFIX, NEW_SUFFIX, ACK_SUFFIX, ACK_NEW_SUFFIX, BAD_SUFFIX, COUNT_SUFFIX)

_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
# A file full of false frame starts must not keep the shipper busy: each costs a checksum over up to 3 MiB.
_MAX_FALSE_STARTS: Final = 64


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive *payloads* of a segment; acknowledge up to *end* once they are delivered.

    *skipped* counts the torn places before and between them.
    """

    payloads: tuple[bytes, ...]
    end: int
    skipped: int = 0


class Segment:
    """A segment file whose lock this process holds. Not thread-safe: one thread writes, one reads."""

    def __init__(self, path: Path, fd: int, *, live: bool) -> None:
        """Take over *fd*, open on *path* and locked. A *live* one still grows: its torn end is only unfinished."""
        self.path = path
        self.fd = fd
        self.live = live
        self.size = os.fstat(fd).st_size  # a live segment's writer adds to it after each whole frame
        self.acknowledged = self._read_ack()
        self.pending = 0  # records appended by this process and not yet acknowledged

    @classmethod
    def create(cls, path: Path) -> Segment:
        """Make a new, empty, locked segment, mode 0600. Raises OSError."""
        new = path.with_suffix(NEW_SUFFIX)
        fd = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(path)
            return cls(path, fd, live=True)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    @classmethod
    def take(cls, path: Path) -> Segment | None:
        """Lock a segment of this user's that nobody holds; None when there is none by that name. Raises OSError."""
        fd = lock(path, _FLAGS)
        return None if fd is None else cls(path, fd, live=False)

    def in_place(self) -> bool:
        """Whether the name still leads to this file; False when somebody removed it or its folder."""
        return _same_file(self.path, self.fd)

    def waiting_bytes(self) -> int:
        """Bytes that the collector has not acknowledged yet."""
        return max(0, self.size - self.acknowledged)

    def read(self, max_records: int, max_bytes: int) -> Batch:
        """The next records that are not acknowledged, at least one if there is any. Raises OSError.

        Torn or foreign bytes on the way are put aside in ``.bad``; a batch never spans them.
        """
        skipped = 0
        while self.acknowledged < self.size:
            # One frame fits whole whatever its length, and a batch never needs more.
            want = min(self.size - self.acknowledged, max(max_bytes, frames.MAX_FRAME_BYTES))
            buffer = os.pread(self.fd, want, self.acknowledged)
            payloads, length = _whole_frames(buffer, max_records, max_bytes)
            if payloads:
                return Batch(tuple(payloads), self.acknowledged + length, skipped)
            if self.live and frames.parse(buffer, 0) == "incomplete":
                break  # the writer is not done with it
            self._skip(self._next_frame(buffer))
            skipped += 1
        return Batch((), self.acknowledged, skipped)

    def acknowledge(self, end: int) -> None:
        """Note that everything before *end* is delivered, in memory and in ``.ack``. Raises OSError.

        Memory comes first: when the note can't be written, this process still goes on; only a successor
        would send again what is already delivered.
        """
        self.acknowledged = end
        temporary = self.path.with_suffix(ACK_NEW_SUFFIX)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, self._ack_text(end))
        finally:
            os.close(fd)
        temporary.rename(self.path.with_suffix(ACK_SUFFIX))

    def set_aside(self, content: bytes) -> None:
        """Keep *content* in this segment's ``.bad`` file. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self.path.with_suffix(BAD_SUFFIX), flags, 0o600)
        try:
            if os.write(fd, content) != len(content):
                raise OSError(28, "the disk took only a part of the record", str(self.path))
        finally:
            os.close(fd)

    def delete(self) -> None:
        """Remove the file and its ``.ack``, and let go of the lock; the ``.bad`` stays. Raises OSError."""
        try:
            # The segment first: an .ack without one is litter, a segment without its .ack would be sent again.
            self.path.unlink(missing_ok=True)
            self.path.with_suffix(ACK_SUFFIX).unlink(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the lock without touching the file; others may then deliver it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def _ack_text(self, end: int) -> bytes:
        """One line; its checksum covers the segment's name, so that no flipped digit or stray copy skips a record."""
        line = f"auditspan-ack 1 {end}"
        return f"{line} {zlib.crc32(f'{self.path.stem} {line}'.encode()):08x}\n".encode()

    def _read_ack(self) -> int:
        try:
            content = self.path.with_suffix(ACK_SUFFIX).read_bytes()
            end = int(content.split()[2])
        except (OSError, ValueError, IndexError):
            return 0
        return end if 0 <= end <= self.size and content == self._ack_text(end) else 0

    def _next_frame(self, buffer: bytes) -> int:
        """Where the next whole frame begins behind the broken one at ``acknowledged``; the end when nowhere."""
        start = self.acknowledged
        false_starts = 0
        while start < self.size and false_starts < _MAX_FALSE_STARTS:
            at = frames.next_magic(buffer, 0)
            if at < 0 and start + len(buffer) >= self.size:
                break
            # Without a hit keep three bytes: a magic may lie across the border.
            start += at if at > 0 else max(1, len(buffer) - len(frames.MAGIC) + 1)
            buffer = os.pread(self.fd, min(self.size - start, frames.MAX_FRAME_BYTES), start)
            if isinstance(frames.parse(buffer, 0), frames.Frame):
                return start
            false_starts += 1
        return self.size

    def _skip(self, end: int) -> None:
        at = self.acknowledged
        with contextlib.suppress(OSError):  # a full disk must not hold up what follows
            while at < end:
                piece = os.pread(self.fd, min(end - at, 1 << 20), at)
                if not piece:
                    break
                self.set_aside(piece)
                at += len(piece)
        with contextlib.suppress(OSError):
            self.acknowledge(end)


def lock(path: Path, flags: int) -> int | None:
    """*path* opened with *flags* and locked; None when it is not there, not ours, or somebody's. Raises OSError."""
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _ours(path, fd):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _same_file(path: Path, fd: int) -> bool:
    """False only when *path* surely leads elsewhere; raises OSError when it can't be told."""
    try:
        there, held = path.lstat(), os.fstat(fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)


def _ours(path: Path, fd: int) -> bool:
    """Whether *fd* is a plain file that this user wrote: another's could hold forged records."""
    status = os.fstat(fd)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and _same_file(path, fd)


def _whole_frames(buffer: bytes, max_records: int, max_bytes: int) -> tuple[list[bytes], int]:
    """Whole frames from the start of *buffer* within both limits, and where they end; always one if there is one."""
    payloads: list[bytes] = []
    offset = total = 0
    while len(payloads) < max_records:
        frame = frames.parse(buffer, offset)
        if not isinstance(frame, frames.Frame):
            break
        if payloads and total + len(frame.payload) > max_bytes:
            break
        payloads.append(frame.payload)
        total += len(frame.payload)
        offset = frame.end
    return payloads, offset
