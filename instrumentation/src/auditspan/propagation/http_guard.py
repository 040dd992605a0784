"""Keep tokens from leaving for hosts that are not on the list, where the request is about to be written.

The propagator sets the header only for a listed destination. But HTTP clients copy the headers of a request to
wherever a redirect leads, beneath any instrumentation (requests, urllib3, urllib and aiohttp drop only Authorization
and cookies there), and applications copy incoming headers to outgoing requests. So the last word is spoken here, on
each request that carries a token, with the host that the connection really has.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

import wrapt

from auditspan.propagation.destinations import Destination
from auditspan.propagation.propagator import HEADER
from auditspan.propagation.tokens import has_token

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from auditspan.propagation.destinations import Destinations

_log = logging.getLogger(__name__)
_HEADERS_AT = 3  # request(method, url, body, headers), in http.client and in urllib3


def guard_http_clients(destinations: Destinations) -> None:
    """Guard http.client, urllib3 (so requests) and httpx now or when the application imports them."""
    connection, transport = _connection_guard(destinations), _httpx_guard(destinations)

    def wrap(module: str, wrapper: Callable[..., Any], *places: str) -> None:
        def now(found: Any) -> None:
            for place in places:
                _wrap(found, place, wrapper)

        wrapt.register_post_import_hook(now, module)

    wrap("http.client", connection, "HTTPConnection.request")
    # request_chunked: urllib3 before 2.0
    wrap("urllib3.connection", connection, "HTTPConnection.request", "HTTPConnection.request_chunked")
    wrap("httpx", transport, "HTTPTransport.handle_request", "AsyncHTTPTransport.handle_async_request")


def guard_aiohttp(client_reqrep: Any, destinations: Destinations) -> bool:
    """Guard aiohttp's requests, each step of a redirect among them; False when this version has another inside."""
    request_class = getattr(client_reqrep, "ClientRequest", None)
    if not inspect.iscoroutinefunction(getattr(request_class, "send", None)):
        return False

    def guard(wrapped: Any, request: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            if HEADER in request.headers and any(map(has_token, request.headers.getall(HEADER))):
                url = request.url
                if not destinations.allows(Destination.of(url.raw_host or "", url.port, url.scheme)):
                    request.headers.popall(HEADER)
        except Exception as problem:  # noqa: BLE001 - the application's request goes on, without the header
            _log.warning(
                "auditspan: a request's headers can't be checked, so it goes without a token: %s", problem
            )
            with contextlib.suppress(Exception):
                request.headers.popall(HEADER, None)
        return wrapped(*args, **kwargs)

    _wrap(client_reqrep, "ClientRequest.send", guard)
    return True


def _wrap(module: Any, place: str, wrapper: Callable[..., Any]) -> None:
    owner, _, method = place.partition(".")
    # What a class only inherits is guarded where it is defined.
    if method in vars(getattr(module, owner, object)):
        wrapt.wrap_function_wrapper(module, place, wrapper)


def _connection_guard(destinations: Destinations) -> Callable[..., Any]:
    def guard(wrapped: Any, connection: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        headers = kwargs.get("headers") or (args[_HEADERS_AT] if len(args) > _HEADERS_AT else None)
        url = kwargs.get("url") or (args[1] if len(args) > 1 else "")
        kept = None
        with contextlib.suppress(Exception):  # headers that can't be read can't be sent either
            kept = _without_tokens(headers, connection, url, destinations) if headers else None
        if kept is not None and "headers" in kwargs:
            kwargs = {**kwargs, "headers": kept}
        elif kept is not None:
            args = (*args[:_HEADERS_AT], kept, *args[_HEADERS_AT + 1 :])
        return wrapped(*args, **kwargs)

    return guard


def _httpx_guard(destinations: Destinations) -> Callable[..., Any]:
    def guard(wrapped: Any, _transport: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        request: Any = args[0] if args else kwargs.get("request")
        try:
            if request is not None and HEADER in request.headers and has_token(request.headers[HEADER]):
                url = request.url
                if not destinations.allows(Destination.of(url.host, url.port, url.scheme)):
                    del request.headers[HEADER]
        except Exception as problem:  # noqa: BLE001 - the application's request goes on, without the header
            _log.warning(
                "auditspan: a request's headers can't be checked, so it goes without a token: %s", problem
            )
            with contextlib.suppress(Exception):
                del request.headers[HEADER]
        return wrapped(*args, **kwargs)

    return guard


def _without_tokens(
    headers: Mapping[Any, Any], connection: Any, url: Any, destinations: Destinations
) -> Mapping[Any, Any] | None:
    """A copy of *headers* without tokens when they must not go where *connection* leads, otherwise None."""
    found = [key for key in headers if _text(key).lower() == HEADER and has_token(_text(headers[key]))]
    if not found or _allowed(connection, url, destinations):
        return None
    kept: Any = headers.copy() if hasattr(headers, "copy") else dict(headers)  # keeps repeated headers
    for key in found:
        kept.pop(key, None)
    result: Mapping[Any, Any] = kept
    return result


def _allowed(connection: Any, url: Any, destinations: Destinations) -> bool:
    try:
        return destinations.allows(_destination(connection, url))
    except Exception as problem:  # noqa: BLE001 - the application's request goes on, without the token
        _log.warning(
            "auditspan: a request's destination can't be told, so it goes without a token: %s", problem
        )
        return False


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _destination(connection: Any, url: Any) -> Destination | None:
    """The origin server behind *connection*, also through a proxy: by CONNECT, or by an absolute URL."""
    if not str(url).startswith("/") and "://" in str(url):
        return Destination.of_url(str(url))
    tunnel = getattr(connection, "_tunnel_host", None)
    if tunnel:
        return Destination.of(str(tunnel), getattr(connection, "_tunnel_port", None) or 443)
    return Destination.of(str(connection.host), connection.port)
