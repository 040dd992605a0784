"""The routes of an application of aiohttp's server, with those of its sub-applications."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from auditspan.doctor.http_application import ANY, HttpApplication

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSTRUMENTATION: Final = "opentelemetry.instrumentation.aiohttp_server"
_OURS: Final = "auditspan.extractors.aiohttp_server"


def aiohttp_application(app: Any, wrapped: tuple[str, ...]) -> HttpApplication:
    """*app* is an ``aiohttp.web.Application``."""
    modules = [getattr(each, "__module__", "") for each in app.middlewares]
    return HttpApplication(
        framework="aiohttp",
        routes=tuple(dict.fromkeys(_routes(app))),
        instrumented=_INSTRUMENTATION in modules,
        hooked=_OURS in modules,
        excluded=_ByPath(getattr(sys.modules.get(_INSTRUMENTATION), "_excluded_urls", None)),
        wrapped=wrapped,
        setting="OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS",
        any_is="takes any method",
    )


def _routes(app: Any) -> Iterator[tuple[str, str]]:
    for route in app.router.routes():
        path = str(getattr(route.resource, "canonical", "") or "")
        if route.method != "HEAD":  # which aiohttp adds to each GET
            yield (ANY if route.method == "*" else route.method), path


class _ByPath:
    """The instrumentation of aiohttp compares paths, not whole URLs."""

    def __init__(self, excluded: Any) -> None:
        self._excluded = excluded

    def url_disabled(self, url: str) -> bool:
        return self._excluded is not None and bool(
            self._excluded.url_disabled(url.removeprefix("http://localhost"))
        )
