"""The interceptors that give a gRPC call's entry span its source. Imports grpc, so it is imported where grpc is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from opentelemetry import trace

from auditspan import context
from auditspan.extractors import begin, respond, warn_once
from auditspan.extractors.grpc import GrpcSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from auditspan.context import Announced

    _ServerInterceptor = grpc.ServerInterceptor[Any, Any]  # the stubs make generic what is not
    _AioServerInterceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    _ServerInterceptor = grpc.ServerInterceptor
    _AioServerInterceptor = grpc.aio.ServerInterceptor


class AuditServerInterceptor(_ServerInterceptor):
    """For ``grpc.server``: each call runs in a context of its own, from its interceptors to its end."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let the call's behaviour run between our begin and end."""
        announced = context.await_announcement()
        handler = continuation(handler_call_details)
        method = handler_call_details.method

        def unary(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            def call(request: Any, servicer_context: Any) -> Any:
                watch = _Watch(servicer_context, method, announced, request)
                try:
                    return behaviour(request, servicer_context)
                except BaseException as error:
                    watch.raised(error)
                    raise
                finally:
                    watch.end(unheard=not servicer_context.is_active())

            return call

        def stream(behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
            def call(request: Any, servicer_context: Any) -> Iterator[Any]:
                watch = _Watch(servicer_context, method, announced, request)
                try:
                    yield from behaviour(request, servicer_context)
                except BaseException as error:
                    watch.raised(error)
                    raise
                finally:
                    watch.end(unheard=not servicer_context.is_active())

            return call

        return _rebuilt(handler, unary, stream)


class AuditAioServerInterceptor(_AioServerInterceptor):
    """For ``grpc.aio.server``: each call is a task, with a context of its own."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let the call's behaviour run between our begin and end."""
        announced = context.await_announcement()
        handler = await continuation(handler_call_details)
        method = handler_call_details.method

        def unary(behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
            async def call(request: Any, servicer_context: Any) -> Any:
                watch = _Watch(servicer_context, method, announced, request)
                try:
                    return await behaviour(request, servicer_context)
                except BaseException as error:
                    watch.raised(error)
                    raise
                finally:
                    watch.end()

            return call

        def stream(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], AsyncIterator[Any]]:
            async def call(request: Any, servicer_context: Any) -> AsyncIterator[Any]:
                watch = _Watch(servicer_context, method, announced, request)
                try:
                    responses = behaviour(request, servicer_context)
                    if hasattr(responses, "__aiter__"):
                        async for response in responses:
                            yield response
                    else:  # the handler writes to the context itself
                        await responses
                except BaseException as error:
                    watch.raised(error)
                    raise
                finally:
                    watch.end()

            return call

        return _rebuilt(handler, unary, stream)


class _Watch:
    """One call, from where its span is current to its end. Never raises."""

    def __init__(self, servicer_context: Any, method: str, announced: Announced, request: Any) -> None:
        self._span = trace.get_current_span()
        self._source: GrpcSource | None = None
        try:
            self._begin(servicer_context, method, announced, request)
        except Exception:  # noqa: BLE001 - inside the application's call
            warn_once("gRPC interceptor")

    def _begin(self, servicer_context: Any, method: str, announced: Announced, request: Any) -> None:
        state = context.of_span(self._span)
        if state is not None and state.emitter is not None:
            reads = state.emitter.is_read_method(method)
            source = GrpcSource(servicer_context, method, announced, reads=reads)
            source.request = request  # of a stream an iterator, which has no fields
            self._source = source if begin(self._span, source) is not None else None

    def raised(self, error: BaseException) -> None:
        if self._source is not None:
            self._source.raised = True
            # A stream that nobody reads on is closed, a task that nobody waits for is cancelled.
            self._source.interrupted = isinstance(error, (GeneratorExit, asyncio.CancelledError))

    def end(self, *, unheard: bool = False) -> None:
        """*unheard*: the call was over before the work was, which gRPC lets go on in a thread."""
        if self._source is not None:
            self._source.ended, self._source.unheard = True, unheard
            respond(self._span)


def _rebuilt(handler: Any, unary: Callable[[Any], Any], stream: Callable[[Any], Any]) -> Any:
    """*handler* with its behaviour wrapped; None, for a method that nobody serves, stays None."""
    if handler is None:
        return None
    wrap = stream if handler.response_streaming else unary
    factory, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return factory(wrap(behaviour), handler.request_deserializer, handler.response_serializer)
