"""One OTLP export call, by gRPC or by HTTP, with the collector's whole answer.

The SDK's exporters don't say what the answer was (partial success is ignored, a failed batch dropped), so the
calls are made here with raw bytes. What an answer means follows the OTLP specification's sections "Failures"
and "Partial Success" (https://opentelemetry.io/docs/specs/otlp/), with one difference: what is not known to
depend on the request itself is always worth another try, because the records stay on disk meanwhile.

An audited service loads neither gRPC nor protobuf for delivery, and h2 or http.client only with the first connection,
in the thread that delivers.
"""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol
from urllib.parse import urlsplit

from auditspan.shipper import protobuf

if TYPE_CHECKING:
    import http.client
    from pathlib import Path

    from auditspan.settings import Settings
    from auditspan.shipper.http2 import Connection, Reply

EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TRACES_PATH: Final = "/v1/traces"
GRPC_PORT: Final = 4317
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_HINT_S: Final = 300.0

# How a connection that the other side closed shows when it is used again.
_GONE: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)

# https://grpc.io/docs/guides/status-codes/
_CODES: Final = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"),
    *("UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where records go. *endpoint* is a URL (https means TLS); *timeout_s* is for one call."""

    endpoint: str
    protocol: str = "grpc"  # or http/protobuf
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    certificate_file: Path | None = None  # PEM, of who signed the collector's; None means the system's
    timeout_s: float = 10.0

    @classmethod
    def of(cls, settings: Settings) -> Target:
        """The operator's choice."""
        return cls(
            endpoint=settings.endpoint,
            protocol=settings.protocol,
            headers=settings.headers,
            certificate_file=settings.certificate_file,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """The collector has the request, except *rejected* spans of it, for the reason in *message*."""

    rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class NotTaken:
    """The collector does not have the request.

    later: try again, not before *retry_after_s* if that is given; credentials: try again, but somebody must act;
    invalid: this content will never be taken; too_large: a smaller request may be.
    """

    kind: Literal["later", "credentials", "invalid", "too_large"]
    reason: str
    retry_after_s: float | None = None


Answer = Taken | NotTaken


class Sender(Protocol):
    """One connection to the collector; made, used and closed by one thread."""

    def send(self, body: bytes, timeout_s: float) -> Answer:
        """Make one call. Raises only what is a bug: a failing network is an answer."""

    def close(self) -> None:
        """Drop the connection. In a forked child this does not disturb the parent's."""


def connect(target: Target) -> Sender:
    """A sender for *target*; it connects with the first call. Raises OSError for an unusable certificate file."""
    return _HttpSender(target) if target.protocol == "http/protobuf" else _GrpcSender(target)


def _tls(target: Target) -> ssl.SSLContext | None:
    if urlsplit(target.endpoint).scheme != "https":
        return None
    # Read here, because ssl's own error does not say which file is missing.
    roots = target.certificate_file.read_text("ascii") if target.certificate_file else None
    return ssl.create_default_context(cadata=roots)


# Held while h2 or http.client is imported, and waited for before a fork: a child that is born in the middle of an
# import waits for ever when it imports the same. The import takes some 10 ms; a disk that hangs must not hold the
# application up.
_importing = threading.RLock()
_FORK_WAIT_S: Final = 1.0


def _http2_connection() -> type[Connection]:
    """The class, imported the first time; OTLP/HTTP does without it and without h2."""
    with _importing:
        from auditspan.shipper.http2 import Connection  # noqa: PLC0415 - see above
    return Connection


def _after_fork_in_parent() -> None:
    with contextlib.suppress(
        RuntimeError
    ):  # when the wait was not long enough, there is nothing to give back
        _importing.release()


def _after_fork_in_child() -> None:
    global _importing  # noqa: PLW0603 - the copy may belong to a thread that the child does not have
    _importing = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _importing.acquire(timeout=_FORK_WAIT_S),
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class _GrpcSender:
    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.endpoint)
        self._place = (parts.hostname or "localhost", parts.port or GRPC_PORT)
        self._metadata = target.headers
        self._tls = _tls(target)
        if self._tls is not None:
            self._tls.set_alpn_protocols(["h2"])
        self._connection: Connection | None = None
        self._reused = False

    def send(self, body: bytes, timeout_s: float) -> Answer:
        try:
            try:
                return _grpc_answer(self._call(body, timeout_s, self._standing()))
            except _GONE:
                if not self._reused:
                    raise
                self.close()  # left since the last call, which is no news
                return _grpc_answer(self._call(body, timeout_s, None))
        except OSError as problem:
            self.close()
            return NotTaken("later", f"{type(problem).__name__}: {problem}")

    def _standing(self) -> Connection | None:
        """The connection of the last call, if another can be made on it."""
        if self._connection is not None and not self._connection.reusable():
            self.close()
        return self._connection

    def _call(self, body: bytes, timeout_s: float, standing: Connection | None) -> Reply:
        self._reused = standing is not None
        if standing is None:
            standing = self._connection = _http2_connection()(*self._place, self._tls, timeout_s)
        return standing.call(EXPORT_METHOD, self._metadata, body, timeout_s)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _HttpSender:
    def __init__(self, target: Target) -> None:
        with _importing:
            import http.client  # noqa: PLC0415 - see the module

        parts = urlsplit(target.endpoint)
        self._failures = (OSError, http.client.HTTPException)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(TRACES_PATH) else path + TRACES_PATH
        self._headers = {**dict(target.headers), "content-type": "application/x-protobuf"}
        host, port = parts.hostname or "localhost", parts.port
        tls = _tls(target)
        self._connection: http.client.HTTPConnection = (
            http.client.HTTPConnection(host, port)
            if tls is None
            else http.client.HTTPSConnection(host, port, context=tls)
        )

    def send(self, body: bytes, timeout_s: float) -> Answer:
        try:
            reused = self._connection.sock is not None
            try:
                response, content = self._post(body, timeout_s)
            except _GONE:
                if not reused:
                    raise
                self.close()  # servers close what has been idle for some seconds, which is no news
                response, content = self._post(body, timeout_s)
        except self._failures as problem:
            self.close()
            return NotTaken("later", f"{type(problem).__name__}: {problem}")
        if 200 <= response.status < 300:
            return _taken(content)
        return _http_refusal(response, content)

    def _post(self, body: bytes, timeout_s: float) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        connection.request("POST", self._path, body, self._headers)
        response = connection.getresponse()
        content = response.read(_MAX_ANSWER_BYTES)
        if response.read(1):
            self.close()
        return response, content

    def close(self) -> None:
        self._connection.close()


def _taken(content: bytes) -> Taken:
    """What an ExportTraceServiceResponse says (opentelemetry/proto/collector/trace/v1/trace_service.proto)."""
    try:
        partial = protobuf.read(protobuf.read(content).message(1))
        return Taken(max(0, partial.number(1)), partial.text(2))
    except protobuf.Malformed:
        return Taken()  # it said OK; a proxy's own body says nothing more


def _grpc_answer(reply: Reply) -> Answer:
    code = _CODES[reply.status] if reply.status < len(_CODES) else str(reply.status)
    if code == "OK":
        return _taken(reply.body)
    reason = f"{code}: {reply.message}"
    wait = _retry_info(reply.trailers)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return NotTaken("credentials", reason)
    if code == "INVALID_ARGUMENT":
        return NotTaken("invalid", reason)
    if code == "RESOURCE_EXHAUSTED" and wait is None:
        return NotTaken("too_large", reason)
    return NotTaken("later", reason, wait)


def _retry_info(trailers: dict[str, bytes]) -> float | None:
    """Seconds from google.rpc.RetryInfo, in the status details or in metadata of its own.

    google/rpc/status.proto: Status.details (3) holds google.protobuf.Any: type_url (1), value (2).
    """
    try:
        alone = trailers.get("google.rpc.retryinfo-bin")
        if alone is not None:
            return _delay(alone)
        for detail in protobuf.read(trailers.get("grpc-status-details-bin", b"")).messages(3):
            any_message = protobuf.read(detail)
            if any_message.text(1).endswith("/google.rpc.RetryInfo"):
                return _delay(any_message.message(2))
    except protobuf.Malformed:
        pass
    return None


def _delay(retry_info: bytes) -> float:
    """google/rpc/error_details.proto: RetryInfo.retry_delay (1) is a Duration of seconds (1) and nanos (2)."""
    delay = protobuf.read(protobuf.read(retry_info).message(1))
    return _bounded(delay.number(1) + delay.number(2) / 1e9)


def _http_refusal(response: http.client.HTTPResponse, content: bytes) -> NotTaken:
    reason = f"HTTP {response.status} {response.reason}{_status_message(content)}"
    if response.status in (401, 403):
        return NotTaken("credentials", reason)
    if response.status == 400:
        return NotTaken("invalid", reason)
    if response.status == 413:
        return NotTaken("too_large", reason)
    return NotTaken("later", reason, _retry_after(response.headers.get("retry-after", "")))


def _status_message(content: bytes) -> str:
    """OTLP/HTTP puts a google.rpc.Status into the body of a refusal: its message is field 2."""
    try:
        message = protobuf.read(content).text(2)
    except protobuf.Malformed:
        return ""
    return f": {message[:500]}" if message else ""


def _retry_after(value: str) -> float | None:
    """Seconds from a Retry-After header (RFC 9110 section 10.2.3): a number or a date."""
    import email.utils  # noqa: PLC0415 - there since http.client is

    if value.strip().isdigit():
        return _bounded(float(value))
    try:
        return _bounded(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), _MAX_HINT_S)
