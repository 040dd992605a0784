"""Look at a spool folder from outside, while its processes go on: what waits, who still writes, what is in the way.

Nothing is changed. To see whether a segment's writer lives, its lock is tried for an instant; a process that tries
to take the segment over in that very instant tries again two seconds later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditspan.spool import frames, tally
from auditspan.spool import segment as files
from auditspan.spool.folder import place

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment: *records* and *bytes* wait in it, the first since *oldest_unix_ns* (0 for none).

    *held* says that a process has it open, which delivers it or is about to; otherwise its writer is gone.
    """

    name: str
    records: int
    bytes: int
    oldest_unix_ns: int
    held: bool


@dataclass(frozen=True, slots=True)
class Survey:
    """A spool's *folder* as it is used, its *segments*, and what stands in the way of it.

    *bad_bytes* in *bad_files* were set aside, because they were damaged or refused. *tallies* are records that still
    count, of *tally_bytes*, and stand for *counted* denied requests by now. *problems* are sentences that
    say what is wrong and what to do. *free_bytes* is what the disk has left for this user, -1 when it can't be told.
    """

    folder: Path
    exists: bool
    writable: bool
    segments: tuple[SegmentState, ...]
    bad_files: int
    bad_bytes: int
    tallies: int
    tally_bytes: int
    counted: int
    free_bytes: int
    problems: tuple[str, ...]

    @property
    def records(self) -> int:
        """All that wait."""
        return sum(one.records for one in self.segments)

    @property
    def bytes(self) -> int:
        """Of all that wait or count."""
        return sum(one.bytes for one in self.segments) + self.tally_bytes

    @property
    def oldest_unix_ns(self) -> int:
        """Of the record that has waited longest; 0 when none waits."""
        return min((one.oldest_unix_ns for one in self.segments if one.oldest_unix_ns), default=0)

    @property
    def left_over(self) -> tuple[SegmentState, ...]:
        """Segments with something to deliver whose writer is gone and which nobody has taken over."""
        return tuple(one for one in self.segments if one.records and not one.held)


def survey(folder: Path) -> Survey:
    """What is in the spool that is configured as *folder*. Never raises OSError."""
    used = place(folder)
    problems: list[str] = []
    segments: list[SegmentState] = []
    bad, counts = [0, 0], [0, 0, 0]
    exists = used.is_dir()
    writable = _check(used, problems) if exists else _could_be_made(used, problems)
    for path in sorted(used.iterdir()) if exists and os.access(used, os.R_OK | os.X_OK) else ():
        try:
            if path.suffix == files.SUFFIX:
                state = _segment(path)
                if state is not None:
                    segments.append(state)
            elif path.suffix == files.BAD_SUFFIX:
                bad[0] += 1
                bad[1] += path.stat().st_size
            elif path.suffix == files.COUNT_SUFFIX:
                now = (1, path.lstat().st_size, tally.peek(path))
                counts = [before + more for before, more in zip(counts, now, strict=True)]
        except FileNotFoundError:
            continue  # delivered meanwhile
        except OSError as problem:
            problems.append(f"{path.name} can't be read: {problem.strerror}. It stays where it is.")
    return Survey(
        folder=used,
        exists=exists,
        writable=writable,
        segments=tuple(segments),
        bad_files=bad[0],
        bad_bytes=bad[1],
        tallies=counts[0],
        tally_bytes=counts[1],
        counted=counts[2],
        free_bytes=_free(used),
        problems=tuple(problems),
    )


def _check(used: Path, problems: list[str]) -> bool:
    """The same that ``folder.prepare`` insists on."""
    status = used.lstat()
    if stat.S_ISLNK(status.st_mode):
        problems.append(f"{used} is a link, which is not used; remove it.")
        return False
    if status.st_uid != os.geteuid():
        problems.append(
            f"{used} belongs to user {status.st_uid}; run this as that user, or remove the folder if nobody uses it."
        )
        return False
    if not os.access(used, os.R_OK | os.W_OK | os.X_OK):
        problems.append(f"{used} is not readable and writable: chmod 700 {used}")
        return False
    if status.st_mode & 0o077:
        problems.append(f"other users of this host may look into {used}: chmod 700 {used}")
    return True


def _could_be_made(used: Path, problems: list[str]) -> bool:
    above = used
    while not above.exists() and above != above.parent:
        above = above.parent
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return True
    problems.append(f"{used} can't be made: {above} is not writable. Another place: OTEL_AUDITSPAN_SPOOL_DIR")
    return False


def _free(used: Path) -> int:
    above = used
    while above != above.parent:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(above).free
        above = above.parent
    return -1


def _segment(path: Path) -> SegmentState | None:
    """None for what is no segment of this user's."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None
        start = files.Segment(path, fd, live=True).acknowledged
        records, oldest = _count(fd, start, status.st_size)
        return SegmentState(path.name, records, max(0, status.st_size - start), oldest, _held(fd))
    finally:
        os.close(fd)


def _held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _count(fd: int, start: int, size: int) -> tuple[int, int]:
    """How many records stand between *start* and *size*, and when the first of them ended (Unix ns)."""
    records = oldest = 0
    at = start
    while len(head := os.pread(fd, frames.HEADER.size, at)) == frames.HEADER.size:
        magic, length, _ = frames.HEADER.unpack(head)
        end = at + frames.HEADER.size + length
        if magic != frames.MAGIC or end > size:
            at = _next_frame(fd, at, size)
            continue
        if not records:
            oldest = _ended(os.pread(fd, length, at + frames.HEADER.size))
        records += 1
        at = end
    return records, oldest


def _next_frame(fd: int, at: int, size: int) -> int:
    """Where behind *at* another frame may begin, or *size*."""
    while at < size:
        piece = os.pread(fd, 1 << 20, at)
        found = piece.find(frames.MAGIC, 1)
        if found > 0:
            return at + found
        at += max(1, len(piece) - len(frames.MAGIC) + 1)
    return size


def _ended(payload: bytes) -> int:
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - heavy; an audited service does without
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415 - as above
        ExportTraceServiceRequest,
    )

    try:
        request = ExportTraceServiceRequest.FromString(payload)
        return int(request.resource_spans[0].scope_spans[0].spans[0].end_time_unix_nano)
    except (DecodeError, IndexError):
        return 0


def age_s(unix_ns: int) -> float:
    """Seconds since *unix_ns*, at least 0; 0 for none."""
    return max(0.0, (time.time_ns() - unix_ns) / 1e9) if unix_ns else 0.0
