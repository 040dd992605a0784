"""Let the Django instrumentation wait until the application has its settings.

By itself it reads the settings when the process starts. Where DJANGO_SETTINGS_MODULE is not set by then (a ``wsgi.py``
or ``manage.py`` sets it), or can't be imported yet, it configures empty ones, and the application, whose own come too
late, fails. So it is told of a start that comes as soon as there are settings, which is before Django reads the list
of middleware.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("auditspan.extractors.django")

_MARK: Final = "_auditspan"
_pending: Final[list[Callable[[], None]]] = []


def wait_for_settings() -> None:
    """From now on, whoever starts the Django instrumentation."""
    from django.conf import LazySettings, settings  # noqa: PLC0415 - called only where Django is

    instrumentor: Any = sys.modules["opentelemetry.instrumentation.django"].DjangoInstrumentor
    original = instrumentor._instrument  # noqa: SLF001 - the part of it that reads the settings
    if hasattr(original, _MARK) or not (
        hasattr(LazySettings, "_setup") and hasattr(LazySettings, "configure")
    ):
        return

    @functools.wraps(original)
    def instrument(self: Any, **kwargs: Any) -> None:
        if settings.configured:
            original(self, **kwargs)
        else:
            _pending.append(functools.partial(original, self, **kwargs))

    setattr(instrument, _MARK, True)
    instrumentor._instrument = instrument  # noqa: SLF001 - as above
    for name in ("_setup", "configure"):
        setattr(LazySettings, name, _then_start(getattr(LazySettings, name)))


def _then_start(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def set_up(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        while _pending:
            start = _pending.pop(0)
            try:
                start()
            except Exception:  # noqa: BLE001 - inside the application's access to its settings
                _log.warning(
                    "Auditspan: the instrumentation of Django could not start; its requests have no records",
                    exc_info=True,
                )
        return result

    return set_up
