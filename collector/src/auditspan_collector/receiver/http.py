"""OTLP/HTTP: ``POST /v1/traces`` with protobuf or JSON, plain or gzip.

Memory is bounded three times: a body while it is read, what it inflates to, and all bodies together. Time is
bounded for a request's head and for its body, so that slow clients can't hold the connections for ever. What is
refused for one of these reasons but could succeed later gets 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Final, cast

import anyio
import h11
import uvicorn
from anyio import to_thread
from google.protobuf import json_format
from google.rpc import code_pb2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from auditspan_collector.errors import AuditspanError, InvalidRequest, ShuttingDown, TooLarge
from auditspan_collector.hosts import Hosts
from auditspan_collector.receiver import answers
from auditspan_collector.receiver.answers import Refusal
from auditspan_collector.receiver.listening import claim, tls_context
from auditspan_collector.record import OtlpRequest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from google.protobuf.message import Message
    from starlette.requests import Request

    from auditspan_collector.receiver import ReceiverMetrics, Submit
    from auditspan_collector.receiver.config import Config
    from auditspan_collector.receiver.senders import Senders
    from auditspan_collector.record import Accepted, Encoding, Sender

PATH: Final = "/v1/traces"
MEDIA_TYPES: Final[dict[str, Encoding]] = {"application/x-protobuf": "protobuf", "application/json": "json"}
MAX_BODIES_HELD: Final = 16  # bodies in memory at a time, in units of the largest one
START_LIMIT_S: Final = 10.0
GZIP_MEMBERS: Final = 256  # what compresses in parallel makes a few; an empty one costs 20 bytes to send
GZIP_PIECE_BYTES: Final = 64 << 10
GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS  # zlib's way to say: a gzip header, not zlib's own

_log = logging.getLogger(__name__)


class HttpReceiver:
    """The listener on ``receiver.http.listen``, in a thread of its own. Start once, stop once."""

    def __init__(
        self,
        config: Config,
        senders: Senders,
        submit: Submit,
        metrics: ReceiverMetrics,
        *,
        shared: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """*shared* says that other workers of this collector listen on the same port, which somebody holds for them."""
        self._config = config
        self._shared = shared
        self._endpoint = _Endpoint(config, senders, submit, metrics, clock_ns)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self.port = 0

    def start(self) -> None:
        """Listen; ``port`` is then the one in use. Raises ConfigError when address or certificate can't be had."""
        listener = claim("receiver.http.listen", self._config.address("http"), shared=self._shared)
        try:
            server = _Server(self._uvicorn_config())
            server.config.load()  # reads the certificate: here, so that its error reaches the caller
        except BaseException:
            listener.close()
            raise
        self.port = listener.getsockname()[1]
        self._server = server
        self._thread = threading.Thread(
            target=server.run_until_told, args=(listener,), name="otlp-http", daemon=True
        )
        self._thread.start()
        if not server.settled.wait(START_LIMIT_S) or not server.started:
            raise AuditspanError("receiver.http: the server did not start; the log above says why")

    def stop(self, grace_s: float) -> None:
        """Take no new requests, give the running ones *grace_s* seconds, and return when the port is free."""
        if self._server is None or self._thread is None:
            return
        self._endpoint.stopping = True
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        self._thread.join(grace_s + START_LIMIT_S)

    def _uvicorn_config(self) -> uvicorn.Config:
        http, tls = self._config.http, self._config.tls
        return uvicorn.Config(
            self._endpoint.app(),
            http=_protocol(http.read_timeout_s),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the peer is the connection's address, whatever a header says
            limit_concurrency=http.max_connections,
            ssl_context_factory=(lambda *_: tls_context(tls)) if tls.cert_file else None,
        )


class _Server(uvicorn.Server):
    """Uvicorn's server, and a way to wait until it is up or has failed."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    def run_until_told(self, listener: socket.socket) -> None:
        try:
            self.run(sockets=[listener])
        except Exception:  # noqa: BLE001 - a thread's end; what happened must not vanish with it
            _log.exception("the HTTP server ended")
        finally:
            listener.close()
            self.settled.set()


class _Refused(Exception):  # noqa: N818 - carries an answer
    """A refusal that only HTTP knows."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class _Endpoint:
    """Answers requests on the event loop; inflating, decoding and committing happen in worker threads."""

    def __init__(
        self,
        config: Config,
        senders: Senders,
        submit: Submit,
        metrics: ReceiverMetrics,
        clock_ns: Callable[[], int],
    ) -> None:
        self._limit_bytes = config.max_message_bytes
        self._read_timeout_s = config.http.read_timeout_s
        self._workers = anyio.CapacityLimiter(config.http.threads)
        self._hosts = Hosts(
            config.address("http").host,
            config.http.hosts,
            hint="receiver.http.hosts names further ones",
            programs_by_any_name=True,
        )
        self._senders = senders
        self._submit = submit
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._held_bytes = 0  # touched on the event loop only
        self.stopping = False

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[Route(PATH, self._export, methods=["POST"])],
            exception_handlers={HTTPException: _no_such_route},
        )

    async def _export(self, request: Request) -> Response:
        started = time.perf_counter()
        body = bytearray()
        outcome = answers.OK
        try:
            answer = await self._answer(request, body)
        except Exception as error:  # noqa: BLE001 - the process must survive any request
            refused = error.refusal if isinstance(error, _Refused) else answers.refusal(error)
            if refused.reason == answers.INTERNAL:
                _log.exception("a request over HTTP failed")
            outcome = refused.reason
            answer = _refuse(refused, request)
        finally:
            self._held_bytes -= len(body)
        self._metrics.answered(
            "http", outcome, body_bytes=len(body), duration_s=time.perf_counter() - started
        )
        return answer

    async def _answer(self, request: Request, body: bytearray) -> Response:
        received_unix_ns = self._clock_ns()
        if self.stopping:
            raise ShuttingDown("the collector is stopping")
        self._refuse_pages(request)
        sender = self._senders.authenticate(request.headers.getlist("authorization"))
        encoding = _encoding(request)
        if encoding is None:
            raise _unsupported(f"content-type: allowed: {' and '.join(MEDIA_TYPES)}")
        gzipped = _gzipped(request)
        await self._read(request, body)
        peer = request.client.host if request.client else ""

        def work() -> Accepted:
            return self._keep(bytes(body), encoding, sender, peer, received_unix_ns, gzipped=gzipped)

        accepted = await to_thread.run_sync(work, limiter=self._workers)
        answer = _message(answers.response(accepted), encoding, 200)
        if accepted.receipt is not None:
            answer.headers[answers.RECEIPT_NAME] = answers.receipt_text(accepted.receipt)
        return answer

    def _refuse_pages(self, request: Request) -> None:
        refused = self._hosts.refusal(
            *(request.headers.get(name) for name in ("host", "origin", "sec-fetch-site"))
        )
        if refused is not None:
            raise _Refused(
                Refusal("foreign_page", code_pb2.PERMISSION_DENIED, refused.status, refused.message)
            )

    async def _read(self, request: Request, body: bytearray) -> None:
        """Fill *body*, and stop at the first byte too many."""
        declared = request.headers.get("content-length", "0")
        if int(declared) > self._limit_bytes:  # h11 lets only digits through
            raise self._too_large()
        try:
            async with asyncio.timeout(self._read_timeout_s):
                async for chunk in request.stream():
                    if len(body) + len(chunk) > self._limit_bytes:
                        raise self._too_large()
                    if self._held_bytes + len(chunk) > MAX_BODIES_HELD * self._limit_bytes:
                        raise _later("busy", "too many requests at a time", 1.0)
                    body += chunk
                    self._held_bytes += len(chunk)
        except TimeoutError:
            raise _later("slow", f"the body took longer than {self._read_timeout_s:g} s", 1.0) from None
        except ClientDisconnect:
            raise _later("disconnected", "the client went away", 1.0) from None

    def _keep(
        self,
        body: bytes,
        encoding: Encoding,
        sender: Sender,
        peer: str,
        received_unix_ns: int,
        *,
        gzipped: bool,
    ) -> Accepted:
        """Inflate and submit; runs in a worker thread."""
        return self._submit(
            OtlpRequest(
                body=inflate(body, self._limit_bytes) if gzipped else body,
                encoding=encoding,
                sender=sender,
                peer=peer,
                received_unix_ns=received_unix_ns,
            )
        )

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._limit_bytes} bytes (receiver.max_message_bytes); send smaller batches"
        )


def inflate(body: bytes, limit_bytes: int) -> bytes:
    """*body* as gzip (RFC 1952, up to GZIP_MEMBERS members), never holding more than *limit_bytes* of the result.

    Raises TooLarge at the first byte over it, and InvalidRequest when it is not gzip, or cut short.
    """
    out = bytearray()
    member, members = zlib.decompressobj(GZIP_WINDOW), 1
    # In pieces: zlib copies what follows a member, so that many in one long body would take for ever.
    for start in range(0, len(body), GZIP_PIECE_BYTES):
        rest = body[start : start + GZIP_PIECE_BYTES]
        while rest:
            if member.eof:
                member, members = zlib.decompressobj(GZIP_WINDOW), members + 1
            try:
                out += member.decompress(rest, limit_bytes - len(out) + 1)
            except zlib.error as error:
                raise InvalidRequest(
                    f"not gzip, though content-encoding says so ({error})", offset=len(out), field=""
                ) from None
            if len(out) > limit_bytes:
                raise TooLarge(
                    f"the body inflates to more than {limit_bytes} bytes (receiver.max_message_bytes); "
                    "send smaller batches"
                )
            if members > GZIP_MEMBERS:
                raise TooLarge(f"the body has more than {GZIP_MEMBERS} gzip members; send it as one")
            rest = member.unused_data
    if not member.eof:
        raise InvalidRequest("the gzip stream is cut short", offset=len(out), field="")
    return bytes(out)


def _encoding(request: Request) -> Encoding | None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return MEDIA_TYPES.get(media_type)


def _gzipped(request: Request) -> bool:
    coding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding not in ("", "identity", "gzip"):
        raise _unsupported("content-encoding: allowed: gzip, or none")
    return coding == "gzip"


def _unsupported(message: str) -> _Refused:
    return _Refused(Refusal("unsupported_media_type", code_pb2.INVALID_ARGUMENT, 415, message))


def _later(reason: str, message: str, retry_after_s: float) -> _Refused:
    return _Refused(Refusal(reason, code_pb2.UNAVAILABLE, 503, message, retry_after_s))


def _message(message: Message, encoding: Encoding, http_status: int) -> Response:
    """*message* in the encoding of the request, as OTLP/HTTP asks."""
    if encoding == "json":
        return Response(
            json_format.MessageToJson(message, indent=None), http_status, media_type="application/json"
        )
    return Response(message.SerializeToString(), http_status, media_type="application/x-protobuf")


def _refuse(refused: Refusal, request: Request) -> Response:
    """*refused* as google.rpc.Status; as JSON where the request's own encoding is none of ours."""
    answer = _message(refused.status(), _encoding(request) or "json", refused.http_status)
    if refused.retry_after_s is not None:
        answer.headers["retry-after"] = str(math.ceil(refused.retry_after_s))  # RFC 9110: whole seconds
    if refused.http_status == 401:
        answer.headers["www-authenticate"] = "Bearer"
    if refused.http_status == 415:
        answer.headers["accept-encoding"] = "gzip"  # RFC 9110, section 12.5.3
    return answer


async def _no_such_route(request: Request, error: Exception) -> Response:
    """404 and 405, in the same form as every other error."""
    known = cast("HTTPException", error)
    reason = "method_not_allowed" if known.status_code == 405 else "not_found"
    answer = _refuse(
        Refusal(reason, code_pb2.UNIMPLEMENTED, known.status_code, f"{known.detail}; allowed: POST {PATH}"),
        request,
    )
    answer.headers.update(known.headers or {})
    return answer


def _protocol(limit_s: float) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP/1.1 protocol with a limit on how long a request's head may take.

    Uvicorn limits idle time between requests only; a connection that never completes a head would stay for ever.
    """

    class TimedProtocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _watch(self) -> None:
            # Waiting for a head, or throwing away the rest of a body that was already answered.
            waiting = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
            if not waiting:
                self._forget()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(limit_s, self.transport.abort)

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return TimedProtocol
