"""Metadata for gRPC calls: the channel knows the target, which the client's span does not.

Imported only once the application has imported grpc. Channels are wrapped where they are made, beneath the
OpenTelemetry instrumentation, so that its client span is current here; without it, the audited span itself is.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from auditspan.propagation.propagator import HEADER
from auditspan.propagation.tokens import has_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.propagation.destinations import Destinations
    from auditspan.propagation.propagator import AuditContextPropagator

_log = logging.getLogger(__name__)


class ChannelContext:
    """Adds the token to the calls of one channel when its *target* may see it, and removes it when not."""

    def __init__(self, propagator: AuditContextPropagator, destinations: Destinations, target: str) -> None:
        """Looks *target* up once."""
        self._propagator = propagator
        self._allowed = destinations.allows_grpc(target)

    def metadata(self, given: Any) -> Any:
        """The metadata to send for what the application gave. Never raises."""
        if given is None and not self._allowed:
            return None
        try:
            given = tuple(given or ())
            token = self._propagator.token() if self._allowed else ""
            if self._allowed and not token:
                return given or None  # what the application itself forwards to an allowed target
            kept = tuple(entry for entry in given if not _ours(*entry))
            return (*kept, (HEADER, token)) if token else kept
        except Exception as problem:  # noqa: BLE001 - the application's call goes on without the token
            _log.debug("auditspan: no audit-context for this call", exc_info=problem)
            return given


def _ours(key: object, value: object) -> bool:
    return isinstance(key, str) and key.lower() == HEADER and has_token(str(value))


def wrap_channels(propagator: AuditContextPropagator, destinations: Destinations) -> None:
    """Let every channel that the application makes from now on carry the token where it may go."""

    def of(target: str) -> ChannelContext:
        return ChannelContext(propagator, destinations, target)

    for name in ("insecure_channel", "secure_channel"):
        setattr(grpc, name, _wrapped(getattr(grpc, name), of))
        setattr(grpc.aio, name, _wrapped_aio(getattr(grpc.aio, name), of))


def _wrapped(make: Callable[..., Any], of: Callable[[str], ChannelContext]) -> Callable[..., Any]:
    @functools.wraps(make)
    def channel(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        try:
            return _Channel(made, of(args[0] if args else kwargs["target"]))
        except Exception as problem:  # noqa: BLE001 - the application gets its channel, without the token
            _log.warning("auditspan: no audit-context on a gRPC channel: %s", problem)
            return made

    return channel


def _wrapped_aio(make: Callable[..., Any], of: Callable[[str], ChannelContext]) -> Callable[..., Any]:
    signature = inspect.signature(make)

    @functools.wraps(make)
    def channel(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
            context = of(bound.arguments["target"])
            # Last means innermost: beneath the OpenTelemetry instrumentation's, which come first.
            given = bound.arguments.get("interceptors") or ()
            bound.arguments["interceptors"] = [*given, *(kind(context) for kind in _AIO_INTERCEPTORS)]
        except Exception as problem:  # noqa: BLE001 - the application gets its channel, without the token
            _log.warning("auditspan: no audit-context on a gRPC channel: %s", problem)
            return make(*args, **kwargs)
        return make(*bound.args, **bound.kwargs)

    return channel


class _Channel(grpc.Channel):
    """*base* in every way but the metadata of its calls."""

    def __init__(self, base: Any, context: ChannelContext) -> None:
        self._base = base
        self._context = context

    def subscribe(self, *args: Any, **kwargs: Any) -> None:
        self._base.subscribe(*args, **kwargs)

    def unsubscribe(self, *args: Any, **kwargs: Any) -> None:
        self._base.unsubscribe(*args, **kwargs)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Calls(self._base.unary_unary(*args, **kwargs), self._context)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Calls(self._base.unary_stream(*args, **kwargs), self._context)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Calls(self._base.stream_unary(*args, **kwargs), self._context)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Calls(self._base.stream_stream(*args, **kwargs), self._context)

    def close(self) -> None:
        self._base.close()

    def __enter__(self) -> Any:
        self._base.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> Any:
        return self._base.__exit__(*exc_info)

    def __getattr__(self, name: str) -> Any:  # what a newer grpc adds
        return getattr(self._base, name)


class _Calls:
    """*base*, one of gRPC's four multi-callables. All have the same parameters behind the first."""

    def __init__(self, base: Any, context: ChannelContext) -> None:
        self._base = base
        self._context = context

    def __call__(
        self, request: Any, timeout: Any = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return self._base(request, timeout, self._context.metadata(metadata), *args, **kwargs)

    def with_call(
        self, request: Any, timeout: Any = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return self._base.with_call(request, timeout, self._context.metadata(metadata), *args, **kwargs)

    def future(
        self, request: Any, timeout: Any = None, metadata: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return self._base.future(request, timeout, self._context.metadata(metadata), *args, **kwargs)


class _AioInterceptor:
    def __init__(self, context: ChannelContext) -> None:
        self._context = context

    async def _go_on(self, continuation: Any, details: Any, request: Any) -> Any:
        metadata = grpc.aio.Metadata(*(self._context.metadata(details.metadata) or ()))
        return await continuation(details._replace(metadata=metadata), request)


class _AioUnaryUnary(_AioInterceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]  # not generic when run
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._go_on(continuation, client_call_details, request)


class _AioUnaryStream(_AioInterceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # not generic when run
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._go_on(continuation, client_call_details, request)


class _AioStreamUnary(_AioInterceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]  # not generic when run
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._go_on(continuation, client_call_details, request_iterator)


class _AioStreamStream(_AioInterceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]  # not generic when run
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._go_on(continuation, client_call_details, request_iterator)


_AIO_INTERCEPTORS = (_AioUnaryUnary, _AioUnaryStream, _AioStreamUnary, _AioStreamStream)
