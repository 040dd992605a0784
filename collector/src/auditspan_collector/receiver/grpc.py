"""OTLP/gRPC: ``opentelemetry.proto.collector.trace.v1.TraceService/Export`` and ``grpc.health.v1``.

A request's bytes go through untouched: no deserializer, because whoever encodes the records walks them anyway.
Threads rather than asyncio: with the same work behind them they cost a sixth less CPU per span, measured on messages
of 512 spans. No call keeps one while it waits, where the installed gRPC can do that. Messages over the limit are
refused by gRPC itself, before and while they are decompressed.

Who calls is known from the headers, so a call that may not be made never gets a place among those that are worked on,
and neither does one too many: both are answered at once. Health has threads of its own.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from grpc_status import rpc_status

from auditspan_collector.errors import Unauthenticated
from auditspan_collector.receiver import answers, calls
from auditspan_collector.receiver.listening import claim, read_pem, refuse_bind, tls_context
from auditspan_collector.receiver.turns import NoMessage, Sweeper, Turns
from auditspan_collector.record import OtlpRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan_collector.receiver import Offer, ReceiverMetrics, Submit
    from auditspan_collector.receiver.calls import Call
    from auditspan_collector.receiver.config import Config
    from auditspan_collector.receiver.senders import Senders
    from auditspan_collector.record import Accepted, Sender

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
# Idle connections cost memory; a client that comes back connects anew on its own.
MAX_CONNECTION_IDLE_MS: Final = 15 * 60 * 1000
_HEALTH: Final = "grpc.health.v1.Health"
_HEALTH_THREADS: Final = 2
_HEALTH_CALLS: Final = 256  # checks at a time, and watchers at a time
_HEALTH_PATIENCE_S: Final = 5.0
# Threads that make records of messages. They share the interpreter; the second is for when one waits for room.
_WORKERS: Final = 2

_log = logging.getLogger(__name__)


class GrpcReceiver:
    """The listener on ``receiver.grpc.listen``. Start once, stop once."""

    def __init__(
        self,
        config: Config,
        senders: Senders,
        submit: Submit,
        metrics: ReceiverMetrics,
        *,
        offer: Offer | None = None,
        shared: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """With *offer* no call keeps a thread while it waits, where gRPC can do that; else each does, in *submit*.

        *shared* says that other workers of this collector listen on the same port, which somebody holds for them.
        """
        self._config = config
        self._shared = shared
        self._address = config.address("grpc")
        limits = config.grpc
        turns = Turns(
            "otlp-grpc",
            threads=limits.threads,
            limit=limits.max_requests,
            patience_s=limits.read_timeout_s,
        )
        self._health = _Health()
        self._server = grpc.server(
            turns.pool,
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_connection_idle_ms", MAX_CONNECTION_IDLE_MS),
                # By default a second collector would share the port in silence, and each would get half.
                ("grpc.so_reuseport", int(shared)),
            ],
        )
        self._sweeper = Sweeper(turns, self._health.checks, self._health.watches)
        self._service = _TraceService(senders, submit, metrics, clock_ns, turns)
        if offer is not None and calls.supported():
            self._service.hold_no_threads(offer, limits.threads)
        self.serving(False)
        # Other services and methods get gRPC's UNIMPLEMENTED.
        self._server.add_generic_rpc_handlers((self._service, self._health))
        self.port = 0

    def start(self) -> None:
        """Listen; ``port`` is then the one in use. Raises ConfigError when the address can't be had."""
        if not self._shared:  # held already; a socket that listens only to try would get connections
            claim("receiver.grpc.listen", self._address).close()
        try:
            if self._config.tls.cert_file:
                self.port = self._server.add_secure_port(str(self._address), _credentials(self._config))
            else:
                self.port = self._server.add_insecure_port(str(self._address))
        except RuntimeError as error:
            raise refuse_bind("receiver.grpc.listen", self._address, error) from error
        self._server.start()
        self._sweeper.start()

    def serving(self, healthy: bool) -> None:  # noqa: FBT001 - reads as a sentence
        """Tell ``grpc.health.v1`` whether requests are answered with OK."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", SERVICE):
            self._health.servicer.set(name, status)

    def stop(self, grace_s: float) -> None:
        """Take no new requests, give the running ones *grace_s* seconds, and return when the port is free.

        A request that runs longer is cut off; its thread ends by itself when *submit* returns.
        """
        self._health.servicer.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._sweeper.stop()
        self._service.close()


class _TraceService(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    """One method, on raw bytes: no (de)serializer.

    *service* runs in gRPC's own thread, when a call's headers are there, and chooses what the call may have.
    """

    def __init__(
        self,
        senders: Senders,
        submit: Submit,
        metrics: ReceiverMetrics,
        clock_ns: Callable[[], int],
        turns: Turns,
    ) -> None:
        self._senders = senders
        self._submit = submit
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._turns = turns
        self._offer: Offer | None = None
        self._calls: calls.Calls | None = None
        self._refusing = ThreadPoolExecutor(1, thread_name_prefix="otlp-grpc-refuse")
        self._handlers: dict[
            Sender, grpc.RpcMethodHandler[Any, Any]
        ] = {}  # touched in gRPC's own thread only

    def hold_no_threads(self, offer: Offer, at_once: int) -> None:
        """Have *offer* answer, *at_once* calls at a time; before the server starts."""
        self._offer = offer
        self._calls = calls.Calls(
            "otlp-grpc", self._turns, at_once=at_once, workers=min(_WORKERS, at_once), handle=self._handle
        )
        self._calls.start()

    def close(self) -> None:
        """After the server stopped."""
        if self._calls is not None:
            self._calls.stop()
        self._refusing.shutdown(wait=False, cancel_futures=True)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if details.method != f"/{SERVICE}/Export":
            return None
        try:
            sender = self._senders.authenticate(
                [str(value) for name, value in details.invocation_metadata if name == "authorization"]
            )
        except Unauthenticated as error:
            return self._refusal(answers.refusal(error))
        if not self._turns.take():
            return self._refusal(answers.busy())
        handler = self._handlers.get(sender)
        if handler is None:
            handler = self._handlers[sender] = (
                _on_messages(partial(self._export, sender), self._turns.pool)
                if self._calls is None
                else self._calls.handler(sender)
            )
        return handler

    def _refusal(self, refused: answers.Refusal) -> grpc.RpcMethodHandler[Any, Any]:
        """Answers without waiting for the message, so that its thread is never held."""

        def refuse(_messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            self._metrics.answered("grpc", refused.reason, body_bytes=0, duration_s=0.0)
            context.abort_with_status(rpc_status.to_status(refused.status()))
            return b""

        return _on_messages(refuse, self._refusing)

    # A call that keeps no thread: handled when its message is there, answered by whoever keeps its records.

    def _handle(self, call: Call) -> None:
        assert self._offer is not None  # noqa: S101 - for the type checker
        body = call.take()
        if body is None:
            self._refuse(call, answers.unread())
            return
        try:
            self._offer(
                self._request(call.sender, body, call.context),
                partial(self._answer_call, call),
                since_s=call.waiting_since_s,
            )
        except Exception as error:  # noqa: BLE001 - the process must survive any request; answers says which are faults
            self._answer_call(call, error)

    def _answer_call(self, call: Call, result: Accepted | BaseException) -> None:
        if isinstance(result, BaseException):
            self._refuse(call, _refusal(result))
            return
        message = _message(result, call.context)
        self._count(None, call.body_bytes, call.started_s)
        call.answer(message)

    def _refuse(self, call: Call, refused: answers.Refusal) -> None:
        self._count(refused, call.body_bytes, call.started_s)
        call.refuse(rpc_status.to_status(refused.status()))

    # A call in a thread of its own.

    def _export(self, sender: Sender, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            return self._answer(sender, messages, context)
        finally:
            self._turns.leave()

    def _answer(self, sender: Sender, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        started_s = time.monotonic()
        refused, answer, body = None, b"", b""
        try:
            body = self._turns.message(messages, context)
            answer = _message(self._submit(self._request(sender, body, context)), context)
        except (grpc.RpcError, NoMessage) as error:
            refused = answers.unread()
            if isinstance(error, grpc.RpcError):  # the call is over; gRPC knows this error and keeps quiet
                self._count(refused, len(body), started_s)
                raise
        except Exception as error:  # noqa: BLE001 - the process must survive any request; answers says which are faults
            refused = _refusal(error)
        self._count(refused, len(body), started_s)
        if refused:
            context.abort_with_status(rpc_status.to_status(refused.status()))
        return answer

    def _count(self, refused: answers.Refusal | None, body_bytes: int, started_s: float) -> None:
        self._metrics.answered(
            "grpc",
            refused.reason if refused else answers.OK,
            body_bytes=body_bytes,
            duration_s=time.monotonic() - started_s,
        )

    def _request(self, sender: Sender, body: bytes, context: grpc.ServicerContext) -> OtlpRequest:
        return OtlpRequest(
            body=body,
            encoding="protobuf",
            sender=sender,
            peer=host_of(context.peer()),
            received_unix_ns=self._clock_ns(),
        )


def _refusal(error: BaseException) -> answers.Refusal:
    """What *error* is to the client; what is ours to mend is in the log."""
    refused = answers.refusal(error)
    if refused.reason == answers.INTERNAL:
        _log.error("a request over gRPC failed", exc_info=error)
    return refused


def _message(accepted: Accepted, context: grpc.ServicerContext) -> bytes:
    """The answer's message; the receipt goes into the trailing metadata."""
    if accepted.receipt is not None:
        context.set_trailing_metadata(((answers.RECEIPT_NAME, answers.receipt_text(accepted.receipt)),))
    return answers.response(accepted).SerializeToString()


class _Health(grpc.GenericRpcHandler):  # type: ignore[type-arg] # generic in its stubs only
    """``grpc.health.v1`` on threads of its own, with the same limits on calls that say nothing."""

    def __init__(self) -> None:
        self.servicer = health.HealthServicer()
        self.checks, self.watches = (
            Turns(name, threads=_HEALTH_THREADS, limit=_HEALTH_CALLS, patience_s=_HEALTH_PATIENCE_S)
            for name in ("health-check", "health-watch")
        )
        self._handlers = {
            f"/{_HEALTH}/Check": (self.checks, _on_messages(self._check, self.checks.pool)),
            f"/{_HEALTH}/Watch": (
                self.watches,
                _on_messages(self._watch, self.watches.pool, answers_too=True),
            ),
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        turns, handler = self._handlers.get(details.method, (None, None))
        return handler if turns is not None and turns.take() else None

    def _check(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        try:
            message = self.checks.message(messages, context)
            answer = self.servicer.Check(health_pb2.HealthCheckRequest.FromString(message), context)
            return bytes(answer.SerializeToString())
        except (NoMessage, DecodeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not one HealthCheckRequest")
            raise
        finally:
            self.checks.leave()

    def _watch(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[Any], None]
    ) -> None:
        """Leaves its thread at once; the servicer answers through *send* whenever the state changes."""
        if not context.add_callback(self.watches.leave):
            self.watches.leave()
        try:
            request = health_pb2.HealthCheckRequest.FromString(self.watches.message(messages, context))
        except (NoMessage, DecodeError):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not one HealthCheckRequest")
        self.servicer.Watch(request, context, send_response_callback=_serialized(send))


def _serialized(send: Callable[[bytes | None], None]) -> Callable[[Any], None]:
    """*send* for messages; None ends the stream."""
    return lambda message: send(None if message is None else message.SerializeToString())


def _on_messages(
    behavior: Callable[..., Any], pool: ThreadPoolExecutor, *, answers_too: bool = False
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that reads the call's messages itself, in a thread of *pool*.

    On the wire it is the same as one that is given the one message. *answers_too*: it also sends its answers itself.
    """

    def called(*arguments: Any) -> Any:
        return behavior(*arguments)

    # gRPC looks for both on the function: a pool other than the server's, and a stream that needs no thread.
    called.experimental_thread_pool = pool  # type: ignore[attr-defined]
    called.experimental_non_blocking = answers_too  # type: ignore[attr-defined]
    if answers_too:
        return grpc.stream_stream_rpc_method_handler(called)
    return grpc.stream_unary_rpc_method_handler(called)


@lru_cache(maxsize=1024)
def host_of(peer: str) -> str:
    """The address in gRPC's name for a connection: ``ipv4:127.0.0.1:5000``, ``ipv6:%5B::1%5D:5000`` (URI-escaped)."""
    _, _, address = unquote(peer).partition(":")
    return address.rpartition(":")[0].strip("[]")


def _credentials(config: Config) -> grpc.ServerCredentials:
    tls = config.tls
    # gRPC takes any bytes and fails each handshake in silence; OpenSSL says now what is wrong.
    tls_context(tls)
    pair = (read_pem("key_file", tls.key_file), read_pem("cert_file", tls.cert_file))
    if not tls.client_ca_file:
        return grpc.ssl_server_credentials([pair])
    authority = read_pem("client_ca_file", tls.client_ca_file)
    return grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=True)
