"""A record that still counts: its bytes on disk but for its end, and how many it stands for, raised in place.

Each count is one write of 16 bytes into a file that its process holds locked, so it survives that process however it
ends. Who lets go of the lock, by closing the file or by dying, leaves it to the next ``check`` of any process of the
service, its own too: that one turns it into a record. The record's bytes depend on the file alone, its number in the
sequence included, so a crash between writing it and removing the file makes a copy that the collector knows.

All numbers little endian:

    offset  size  what
    0       4     b"ASC1": Auditspan count, version 1
    4       4     length of the rest behind this header
    8       4     CRC-32 of the rest
    12      8     how many
    20      8     the last one's end, in nanoseconds of Unix time
    28            five pieces of an OTLP request (see ``wire.Pieces``), each behind its length in 4 bytes
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import zlib
from typing import TYPE_CHECKING, Final

from auditspan.spool import segment as files
from auditspan.wire import Pieces

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = files.COUNT_SUFFIX
_HEADER: Final = struct.Struct("<4sIIQQ")
_COUNT: Final = struct.Struct("<QQ")
_COUNT_AT: Final = 12
_LENGTH: Final = struct.Struct("<I")
_MAGIC: Final = b"ASC1"
_FLAGS: Final = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Damaged(ValueError):  # noqa: N818 - a state
    """The file is no whole count."""


class Tally:
    """One count, locked by this process. Not thread-safe."""

    def __init__(self, path: Path, fd: int, *, sync: bool = False) -> None:
        """Take over *fd*, open on *path* and locked; *sync* waits for the disk with each count."""
        self.path = path
        self._fd = fd
        self._sync = sync
        self._count = 0

    @classmethod
    def create(cls, path: Path, pieces: Pieces, *, sync: bool = False) -> Tally:
        """A new count of 0, mode 0600. Raises OSError."""
        new = path.with_suffix(files.NEW_SUFFIX)
        rest = b"".join(_LENGTH.pack(len(piece)) + piece for piece in pieces)
        fd = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = _HEADER.pack(_MAGIC, len(rest), zlib.crc32(rest), 0, 0) + rest
            _write_whole(fd, content)
            new.rename(path)
            return cls(path, fd, sync=sync)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    @classmethod
    def take(cls, path: Path) -> Tally | None:
        """Lock a count of this user's that nobody holds; None when there is none by that name. Raises OSError."""
        fd = files.lock(path, _FLAGS)
        return None if fd is None else cls(path, fd)

    def add(self, end_time_ns: int) -> None:
        """One more, which ended then; on return it survives this process. Raises OSError."""
        self._count += 1
        os.pwrite(self._fd, _COUNT.pack(self._count, end_time_ns), _COUNT_AT)
        if self._sync:
            os.fdatasync(self._fd)

    def payload(self) -> bytes:
        """The record, empty when it counted nothing. Raises Damaged and OSError."""
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        if len(content) < _HEADER.size:
            raise Damaged
        magic, length, checksum, count, end = _HEADER.unpack_from(content)
        rest = content[_HEADER.size :]
        if magic != _MAGIC or len(rest) != length or zlib.crc32(rest) != checksum:
            raise Damaged
        pieces, at = [], 0
        while at < length:
            (size,) = _LENGTH.unpack_from(rest, at)
            at += _LENGTH.size + size
            pieces.append(rest[at - size : at])
        return Pieces(*pieces).with_count(count, end) if count else b""

    def delete(self) -> None:
        """Remove the file and let go of it. Raises OSError."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def set_aside(self) -> None:
        """Keep a damaged file as ``.bad``, and let go of it. Raises OSError."""
        try:
            self.path.rename(self.path.with_suffix(files.BAD_SUFFIX))
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the lock: the next ``check`` of any process makes the record."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def peek(path: Path) -> int:
    """How many the count at *path* stands for by now, whoever holds it; 0 for what is no count. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        head = os.pread(fd, _HEADER.size, 0)
    finally:
        os.close(fd)
    if len(head) < _HEADER.size:
        return 0
    magic, _, _, count, _ = _HEADER.unpack(head)
    return int(count) if magic == _MAGIC else 0


def _write_whole(fd: int, content: bytes) -> None:
    if os.write(fd, content) != len(content):
        raise OSError(28, "the disk took only a part of the record")
