"""One OTLP export call, by gRPC or by HTTP, with the collector's whole answer.

The SDK's exporters don't say what the answer was (partial success is ignored, a failed batch dropped), so the
calls are made here with raw bytes. What an answer means follows the OTLP specification's sections "Failures"
and "Partial Success" (https://opentelemetry.io/docs/specs/otlp/), with one difference: what is not known to
depend on the request itself is always worth another try, because the records stay on disk meanwhile.

grpc costs 60 ms and 20 MB to import, so that happens in ``connect``, in the shipper's thread.
"""

from __future__ import annotations

import email.utils
import http.client
import inspect
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from auditspan.settings import Settings

EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TRACES_PATH: Final = "/v1/traces"
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_HINT_S: Final = 300.0
_GRPC_OPTIONS: Final = (
    ("grpc.primary_user_agent", "auditspan"),
    ("grpc.enable_retries", 0),  # ours know that the records are on disk
    # A fresh channel connects at once; in the shared pool it would inherit the old one's back-off.
    ("grpc.use_local_subchannel_pool", 1),
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

    fork_safe: bool  # whether a fork in mid-call harms the child

    def send(self, body: bytes, timeout_s: float, cancelled: Callable[[], bool]) -> Answer | None:
        """Make one call; None when it was cancelled. Raises only what is a bug: a failing network is an answer."""

    def cancel(self) -> None:
        """End a call that is under way, from another thread."""

    def close(self) -> None:
        """Drop the connection."""


def connect(target: Target) -> Sender:
    """A sender for *target*; it connects with the first call. Raises OSError for an unusable certificate file."""
    return _HttpSender(target) if target.protocol == "http/protobuf" else _GrpcSender(target)


class _GrpcSender:
    fork_safe = False

    def __init__(self, target: Target) -> None:
        import grpc  # noqa: PLC0415 - see the module

        self._grpc = grpc
        parts = urlsplit(target.endpoint)
        address = parts.netloc if parts.port is not None else f"{parts.netloc}:4317"
        # The functions beneath whatever instruments them: our own traffic makes no spans.
        if parts.scheme == "https":
            roots = target.certificate_file.read_bytes() if target.certificate_file else None
            credentials = grpc.ssl_channel_credentials(root_certificates=roots)
            self._channel = inspect.unwrap(grpc.secure_channel)(address, credentials, options=_GRPC_OPTIONS)
        else:
            self._channel = inspect.unwrap(grpc.insecure_channel)(address, options=_GRPC_OPTIONS)
        self._export = self._channel.unary_unary(EXPORT_METHOD)
        self._metadata = target.headers
        self._call: Any = None

    def send(self, body: bytes, timeout_s: float, cancelled: Callable[[], bool]) -> Answer | None:
        grpc = self._grpc
        try:
            call = self._call = self._export.future(body, timeout=timeout_s, metadata=self._metadata)
            if cancelled():
                call.cancel()
            # The call has a deadline of its own; this one is for a gRPC library that a fork has broken.
            return _taken(call.result(timeout=timeout_s + 5.0))
        except grpc.RpcError as error:
            return _grpc_refusal(error)
        except grpc.FutureCancelledError:
            return None
        except (grpc.FutureTimeoutError, ValueError) as error:
            return NotTaken("later", f"{type(error).__name__}: {error}")
        finally:
            self._call = None

    def cancel(self) -> None:
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        self._channel.close()


class _HttpSender:
    fork_safe = True

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.endpoint)
        path = parts.path.rstrip("/")
        self._path = path if path.endswith(TRACES_PATH) else path + TRACES_PATH
        self._headers = {**dict(target.headers), "content-type": "application/x-protobuf"}
        host, port = parts.hostname or "localhost", parts.port
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            cafile = str(target.certificate_file) if target.certificate_file else None
            context = ssl.create_default_context(cafile=cafile)
            self._connection = http.client.HTTPSConnection(host, port, context=context)
        else:
            self._connection = http.client.HTTPConnection(host, port)

    def send(self, body: bytes, timeout_s: float, cancelled: Callable[[], bool]) -> Answer:
        del cancelled  # nothing of a plain socket breaks in a fork; the child drops its copy
        try:
            self._connection.timeout = timeout_s
            self._connection.request("POST", self._path, body, self._headers)
            response = self._connection.getresponse()
            content = response.read(_MAX_ANSWER_BYTES)
            if response.read(1):
                self._connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return NotTaken("later", f"{type(error).__name__}: {error}")
        if 200 <= response.status < 300:
            return _taken(content)
        return _http_refusal(response, content)

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        self._connection.close()


def _taken(content: bytes) -> Taken:
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - off the start-up path
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2  # noqa: PLC0415 - off the start-up path

    try:
        partial = trace_service_pb2.ExportTraceServiceResponse.FromString(content).partial_success
    except DecodeError:
        return Taken()  # it said OK; a proxy's own body says nothing more
    return Taken(max(0, partial.rejected_spans), partial.error_message)


def _grpc_refusal(error: Any) -> NotTaken:
    code = error.code().name
    reason = f"{code}: {error.details()}"
    wait = _retry_info(error.trailing_metadata() or ())
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return NotTaken("credentials", reason)
    if code == "INVALID_ARGUMENT":
        return NotTaken("invalid", reason)
    if code == "RESOURCE_EXHAUSTED" and wait is None:
        return NotTaken("too_large", reason)
    return NotTaken("later", reason, wait)


def _retry_info(metadata: Sequence[tuple[str, Any]]) -> float | None:
    """Seconds from google.rpc.RetryInfo, in the status details or in metadata of its own."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - off the start-up path
    from google.rpc import error_details_pb2, status_pb2  # noqa: PLC0415 - off the start-up path

    found = dict(metadata)
    info = error_details_pb2.RetryInfo()
    try:
        if "google.rpc.retryinfo-bin" in found:
            info.ParseFromString(found["google.rpc.retryinfo-bin"])
            return _bounded(info.retry_delay.ToTimedelta().total_seconds())
        for detail in status_pb2.Status.FromString(found.get("grpc-status-details-bin", b"")).details:
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
                return _bounded(info.retry_delay.ToTimedelta().total_seconds())
    except (DecodeError, TypeError, ValueError, OverflowError):
        pass
    return None


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
    """OTLP/HTTP puts a google.rpc.Status into the body of a refusal."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - off the start-up path
    from google.rpc import status_pb2  # noqa: PLC0415 - off the start-up path

    try:
        message = status_pb2.Status.FromString(content).message
    except DecodeError:
        return ""
    return f": {message[:500]}" if message else ""


def _retry_after(value: str) -> float | None:
    """Seconds from a Retry-After header (RFC 9110 section 10.2.3): a number or a date."""
    if value.strip().isdigit():
        return _bounded(float(value))
    try:
        return _bounded(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), _MAX_HINT_S)
