"""One HTTP/2 connection with one gRPC call at a time, in plain sockets (RFC 9113, gRPC's PROTOCOL-HTTP2).

Why not the gRPC library. It would be loaded into every audited service: 60 ms and 21 MB. It keeps threads of its own,
so a process that forks while they run gets a child in which gRPC hangs, or, where its fork handlers restart them, a
``subprocess`` with a ``preexec_fn`` that dies before it starts (measured: 3 to 5 of 100 aborted). One call at a time
over one socket, made by one thread, needs none of that: a forked child closes its copy and opens its own.

The collector can't be trusted with memory: headers and answers are bounded, and a frame that breaks the rules ends
the connection.
"""

from __future__ import annotations

import base64
import binascii
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from auditspan.shipper import hpack

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME: Final = struct.Struct(">HBBBI")  # length (high 16 and low 8 bits), type, flags, stream
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0,
    1,
    3,
    4,
    6,
    7,
    8,
    9,
)
_PUSH_PROMISE: Final = 5
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_ENABLE_PUSH, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x2, 0x4, 0x5
_FRAME_BYTES: Final = 16_384  # both sides' limit unless told otherwise
_WINDOW_BYTES: Final = 65_535
_MAX_WINDOW_BYTES: Final = 2**31 - 1
_MAX_ANSWER_BYTES: Final = 64 * 1024
_IDLE_S: Final = (
    60.0  # then a network on the way may have forgotten the connection; a new one is cheaper than a time-out
)

OK: Final = 0
# What an HTTP status means where a proxy answers instead of gRPC
# (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
_UNKNOWN: Final = 2
_BY_HTTP_STATUS: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


class ConnectionBroken(OSError):  # noqa: N818 - a state
    """No answer came, and none will on this connection; whether the request was processed is unknown."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended: gRPC's *status* code and *message*, the *trailers* (-bin ones decoded) and the *body*."""

    status: int
    message: str
    trailers: dict[str, bytes]
    body: bytes


class Connection:
    """See the module. Not thread-safe; after any exception only ``close`` may be called."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float) -> None:
        """Connect, with *tls* checked for *host*. Raises OSError (TimeoutError, ssl.SSLError among them)."""
        self._socket: socket.socket = socket.create_connection((host, port), timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = _secured(self._socket, tls, host)
            self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _ENABLE_PUSH, 0)))
        except BaseException:
            self._socket.close()
            raise
        self._scheme = b"https" if tls is not None else b"http"
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._decoder = hpack.Decoder()
        self._buffer = b""
        self._next_stream = 1
        self._stream = _Stream(0, 0)  # the latest
        self._window = _WINDOW_BYTES  # what we may still send, on the whole connection
        self._first_window = _WINDOW_BYTES  # what a new stream may send
        self._peer_frame_bytes = _FRAME_BYTES
        self._received = 0  # DATA bytes that the peer has not been given back yet
        self._going_away = False
        self._used_at = time.monotonic()

    def reusable(self) -> bool:
        """Whether another call may be made; reads what came in meanwhile, without waiting."""
        if self._going_away or time.monotonic() - self._used_at > _IDLE_S or self._next_stream > 2**30:
            return False
        try:
            while self._pending():
                self._socket.settimeout(1.0)
                self._on_connection(*self._read_frame())
        except (OSError, ValueError):
            return False
        return not self._going_away

    def call(self, path: str, metadata: tuple[tuple[str, str], ...], body: bytes, timeout_s: float) -> Reply:
        """Make one unary call. Raises OSError when no answer came within *timeout_s* (TimeoutError) or at all."""
        deadline = time.monotonic() + timeout_s
        stream = self._stream = _Stream(self._next_stream, self._first_window)
        self._next_stream += 2
        fields = [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", path.encode()),
            (b":authority", self._authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"auditspan"),
            (b"grpc-timeout", b"%dm" % max(1, int(timeout_s * 1000))),
            *((name.lower().encode(), value.encode()) for name, value in metadata),
        ]
        self._send_headers(stream, hpack.encode(fields), deadline)
        self._send_body(stream, b"\0" + struct.pack(">I", len(body)) + body, deadline)
        while not stream.ended:
            self._read(stream, deadline)
        self._used_at = time.monotonic()
        return stream.reply()

    def close(self) -> None:
        """Drop the connection; in a forked child this does not disturb the parent's."""
        self._socket.close()

    def _send_headers(self, stream: _Stream, block: bytes, deadline: float) -> None:
        kind, first = _HEADERS, True
        while block or first:
            piece, block, first = block[: self._peer_frame_bytes], block[self._peer_frame_bytes :], False
            self._send(_frame(kind, 0 if block else _END_HEADERS, stream.number, piece), deadline)
            kind = _CONTINUATION

    def _send_body(self, stream: _Stream, content: bytes, deadline: float) -> None:
        at = 0
        # A server may answer before it has read everything: a message over its limit.
        while at < len(content) and not stream.ended:
            room = min(self._window, stream.window, self._peer_frame_bytes, len(content) - at)
            if room <= 0:
                self._read(stream, deadline)
                continue
            last = at + room == len(content)
            frame = _frame(_DATA, _END_STREAM if last else 0, stream.number, content[at : at + room])
            self._send(frame, deadline)
            at += room
            self._window -= room
            stream.window -= room
        if at < len(content):
            self._going_away = True  # a stream left half sent; the next call takes a new connection

    def _send(self, data: bytes, deadline: float) -> None:
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(data)

    # --- reading -------------------------------------------------------------------------------------------

    def _read(self, stream: _Stream, deadline: float) -> None:
        """One frame, whatever it is about."""
        self._socket.settimeout(_left(deadline))
        kind, flags, number, content = self._read_frame()
        if number != stream.number:
            self._on_connection(kind, flags, number, content)
        elif kind == _DATA:
            stream.body += _unpadded(flags, content)
            self._give_back(len(content))
            if len(stream.body) > _MAX_ANSWER_BYTES:
                raise ConnectionBroken(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
            stream.ended = bool(flags & _END_STREAM)
        elif kind == _HEADERS:
            fields = self._decoder.decode(self._whole_block(flags, number, content))
            stream.headers(fields, ended=bool(flags & _END_STREAM))
        elif kind == _WINDOW_UPDATE:
            stream.window = _widened(stream.window, content)
        elif kind == _RST_STREAM:
            raise ConnectionBroken(f"the server reset the call (HTTP/2 error {_number(content)})")
        else:
            raise ConnectionBroken(f"an HTTP/2 frame of type {kind} in a call")

    def _on_connection(self, kind: int, flags: int, number: int, content: bytes) -> None:
        """A frame about the whole connection, or about an earlier stream."""
        if kind == _SETTINGS and not flags & _ACK:
            self._on_settings(content)
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, content))
        elif kind == _WINDOW_UPDATE and number == 0:
            self._window = _widened(self._window, content)
        elif kind == _GOAWAY:
            self._going_away = True
            if _number(content) < self._stream.number and not self._stream.ended:
                raise ConnectionBroken("the server is going away and has not seen the call")
        elif kind == _HEADERS:
            self._decoder.decode(self._whole_block(flags, number, content))  # keeps the table in step
        elif kind == _DATA:
            self._give_back(len(content))
        elif kind in (_PUSH_PROMISE, _CONTINUATION):
            raise ConnectionBroken(f"an HTTP/2 frame of type {kind} that nobody asked for")

    def _on_settings(self, content: bytes) -> None:
        for key, value in struct.iter_unpack(">HI", content[: len(content) // 6 * 6]):
            if key == _INITIAL_WINDOW_SIZE:
                if value > _MAX_WINDOW_BYTES:
                    raise ConnectionBroken("a window larger than HTTP/2 allows")
                self._stream.window += value - self._first_window  # section 6.9.2; may go below zero
                self._first_window = value
            elif key == _MAX_FRAME_SIZE and _FRAME_BYTES <= value < 2**24:
                self._peer_frame_bytes = value

    def _read_frame(self) -> tuple[int, int, int, bytes]:
        """Type, flags, stream and content of the next frame."""
        high, low, kind, flags, number = _FRAME.unpack(self._take(_FRAME.size))
        length = high << 8 | low
        if length > _FRAME_BYTES:
            raise ConnectionBroken("a frame larger than HTTP/2 allows; does the server speak it?")
        return kind, flags, number & 0x7FFFFFFF, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            piece = self._socket.recv(65_536)
            if not piece:
                raise ConnectionBroken("the server closed the connection")
            self._buffer += piece
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _pending(self) -> bool:
        """Whether something can be read without waiting."""
        if self._buffer or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))

    def _whole_block(self, flags: int, number: int, content: bytes) -> bytes:
        """A header block, with the CONTINUATION frames that must follow at once."""
        block = _unpadded(flags, content, priority=bool(flags & _PRIORITY))
        while not flags & _END_HEADERS:
            kind, flags, follower, content = self._read_frame()
            if kind != _CONTINUATION or follower != number or not content:
                raise ConnectionBroken("a header block that is not continued")
            block += content
            if len(block) > hpack.MAX_FIELDS_BYTES:
                raise ConnectionBroken(f"more than {hpack.MAX_FIELDS_BYTES} bytes of header fields")
        return block

    def _give_back(self, count: int) -> None:
        """Let the peer send as much again on this connection; streams are too short to need it."""
        self._received += count
        if self._received >= _WINDOW_BYTES // 2:
            self._socket.sendall(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0


class _Stream:
    """One call's side of the connection."""

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.window = window
        self.ended = False
        self.body = b""
        self._http_status = 0
        self._fields: dict[str, bytes] = {}

    def headers(self, fields: list[hpack.Field], *, ended: bool) -> None:
        """The answer's headers, its trailers, or both in one."""
        found = {name.decode("latin-1"): value for name, value in fields}
        status = found.pop(":status", b"")
        if status:
            if not status.isdigit():
                raise ConnectionBroken("an answer without a status")
            if status.startswith(b"1") and not ended:
                return  # informational; the answer follows
            self._http_status = int(status)
        self._fields.update(found)
        self.ended = ended

    def reply(self) -> Reply:
        trailers = {
            name: _base64(value) if name.endswith("-bin") else value for name, value in self._fields.items()
        }
        code = self._fields.get("grpc-status", b"")
        message = unquote(self._fields.get("grpc-message", b"").decode("latin-1"))
        if code.isdigit():
            return Reply(int(code), message, trailers, self._message() if int(code) == OK else b"")
        kind = self._fields.get("content-type", b"").decode("latin-1")
        said = f"HTTP {self._http_status} with {kind or 'no content type'}: not an answer of gRPC"
        return Reply(_BY_HTTP_STATUS.get(self._http_status, _UNKNOWN), said, trailers, b"")

    def _message(self) -> bytes:
        """The one message of an answer: a flag, a length and the content (PROTOCOL-HTTP2, Length-Prefixed-Message)."""
        if len(self.body) < 5 or self.body[0] != 0 or int.from_bytes(self.body[1:5]) != len(self.body) - 5:
            raise ConnectionBroken("an OK without a whole message")
        return self.body[5:]


def _secured(plain: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    secured = tls.wrap_socket(plain, server_hostname=host)
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        raise ConnectionBroken("the server does not speak HTTP/2 over TLS")
    return secured


def _frame(kind: int, flags: int, number: int, content: bytes) -> bytes:
    return _FRAME.pack(len(content) >> 8, len(content) & 0xFF, kind, flags, number) + content


def _unpadded(flags: int, content: bytes, *, priority: bool = False) -> bytes:
    padding, start = 0, 0
    if flags & _PADDED:
        padding, start = (content[0] if content else 0), 1
    start += 5 if priority else 0
    if start + padding > len(content):
        raise ConnectionBroken("padding longer than its frame")
    return content[start : len(content) - padding]


def _widened(window: int, content: bytes) -> int:
    window += _number(content)
    if window > _MAX_WINDOW_BYTES:
        raise ConnectionBroken("a window larger than HTTP/2 allows")
    return window


def _number(content: bytes) -> int:
    if len(content) < 4:
        raise ConnectionBroken("a frame that is too short")
    return int.from_bytes(content[:4]) & 0x7FFFFFFF


def _base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return b""


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left
