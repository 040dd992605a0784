"""The routes of FastAPI, Starlette, Flask and WSGI applications, and the instrumentation that is really around them."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from auditspan.doctor.http_application import ANY, DEPTH, WEBSOCKET, HttpApplication, is_a, shown
from auditspan.extractors import HOOK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def http_application(thing: Any) -> HttpApplication | None:
    """*thing*, or what it wraps, when that is an application of a framework that the doctor knows."""
    wrapped: list[str] = []
    first = thing
    for _ in range(DEPTH):
        found = _known(thing, tuple(wrapped))
        if found is not None:
            return found
        wrapped.append(type(thing).__qualname__)
        thing = getattr(thing, "app", None) or getattr(thing, "application", None)
        if thing is None:
            return _wsgi_without(first)
    return None


def _known(thing: Any, wrapped: tuple[str, ...]) -> HttpApplication | None:
    found: HttpApplication | None = None
    if is_a(thing, "starlette.applications", "Starlette"):
        found = _asgi(thing, wrapped)
    elif is_a(thing, "flask.app", "Flask"):
        found = _flask(thing, wrapped)
    elif is_a(thing, "werkzeug.middleware.dispatcher", "DispatcherMiddleware"):
        found = _dispatched(thing, wrapped)
    elif is_a(thing, "django.core.handlers.base", "BaseHandler"):
        from auditspan.doctor.django_routes import django_application  # noqa: PLC0415 - needs Django

        found = django_application(wrapped)
    elif is_a(thing, "aiohttp.web_app", "Application"):
        from auditspan.doctor.aiohttp_routes import aiohttp_application  # noqa: PLC0415 - only where it is

        found = aiohttp_application(thing, wrapped)
    elif is_a(thing, "opentelemetry.instrumentation.wsgi", "OpenTelemetryMiddleware"):
        found = _wsgi(thing, wrapped)
    return found


# --- WSGI --------------------------------------------------------------------------------------------------------


def _wsgi(middleware: Any, wrapped: tuple[str, ...]) -> HttpApplication:
    """Whose routes nobody can be asked for; each request may change something by its method."""
    return HttpApplication(
        framework="WSGI",
        routes=((ANY, "/{path:path}"),),
        instrumented=True,
        hooked=is_a(getattr(middleware, "wsgi", None), "auditspan.extractors.wsgi", "AuditedApplication"),
        excluded=None,
        wrapped=wrapped,
        any_is="a WSGI application, whose routes can't be asked for",
    )


def _wsgi_without(thing: Any) -> HttpApplication | None:
    """A function that speaks WSGI, and that nobody has wrapped; None for anything else."""
    if not inspect.isroutine(thing):
        return None  # perhaps of a framework, which may be instrumented
    try:
        parameters = list(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        return None
    if parameters[-1:] != ["start_response"]:  # PEP 3333's name for it, which all use
        return None
    return HttpApplication("WSGI", ((ANY, "/{path:path}"),), instrumented=False, hooked=False, excluded=None)


# --- ASGI --------------------------------------------------------------------------------------------------------


def _asgi(app: Any, wrapped: tuple[str, ...]) -> HttpApplication:
    middleware = _middleware(app)
    return HttpApplication(
        framework="FastAPI" if is_a(app, "fastapi.applications", "FastAPI") else "Starlette",
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
    for _ in range(DEPTH):
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
        if is_a(original, "starlette.routing", "WebSocketRoute"):
            yield WEBSOCKET, path
        elif methods:
            yield from ((method, path) for method in shown(methods))
        elif is_a(original, "starlette.routing", "Route"):  # an endpoint class answers any method
            yield from ((method, path) for method in _endpoint_methods(original))
        elif depth < DEPTH:
            yield from _mounted(inside, getattr(original, "routes", None), path, depth)


def _flattened(routes: Iterable[Any]) -> Iterator[Any]:
    """FastAPI keeps the routes of an included router in one object."""
    flatten = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    yield from flatten(list(routes)) if flatten is not None else routes


def _mounted(app: Any, routes: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if routes:
        yield from _asgi_routes(routes, path, depth + 1)
        return
    for _ in range(DEPTH):
        if is_a(app, "flask.app", "Flask"):
            yield from ((method, path + route) for method, route in _flask_routes(app))
            return
        if is_a(app, "starlette.applications", "Starlette"):  # inside middleware of its own
            yield from _asgi_routes(app.routes, path, depth + 1)
            return
        if is_a(app, "starlette.staticfiles", "StaticFiles"):
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
        yield from ((method, rule.rule) for method in shown(rule.methods or ()))


def _dispatched(dispatcher: Any, wrapped: tuple[str, ...]) -> HttpApplication | None:
    """Several WSGI applications beneath paths; as little instrumented as the least of them."""
    parts = [("", dispatcher.app), *dispatcher.mounts.items()]
    found = [_flask(app, (), prefix) for prefix, app in parts if is_a(app, "flask.app", "Flask")]
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
