"""The routes of a Django project: the URL patterns, walked, and which methods each view takes.

Imports Django, so it is imported where Django is.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

from auditspan.doctor.http_application import ANY, DEPTH, HttpApplication, shown
from auditspan.extractors import HOOK
from auditspan.extractors.django import plain_route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_METHODS: Final = ("get", "post", "put", "patch", "delete")


def django_application(wrapped: tuple[str, ...]) -> HttpApplication:
    """The project that is set up in this process; *wrapped* stands around its handler."""
    from django.conf import settings  # noqa: PLC0415 - see the module
    from django.urls import get_resolver  # noqa: PLC0415 - as above
    from opentelemetry.instrumentation.django import DjangoInstrumentor  # noqa: PLC0415 - as above
    from opentelemetry.instrumentation.django.middleware.otel_middleware import (  # noqa: PLC0415 - as above
        _DjangoMiddleware,
    )

    middleware = list(settings.MIDDLEWARE)
    ours = DjangoInstrumentor._opentelemetry_middleware  # noqa: SLF001 - how it is written into the settings
    position = middleware.index(ours) if ours in middleware else -1
    routes = _walk(get_resolver(settings.ROOT_URLCONF).url_patterns, "")
    return HttpApplication(
        framework="Django",
        routes=tuple(dict.fromkeys(routes)),
        instrumented=position >= 0,
        hooked=hasattr(_DjangoMiddleware._otel_request_hook, HOOK),  # noqa: SLF001 - as above
        excluded=_DjangoMiddleware._excluded_urls,  # noqa: SLF001 - as above
        wrapped=(*wrapped, *middleware[: max(position, 0)]),
        setting="OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        any_is="takes any method",
    )


def _walk(patterns: Iterable[Any], before: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    for each in patterns:
        own = str(each.pattern)
        route = before + own.removeprefix("^") if before else own  # as Django joins them
        inside = getattr(each, "url_patterns", None)
        if inside is None:
            yield from ((method, plain_route(route)) for method in _methods(each.callback))
        elif depth < DEPTH:
            yield from _walk(inside, route, depth + 1)


def _methods(view: Any) -> list[str]:
    """What *view* takes: of a class its methods, of REST framework's sets their actions, of a function its decorator's list."""
    actions = getattr(view, "actions", None)  # rest_framework/viewsets.py as_view
    if isinstance(actions, dict) and actions:
        return shown(method.upper() for method in actions)
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if kind is not None:
        allowed = set(getattr(kind, "http_method_names", _METHODS))
        return [name.upper() for name in _METHODS if name in allowed and hasattr(kind, name)] or [ANY]
    for _ in range(DEPTH):
        if not inspect.isfunction(view):
            break
        listed = inspect.getclosurevars(view).nonlocals.get("request_method_list")
        if listed:  # django/views/decorators/http.py
            return shown(str(method).upper() for method in listed)
        view = getattr(view, "__wrapped__", None)
    return [ANY]
