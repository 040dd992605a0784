"""A request's body: its bytes, whatever framing and compression they came in, in bounded memory.

A body that ends too early is an error, never an end: half an INSERT must not be committed.
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import TYPE_CHECKING, Final, Protocol, cast

import lz4.frame
import zstandard

from auditspan_collector.store import blocks
from auditspan_collector.store.failures import BAD_ARGUMENTS, CANNOT_DECOMPRESS, NETWORK_ERROR, QueryFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector.store.blocks import Readable


class Headers(Protocol):
    """A request's headers; names in any case."""

    def get(self, name: str, /) -> str | None:
        """The header's value, or None."""


class Source(Protocol):
    """The connection's bytes, buffered."""

    def read(self, size: int, /) -> bytes:
        """Exactly *size* bytes, fewer at the connection's end."""

    def readline(self, size: int, /) -> bytes:
        """Up to and with a line end, at most *size* bytes."""


PIECE_BYTES: Final = 256 << 10
_ZSTD_PIECE_BYTES: Final = (
    1 << 10
)  # expands to 32 MiB at the very most (a run-length block: 4 bytes for 128 KiB)
_MAX_LINE_BYTES: Final = 4096


def _ended_early() -> QueryFailed:
    return QueryFailed.because(
        NETWORK_ERROR, "The request's body ended before its announced end; nothing of it counts.", status=400
    )


class _Counted(io.RawIOBase):
    """A body with Content-Length."""

    def __init__(self, source: Source, length: int) -> None:
        self._source = source
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # io's buffers are wider than typed
        size = min(len(buffer), self._left)
        if not size:
            return 0
        data = self._source.read(size)
        if len(data) < size:
            raise _ended_early()
        buffer[:size] = data
        self._left -= size
        return size


class _Chunked(io.RawIOBase):
    """A body in chunks: RFC 9112, section 7.1. Trailers are read and dropped."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0
        self._done = False

    def readable(self) -> bool:
        return True

    def _line(self) -> bytes:
        line = self._source.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            raise _ended_early()
        return line.strip()

    def _next_chunk(self) -> None:
        size = self._line().partition(b";")[0].strip()
        if not size or len(size) > 16 or size.strip(b"0123456789abcdefABCDEF"):
            raise QueryFailed.because(BAD_ARGUMENTS, "The request's chunked body is malformed.")
        self._left = int(size, 16)
        if not self._left:
            while self._line():
                pass
            self._done = True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # io's buffers are wider than typed
        if not self._left and not self._done:
            self._next_chunk()
        size = min(len(buffer), self._left)
        if not size:
            return 0
        data = self._source.read(size)
        if len(data) < size:
            raise _ended_early()
        buffer[:size] = data
        self._left -= size
        if not self._left and self._line():
            raise QueryFailed.because(BAD_ARGUMENTS, "The request's chunked body is malformed.")
        return size


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other; zstandard's own reader takes a truncated frame for a whole one."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._data = b""

    def readable(self) -> bool:
        return True

    def _fill(self) -> bool:
        if not self._packed:
            self._packed = self._source.read(PIECE_BYTES)
        if not self._packed:
            if self._frame is not None:
                raise EOFError("a frame is not complete")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        piece, self._packed = self._packed[:_ZSTD_PIECE_BYTES], self._packed[_ZSTD_PIECE_BYTES:]
        self._data = self._frame.decompress(piece)
        if self._frame.eof:
            self._packed = self._frame.unused_data + self._packed
            self._frame = None
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # io's buffers are wider than typed
        while not self._data:
            if not self._fill():
                return 0
        piece, self._data = self._data[: len(buffer)], self._data[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


class _Deflate(io.RawIOBase):
    """zlib's format, which HTTP calls deflate (RFC 9110, section 8.4.1.2)."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._stream = zlib.decompressobj()
        self._packed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # io's buffers are wider than typed
        while not self._stream.eof:
            packed = self._packed or self._source.read(PIECE_BYTES)
            if not packed:
                raise EOFError("the stream is not complete")
            data = self._stream.decompress(packed, len(buffer))
            self._packed = self._stream.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def _decoded(source: io.RawIOBase, encoding: str) -> Readable:
    match encoding:
        case "" | "identity":
            return cast("Readable", source)
        case "gzip" | "x-gzip":
            return cast("Readable", gzip.GzipFile(fileobj=source))
        case "deflate":
            return cast("Readable", _Deflate(cast("Readable", source)))
        case "zstd":
            return cast("Readable", _Zstd(cast("Readable", source)))
        case "lz4":
            return cast("Readable", lz4.frame.LZ4FrameFile(source))
    raise QueryFailed.because(
        BAD_ARGUMENTS,
        f"Content-Encoding {encoding!r} is not supported; allowed: lz4, zstd, gzip, deflate.",
        status=415,
    )


def _raw(source: Source, headers: Headers) -> io.RawIOBase:
    transfer = (headers.get("Transfer-Encoding") or "").strip().lower()
    length = headers.get("Content-Length")
    if transfer and length is not None:
        raise QueryFailed.because(BAD_ARGUMENTS, "Both Content-Length and Transfer-Encoding; send one.")
    if transfer == "chunked":
        return _Chunked(source)
    if transfer:
        raise QueryFailed.because(
            BAD_ARGUMENTS, f"Transfer-Encoding {transfer!r} is not supported.", status=501
        )
    if length is not None and not (length.isascii() and length.isdigit()):
        raise QueryFailed.because(BAD_ARGUMENTS, "Content-Length is no number.")
    return _Counted(source, int(length or 0))


class Body:
    """The decoded body, read once from front to back in bounded memory."""

    def __init__(self, source: Source, headers: Headers) -> None:
        """Take the body of the request with *headers* from *source*. Raises QueryFailed when it can't be read."""
        self._raw = _raw(source, headers)
        self._encoding = (headers.get("Content-Encoding") or "").strip().lower()
        self._pieces = self._read_all(framed=False)

    def expect_blocks(self) -> None:
        """Read ClickHouse's own compressed framing inside whatever Content-Encoding says (``decompress=1``)."""
        self._pieces = self._read_all(framed=True)

    def __iter__(self) -> Iterator[bytes]:
        """What is left of it, in pieces. Raises QueryFailed when it ends early or is damaged."""
        return self._pieces

    def at_most(self, limit: int) -> bytes:
        """The first bytes, at least *limit* of them unless the body ends before."""
        parts, size = [], 0
        while size < limit:
            part = next(self._pieces, b"")
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def discard(self, limit: int) -> bool:
        """Read up to *limit* raw bytes that nobody asked for; whether that was the end."""
        try:
            while limit > 0:
                dropped = self._raw.read(min(limit, PIECE_BYTES))
                if not dropped:
                    return True
                limit -= len(dropped)
        except (QueryFailed, OSError):
            pass
        return False

    def _read_all(self, *, framed: bool) -> Iterator[bytes]:
        source = _decoded(self._raw, self._encoding)
        try:
            if framed:
                yield from blocks.decompressed(source)
                return
            while piece := source.read(PIECE_BYTES):
                yield piece
        except (EOFError, zlib.error, gzip.BadGzipFile, RuntimeError, zstandard.ZstdError) as error:
            raise QueryFailed.because(
                CANNOT_DECOMPRESS, f"The body is not whole {self._encoding}: {error}.", status=400
            ) from None
