"""One HTTP/2 connection with one gRPC call at a time, in a plain socket (gRPC's PROTOCOL-HTTP2); h2 has the protocol.

Why not the gRPC library: docs/decisions/0003-delivery-without-grpcio.md. One call at a time over one socket, made by
one thread, needs no threads beside it and survives a fork: a child closes its copy and opens its own.

The collector can't be trusted with memory: headers, answers, frames and settings are bounded, and whatever h2 refuses
ends the connection. Frames are handed to h2 one by one, for three reasons. It waits for the whole of a frame of
up to 16 MiB before it finds it too large. It forgets what was right in the same bytes as a mistake. And it takes
GOAWAY for the end of everything, whereas a server that goes away still answers the calls it has (RFC 9113 section
6.8), so that frame is read here.

Importing this module loads h2 (10 ms, 0.6 MB), so it is imported with the first gRPC connection.
"""

from __future__ import annotations

import base64
import binascii
import encodings.idna  # noqa: F401 - else the first connection imports it, perhaps in the middle of a fork
import logging
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple, NeverIndexedHeaderTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from h2.events import Event
    from hpack.struct import Header

_FRAME_HEAD_BYTES: Final = 9  # RFC 9113 section 4.1: a length of 3 bytes, a type, flags, a stream of 4
_GOAWAY: Final = 7
_FRAME_BYTES: Final = 16_384  # the most that a server may send, because we don't allow more
_MAX_FIELDS_BYTES: Final = 64 * 1024  # of one header block, decoded; h2 holds 1 MiB of it encoded at most
_MAX_ANSWER_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 64 * 1024  # h2 copies a frame five times; 3 MB in one take four times the CPU
_MAX_SETTINGS: Final = 64  # HTTP/2 and its extensions know about ten; h2 keeps each that a server makes up
_IDLE_S: Final = (
    60.0  # then a network on the way may have forgotten the connection; a new one is cheaper than a time-out
)
_CATCH_UP_S: Final = 1.0

OK: Final = 0
# What an HTTP status means where a proxy answers instead of gRPC
# (https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md).
_UNKNOWN: Final = 2
_BY_HTTP_STATUS: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}

# At DEBUG hpack logs each block it encodes, credentials and all. A service whose root logger is at DEBUG has not
# asked for that; who names "hpack" has.
_hpack_log = logging.getLogger("hpack")
if _hpack_log.level == logging.NOTSET:
    _hpack_log.setLevel(logging.INFO)


class ConnectionBroken(ConnectionError):  # noqa: N818 - a state
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
        self._protocol = _Protocol()
        self._protocol.initiate_connection()
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = _secured(self._socket, tls, host)
            self._socket.sendall(self._protocol.data_to_send())
        except BaseException:
            self._socket.close()
            raise
        self._scheme = b"https" if tls is not None else b"http"
        self._authority = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self._received = bytearray()  # not yet a whole frame
        self._answer = _Answer(0, ended=True)  # the latest
        self._going_away = False
        self._used_at = time.monotonic()

    def reusable(self) -> bool:
        """Whether another call may be made; reads what came in meanwhile, without waiting for more."""
        if self._going_away or time.monotonic() - self._used_at > _IDLE_S:
            return False
        deadline = time.monotonic() + _CATCH_UP_S
        try:
            while self._pending():
                self._read(deadline)
        except OSError:
            return False
        return not self._going_away

    def call(self, path: str, metadata: tuple[tuple[str, str], ...], body: bytes, timeout_s: float) -> Reply:
        """Make one unary call. Raises OSError when no answer came within *timeout_s* (TimeoutError) or at all."""
        deadline = time.monotonic() + timeout_s
        try:
            number = self._protocol.get_next_available_stream_id()
            answer = self._answer = _Answer(number)
            self._protocol.send_headers(number, self._fields(path, metadata, timeout_s))
            self._send_body(answer, b"\0" + len(body).to_bytes(4) + body, deadline)
        except H2Error as problem:
            raise ConnectionBroken(f"no call can be made: {problem}") from problem
        while not answer.ended:
            self._read(deadline)
        self._used_at = time.monotonic()
        return answer.reply()

    def close(self) -> None:
        """Drop the connection; in a forked child this does not disturb the parent's."""
        self._socket.close()

    def _fields(
        self, path: str, metadata: tuple[tuple[str, str], ...], timeout_s: float
    ) -> list[HeaderTuple]:
        """The request's header fields. What may be a credential, or differs from call to call, is never indexed."""
        return [
            HeaderTuple(b":method", b"POST"),
            HeaderTuple(b":scheme", self._scheme),
            HeaderTuple(b":path", path.encode()),
            HeaderTuple(b":authority", self._authority),
            HeaderTuple(b"te", b"trailers"),
            HeaderTuple(b"content-type", b"application/grpc"),
            HeaderTuple(b"user-agent", b"auditspan"),
            NeverIndexedHeaderTuple(b"grpc-timeout", b"%dm" % max(1, int(timeout_s * 1000))),
            *(NeverIndexedHeaderTuple(name.lower().encode(), value.encode()) for name, value in metadata),
        ]

    def _send_body(self, answer: _Answer, content: bytes, deadline: float) -> None:
        protocol, rest = self._protocol, memoryview(content)
        # A server may answer before it has read everything: a message over its limit.
        while rest and not answer.ended:
            window = protocol.local_flow_control_window(answer.number)
            room = min(window, protocol.max_outbound_frame_size, _PIECE_BYTES, len(rest))
            if room > 0:
                protocol.send_data(answer.number, rest[:room], end_stream=room == len(rest))
                rest = rest[room:]
            self._flush(deadline)
            if room <= 0:
                self._read(deadline)
        if rest:
            self._going_away = True  # a stream left half sent; the next call takes a new connection

    def _flush(self, deadline: float) -> None:
        data = self._protocol.data_to_send()
        if data:
            self._socket.settimeout(_left(deadline))
            self._socket.sendall(data)

    # --- reading -------------------------------------------------------------------------------------------

    def _read(self, deadline: float) -> None:
        """One frame, whatever it is about, and what h2 has to say to it."""
        frame = self._frame(deadline)
        if frame[3] == _GOAWAY:
            self._on_goaway(int.from_bytes(frame[9:13]) & 0x7FFFFFFF)
            return
        try:
            for event in self._protocol.receive_data(frame):
                self._on_event(event)
        except OSError:
            raise
        except (
            Exception
        ) as problem:  # whatever a peer's bytes do to the library ends this connection, no more
            raise ConnectionBroken(f"not HTTP/2 as it should be: {problem}") from problem
        if len(self._protocol.remote_settings) > _MAX_SETTINGS:
            raise ConnectionBroken(f"more than {_MAX_SETTINGS} HTTP/2 settings")
        self._flush(deadline)

    def _on_event(self, event: Event) -> None:
        answer = self._answer
        if isinstance(event, DataReceived):
            answer.body += event.data
            if len(answer.body) > _MAX_ANSWER_BYTES:
                raise ConnectionBroken(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
            self._protocol.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, ResponseReceived | TrailersReceived):
            answer.headers(event.headers)
        elif isinstance(event, StreamEnded):
            answer.ended = True
        elif isinstance(event, StreamReset):
            raise ConnectionBroken(f"the call was reset (HTTP/2 error {int(event.error_code)})")

    def _on_goaway(self, last_stream: int) -> None:
        self._going_away = True
        if last_stream < self._answer.number and not self._answer.ended:
            raise ConnectionBroken("the server is going away and has not seen the call")

    def _frame(self, deadline: float) -> bytes:
        """The next frame, whole."""
        received = self._received
        while len(received) < (size := self._frame_size()):
            self._socket.settimeout(_left(deadline))
            piece = self._socket.recv(65_536)
            if not piece:
                raise ConnectionBroken("the server closed the connection")
            received += piece
        _left(deadline)  # a server that never pauses does not stretch it either
        frame = bytes(received[:size])
        del received[:size]
        return frame

    def _frame_size(self) -> int:
        """How many bytes the next frame has, or its head while that is not there."""
        if len(self._received) < _FRAME_HEAD_BYTES:
            return _FRAME_HEAD_BYTES
        length = int.from_bytes(self._received[:3])
        if length > _FRAME_BYTES:
            raise ConnectionBroken("a frame larger than HTTP/2 allows; does the server speak it?")
        return _FRAME_HEAD_BYTES + length

    def _pending(self) -> bool:
        """Whether something can be read without waiting."""
        if self._received or (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            return True
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(0))


class _Protocol(H2Connection):
    """h2 for a client that takes no streams from the server."""

    MAX_CLOSED_STREAMS = (
        16  # h2 remembers 65536, about 10 MB, though nothing comes on a stream that has ended
    )

    def __init__(self) -> None:
        # Inbound validation refuses a value that ends in a space. A grpc-message may, and its status must be heard.
        super().__init__(
            H2Configuration(client_side=True, validate_inbound_headers=False, normalize_inbound_headers=False)
        )
        # As initial values they bind from the start, not from the server's acknowledgement.
        self.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_CONCURRENT_STREAMS: 0,  # of the server's own
                SettingCodes.MAX_FRAME_SIZE: _FRAME_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_FIELDS_BYTES,
            },
        )
        self.decoder.max_header_list_size = _MAX_FIELDS_BYTES


@dataclass(slots=True)
class _Answer:
    """What has come of the answer to the call on stream *number*."""

    number: int
    ended: bool = False
    body: bytes = b""
    http_status: int = 0
    fields: dict[str, bytes] = field(default_factory=dict)

    def headers(self, block: Iterable[Header]) -> None:
        """The answer's headers, its trailers, or both in one."""
        found = {bytes(name).decode("latin-1"): bytes(value) for name, value in block}
        status = found.pop(":status", b"")
        if status:
            self.http_status = _number(status)
            if self.http_status < 0:
                raise ConnectionBroken("an answer without a status")
        self.fields.update(found)

    def reply(self) -> Reply:
        trailers = {
            name: _base64(value) if name.endswith("-bin") else value for name, value in self.fields.items()
        }
        code = _number(self.fields.get("grpc-status", b""))
        message = unquote(self.fields.get("grpc-message", b"").decode("latin-1"))
        if code >= 0:
            return Reply(code, message, trailers, self._message() if code == OK else b"")
        kind = self.fields.get("content-type", b"").decode("latin-1")
        said = f"HTTP {self.http_status} with {kind or 'no content type'}: not an answer of gRPC"
        return Reply(_BY_HTTP_STATUS.get(self.http_status, _UNKNOWN), said, trailers, b"")

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


def _number(digits: bytes) -> int:
    return int(digits) if digits.isdigit() and len(digits) < 10 else -1


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
