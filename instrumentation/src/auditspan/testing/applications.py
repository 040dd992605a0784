"""Let an application that exists already make spans with our hooks, and take both away again.

What ``opentelemetry-instrument`` does before an application is made: the span is the outermost layer, so that what the
application's own middleware refuses is seen.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # has no types

from auditspan.bootstrap import hooks, installed_extractors, start_extractors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan.extractors import Extractor

_MARK: Final = "_is_instrumented_by_opentelemetry"  # the instrumentations' own


@contextlib.contextmanager
def audit(app: Any) -> Iterator[None]:
    """Instrument *app* while the block runs; one that is instrumented already stays as it is.

    Raises TypeError for what is no FastAPI, Starlette or Flask application.
    """
    way = _way(app)
    _extractors()
    if getattr(app, _MARK, False):
        yield
        return
    with way(app):
        yield


@contextlib.contextmanager
def instrumented(instrumentor: Any, **arguments: Any) -> Iterator[None]:
    """Let the OpenTelemetry *instrumentor* instrument with the hooks of every extractor that knows it, in this block.

    For frameworks whose applications ``capture`` does not take: make the application inside. *arguments* are the
    instrumentor's own. One that runs already stays as it is. Raises RuntimeError when it does not start.
    """
    if instrumentor.is_instrumented_by_opentelemetry:
        yield
        return
    kind = type(instrumentor)
    arguments, afterwards = hooks(f"{kind.__module__}:{kind.__name__}", arguments, _extractors())
    # The method itself: under opentelemetry-instrument it would add the hooks once more.
    inspect.unwrap(BaseInstrumentor.instrument)(instrumentor, **arguments)
    if not instrumentor.is_instrumented_by_opentelemetry:
        raise RuntimeError(
            f"{kind.__name__} did not start; is its framework installed, in a version that it takes?"
        )
    afterwards()
    try:
        yield
    finally:
        instrumentor.uninstrument()


@functools.lru_cache(maxsize=1)
def _extractors() -> list[Extractor]:
    """All of them, started: what needs no instrumentor stays, and without a capture does nothing."""
    found = installed_extractors()
    start_extractors(found)
    return found


def _way(app: Any) -> Callable[[Any], contextlib.AbstractContextManager[None]]:
    for module, name, way in (
        ("fastapi.applications", "FastAPI", _fastapi),
        ("starlette.applications", "Starlette", _starlette),
        ("flask.app", "Flask", _flask),
    ):
        # By name: the instrumentations replace the modules' own.
        if any(kind.__module__ == module and kind.__name__ == name for kind in type(app).__mro__):
            return way
    raise TypeError(
        f"{app!r} is no FastAPI, Starlette or Flask application. Others are audited when they are made while their "
        "OpenTelemetry instrumentation runs: `with instrumented(...):`, without the application as an argument here."
    )


@contextlib.contextmanager
def _fastapi(app: Any) -> Iterator[None]:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415 - only where it is

    with _rebuilt(app), _instrumented(app, FastAPIInstrumentor):
        yield


@contextlib.contextmanager
def _starlette(app: Any) -> Iterator[None]:
    from opentelemetry.instrumentation.starlette import StarletteInstrumentor  # noqa: PLC0415 - only where it is

    with _rebuilt(app), _instrumented(app, StarletteInstrumentor):
        yield


@contextlib.contextmanager
def _rebuilt(app: Any) -> Iterator[None]:
    """An application that has served builds its middleware again, and has its own back afterwards."""
    before, app.middleware_stack = app.middleware_stack, None
    try:
        yield
    finally:
        app.middleware_stack = before


@contextlib.contextmanager
def _flask(app: Any) -> Iterator[None]:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor  # noqa: PLC0415 - only where it is

    served, app._got_first_request = app._got_first_request, False  # noqa: SLF001 - else Flask refuses functions
    with _instrumented(app, FlaskInstrumentor):
        app._got_first_request = served  # noqa: SLF001 - as above
        # Made with the application they would be the first: before a function that refuses the request.
        for functions in (app.before_request_funcs[None], app.teardown_request_funcs[None]):
            functions.insert(0, functions.pop())
        yield


@contextlib.contextmanager
def _instrumented(app: Any, instrumentor: Any) -> Iterator[None]:
    name = f"{instrumentor.__module__}:{instrumentor.__name__}"
    arguments, afterwards = hooks(name, {}, _extractors())
    instrumentor.instrument_app(app, **arguments)
    afterwards()
    try:
        yield
    finally:
        instrumentor.uninstrument_app(app)
