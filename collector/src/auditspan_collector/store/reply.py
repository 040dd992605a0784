"""An answer on the wire: headers, compression, buffering, and how a failure is told at each point.

Until the first bytes have left, a failure is a status and a text. After that it is ClickHouse's exception block at
the end of the body, and the connection is cut before the body's proper end, so that nobody takes half a result for a
whole one (src/Server/HTTP/WriteBufferFromHTTPServerResponse.cpp).
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import IO, TYPE_CHECKING, Final, Protocol

import lz4.frame
import zstandard

from auditspan_collector.store import blocks, formats

if TYPE_CHECKING:
    from pathlib import Path

    from auditspan_collector.store.engine import Chunk
    from auditspan_collector.store.failures import QueryFailed

_BUFFER_BYTES: Final = 64 << 10  # a result up to this size gets its length and its summary into the headers
_MEMORY_BYTES: Final = 4 << 20  # of a held result; the rest goes to a file
_PREFERRED: Final = ("lz4", "zstd", "gzip", "deflate")  # on one machine the cheapest is the best
_ZLIB_LEVEL: Final = 1


class _Encoder(Protocol):
    def feed(self, data: bytes) -> bytes: ...
    def end(self) -> bytes: ...


class _Plain:
    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> bytes:
        return b""


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._stream = zlib.compressobj(level=_ZLIB_LEVEL, wbits=window_bits)

    def feed(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._stream.flush()


class _Zstd:
    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(level=1).compressobj()

    def feed(self, data: bytes) -> bytes:
        return self._stream.compress(data) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def end(self) -> bytes:
        return self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)


class _Lz4:
    def __init__(self) -> None:
        self._stream = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self._started = False

    def feed(self, data: bytes) -> bytes:
        start = b"" if self._started else self._stream.begin()
        self._started = True
        return bytes(start + self._stream.compress(data))

    def end(self) -> bytes:
        start = b"" if self._started else self._stream.begin()
        return bytes(start + self._stream.flush())


def _encoder(encoding: str) -> _Encoder:
    match encoding:
        case "lz4":
            return _Lz4()
        case "zstd":
            return _Zstd()
        case "gzip":
            return _Zlib(31)
        case "deflate":
            return _Zlib(15)
    return _Plain()


def choose_encoding(accepted: str) -> str:
    """What to compress with, given an Accept-Encoding header; empty for not at all."""
    offered = set()
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            offered.add(name.strip())
    return next((name for name in _PREFERRED if name in offered), "")


@dataclass(slots=True)
class Summary:
    """What a statement read, wrote and gave back so far."""

    started: float = field(default_factory=time.monotonic)
    read_rows: int = 0
    read_bytes: int = 0
    written_rows: int = 0
    written_bytes: int = 0
    result_rows: int = 0
    result_bytes: int = 0

    def add(self, chunk: Chunk) -> None:
        """Count *chunk*."""
        self.read_rows += chunk.read_rows
        self.read_bytes += chunk.read_bytes
        self.written_rows += chunk.written_rows
        self.written_bytes += chunk.written_bytes
        self.result_rows += chunk.rows
        self.result_bytes += len(chunk.data)

    def header(self) -> str:
        """As ``X-ClickHouse-Summary`` has it: numbers in quotes."""
        counts = {
            "read_rows": self.read_rows,
            "read_bytes": self.read_bytes,
            "written_rows": self.written_rows,
            "written_bytes": self.written_bytes,
            "total_rows_to_read": self.read_rows,
            "result_rows": self.result_rows,
            "result_bytes": self.result_bytes,
            "elapsed_ns": int((time.monotonic() - self.started) * 1e9),
        }
        return json.dumps({name: str(count) for name, count in counts.items()}, separators=(",", ":"))


class Wire(Protocol):
    """The connection an answer goes to."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Send the status line and *headers*."""

    def send(self, data: bytes | memoryview) -> None:
        """Send a piece of the body."""

    def cut(self) -> None:
        """Close the connection after this answer."""

    def chunks_allowed(self) -> bool:
        """Whether the client understands chunked answers."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the client wants its answer.

    *encoding* is HTTP's, empty for none; *framed* asks for ClickHouse's compressed framing; *held* for nothing to
    leave before the statement has ended well.
    """

    encoding: str = ""
    framed: bool = False
    held: bool = False


class Reply:
    """One answer. Call `result`, then `write` any number of times, then `end`; or `fail` at any point, once."""

    def __init__(self, wire: Wire, shape: Shape, headers: dict[str, str], folder: Path) -> None:
        """*headers* are in every answer; *folder* takes held results that are too large for memory."""
        self._wire = wire
        self._shape = shape
        self._headers = headers
        self._folder = folder
        self._tag = secrets.token_hex(8)
        self._encoder = _encoder(shape.encoding)
        self._fed = False
        self._pending: IO[bytes] | None = None
        self._leaving = False  # the headers have left
        self._chunked = False
        self.summary = Summary()

    def result(self, form: str) -> None:
        """A result in format *form* follows."""
        self._headers["Content-Type"] = formats.content_type(form)
        self._headers["X-ClickHouse-Format"] = form

    def write(self, data: bytes | memoryview) -> None:
        """A piece of the result."""
        if not len(data):
            return
        if self._shape.framed:
            data = blocks.compressed(bytes(data))
        self._fed = True
        self._out(self._encoder.feed(bytes(data)) if self._shape.encoding else data)

    def end(self) -> None:
        """The result is whole."""
        if self._fed:
            self._out(self._encoder.end())
        if self._leaving:
            if self._chunked:
                self._wire.send(b"0\r\n\r\n")
            return
        pending = self._pending
        size = pending.tell() if pending is not None else 0
        headers = {**self._whole_headers(), "Content-Length": str(size)}
        if self._shape.encoding and size:
            headers["Content-Encoding"] = self._shape.encoding
        self._wire.head(HTTPStatus.OK, headers)
        if pending is not None:
            with pending:
                pending.seek(0)
                while piece := pending.read(1 << 20):
                    self._wire.send(piece)

    def fail(self, failure: QueryFailed, version: str) -> None:
        """Tell that the statement failed."""
        text = failure.text if "(version " in failure.text else f"{failure.text} (version {version})"
        if self._leaving:
            message = text.encode("utf-8", "surrogateescape")
            tag = self._tag.encode()
            block = b"\r\n__exception__\r\n%s\r\n%s\n%d %s\r\n__exception__\r\n"
            self.write(block % (tag, message, len(message), tag))
            self._out(self._encoder.end())
            self._wire.cut()
            return
        if self._pending is not None:
            self._pending.close()
        body = (text + "\n").encode("utf-8", "surrogateescape")
        headers = {
            **self._whole_headers(),
            "Content-Type": "text/plain; charset=UTF-8",
            "X-ClickHouse-Exception-Code": str(failure.code),
            "Content-Length": str(len(body)),
        }
        headers.pop("X-ClickHouse-Format", None)
        if failure.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = 'Basic realm="ClickHouse store"'
        if failure.status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "1"
        self._wire.head(failure.status, headers)
        self._wire.send(body)

    def _whole_headers(self) -> dict[str, str]:
        return {
            "Content-Type": "text/plain; charset=UTF-8",
            **self._headers,
            "X-ClickHouse-Summary": self.summary.header(),
            "X-ClickHouse-Exception-Tag": self._tag,
        }

    def _out(self, data: bytes | memoryview) -> None:
        if not len(data):
            return
        if self._leaving:
            self._send(data)
            return
        if self._pending is None:
            self._pending = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by end and fail
                max_size=_MEMORY_BYTES, dir=str(self._folder)
            )
        self._pending.write(data)
        if not self._shape.held and self._pending.tell() >= _BUFFER_BYTES:
            self._leave()

    def _leave(self) -> None:
        """Send the headers and what has gathered; from here on the answer streams."""
        headers = self._whole_headers()
        if self._shape.encoding:
            headers["Content-Encoding"] = self._shape.encoding
        self._chunked = self._wire.chunks_allowed()
        if self._chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            self._wire.cut()
        self._wire.head(HTTPStatus.OK, headers)
        self._leaving = True
        pending, self._pending = self._pending, None
        if pending is not None:
            with pending:
                pending.seek(0)
                self._send(pending.read())

    def _send(self, data: bytes | memoryview) -> None:
        if self._chunked:
            self._wire.send(b"%x\r\n" % len(data))
            self._wire.send(data)
            self._wire.send(b"\r\n")
        else:
            self._wire.send(data)
