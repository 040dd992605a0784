"""The routes of FastAPI, Starlette and Flask applications, and the instrumentation that is really around them."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from auditspan.extractors import HOOK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ANY: Final = "ANY"  # method of a mounted application whose routes nobody can ask for
WEBSOCKET: Final = "WEBSOCKET"
_DEPTH: Final = 20  # of wrappers and mounts


@dataclass(frozen=True, slots=True)
class HttpApplication:
    """*routes* are pairs of method and full route, as the framework writes it.

    *instrumented*: requests make entry spans. *hooked*: those tell us who acts. *excluded* is OpenTelemetry's list of
    URLs without a span, or None. *wrapped* names what stands around the instrumentation, outermost first.
    """

    framework: str
    routes: tuple[tuple[str, str], ...]
    instrumented: bool
    hooked: bool
    excluded: Any
    wrapped: tuple[str, ...] = ()


def http_application(thing: Any) -> HttpApplication | None:
    """*thing*, or what it wraps, when that is an application of a framework that the doctor knows."""
    wrapped: list[str] = []
    for _ in range(_DEPTH):
        if _is(thing, "starlette.applications", "Starlette"):
            return _asgi(thing, tuple(wrapped))
        if _is(thing, "flask.app", "Flask"):
            return _flask(thing, tuple(wrapped))
        if _is(thing, "werkzeug.middleware.dispatcher", "DispatcherMiddleware"):
            return _dispatched(thing, tuple(wrapped))
        wrapped.append(type(thing).__qualname__)
        thing = getattr(thing, "app", None)
        if thing is None:
            return None
    return None


def _is(thing: Any, module: str, name: str) -> bool:
    # By name: the instrumentations replace the modules' own.
    return any(kind.__module__ == module and kind.__name__ == name for kind in type(thing).__mro__)


# --- ASGI --------------------------------------------------------------------------------------------------------


def _asgi(app: Any, wrapped: tuple[str, ...]) -> HttpApplication:
    middleware = _middleware(app)
    return HttpApplication(
        framework="FastAPI" if _is(app, "fastapi.applications", "FastAPI") else "Starlette",
        routes=tuple(_asgi_routes(app.routes, "")),
        instrumented=middleware is not None,
        hooked=hasattr(getattr(middleware, "server_request_hook", None), HOOK),
        excluded=getattr(middleware, "excluded_urls", None),
        wrapped=wrapped,
    )


def _middleware(app: Any) -> Any:
    """OpenTelemetry's middleware in *app*, or None. The application's own middleware is not constructed for that."""
    if not getattr(app, "_is_instrumented_by_opentelemetry", False):
        return None
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415 - only where it is

    before = app.user_middleware
    app.user_middleware = [entry for entry in before if entry.cls is OpenTelemetryMiddleware]
    try:
        layer = app.build_middleware_stack()
    finally:
        app.user_middleware = before
    for _ in range(_DEPTH):
        if isinstance(layer, OpenTelemetryMiddleware):
            return layer
        layer = getattr(layer, "app", None)
    return None


def _asgi_routes(routes: Iterable[Any], prefix: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    for route in _flattened(routes):
        path = prefix + str(getattr(route, "path", "") or "")
        methods = getattr(route, "methods", None)
        original = getattr(route, "original_route", route)
        inside = getattr(original, "app", None)
        if _is(original, "starlette.routing", "WebSocketRoute"):
            yield WEBSOCKET, path
        elif methods:
            yield from ((method, path) for method in _shown(methods))
        elif _is(original, "starlette.routing", "Route"):  # an endpoint class answers any method
            yield from ((method, path) for method in _endpoint_methods(original))
        elif depth < _DEPTH:
            yield from _mounted(inside, getattr(original, "routes", None), path, depth)


def _flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """FastAPI keeps the routes of an included router in one object."""
    flatten = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    yield from flatten(list(routes)) if flatten is not None else routes


def _mounted(app: Any, routes: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if routes:
        yield from _asgi_routes(routes, path, depth + 1)
        return
    for _ in range(_DEPTH):
        if _is(app, "flask.app", "Flask"):
            yield from ((method, path + route) for method, route in _flask_routes(app))
            return
        if _is(app, "starlette.applications", "Starlette"):  # inside middleware of its own
            yield from _asgi_routes(app.routes, path, depth + 1)
            return
        if _is(app, "starlette.staticfiles", "StaticFiles"):
            yield "GET", path + "/{path:path}"
            return
        app = getattr(app, "app", None)
        if app is None:
            break
    yield ANY, path + "/{path:path}"


def _endpoint_methods(route: Any) -> list[str]:
    endpoint = getattr(route, "endpoint", None)
    allowed = [name.upper() for name in ("get", "post", "put", "patch", "delete") if hasattr(endpoint, name)]
    return allowed or [ANY]


# --- Flask -------------------------------------------------------------------------------------------------------


def _flask(app: Any, wrapped: tuple[str, ...], prefix: str = "") -> HttpApplication:
    before = getattr(app, "_before_request", None)
    around = inspect.getclosurevars(before).nonlocals if inspect.isfunction(before) else {}
    return HttpApplication(
        framework="Flask",
        routes=tuple((method, prefix + route) for method, route in _flask_routes(app)),
        instrumented=bool(getattr(app, "_is_instrumented_by_opentelemetry", False)),
        hooked=hasattr(around.get("request_hook"), HOOK),
        excluded=around.get("excluded_urls"),
        wrapped=wrapped,
    )


def _flask_routes(app: Any) -> Iterator[tuple[str, str]]:
    for rule in app.url_map.iter_rules():
        yield from ((method, rule.rule) for method in _shown(rule.methods or ()))


def _dispatched(dispatcher: Any, wrapped: tuple[str, ...]) -> HttpApplication | None:
    """Several WSGI applications beneath paths; as little instrumented as the least of them."""
    parts = [("", dispatcher.app), *dispatcher.mounts.items()]
    found = [_flask(app, (), prefix) for prefix, app in parts if _is(app, "flask.app", "Flask")]
    if not found:
        return None
    return HttpApplication(
        framework="Flask",
        routes=tuple(route for one in found for route in one.routes),
        instrumented=all(one.instrumented for one in found),
        hooked=all(one.hooked for one in found),
        excluded=found[0].excluded,
        wrapped=(*wrapped, type(dispatcher).__qualname__),
    )


def _shown(methods: Iterable[str]) -> list[str]:
    """Without those that a framework adds to each route."""
    found = set(methods)
    return sorted(found - {"OPTIONS"} - ({"HEAD"} if "GET" in found else set())) or sorted(found)
