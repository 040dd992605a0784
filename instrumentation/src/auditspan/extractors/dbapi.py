"""Database drivers: each change of data that a text of SQL makes is a record inside the request that made it.

For the connections that OpenTelemetry's instrumentations hand out as proxies, those of sqlite3, PyMySQL, mysqlclient, and what an
application wraps itself with ``opentelemetry.instrumentation.dbapi``; and for the psycopgs and asyncpg, whose connections are
no proxies. A service without such an instrumentation loads no more than this.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

import wrapt

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

INSTRUMENTORS: Final[tuple[str, ...]] = ()  # their modules are enough, whoever starts them
TESTED: Final = {
    "opentelemetry-instrumentation-dbapi": ("0.66", "0.66"),
    "psycopg": ("3.3", "3.3"),
    "psycopg2-binary": ("2.9", "2.9"),
    "asyncpg": ("0.32", "0.32"),
}
# By OpenTelemetry's module: ours, whose ``hook`` is called with it.
_LISTENERS: Final = {
    "opentelemetry.instrumentation.dbapi": "auditspan.extractors.driver_proxies",
    "opentelemetry.instrumentation.psycopg": "auditspan.extractors.driver_psycopg",
    "opentelemetry.instrumentation.psycopg2": "auditspan.extractors.driver_psycopg2",
    "opentelemetry.instrumentation.asyncpg": "auditspan.extractors.driver_asyncpg",
}
_heard: Final[set[str]] = set()  # the instrumentations whose drivers we listen to
WATCHED: Final = "_self_auditspan"  # attribute of a proxy; wrapt keeps what is called so in the proxy itself


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """There is none."""
    del instrumentor
    return arguments


def start() -> None:
    """Listen to each driver as soon as an instrumentation is there. Again does nothing."""
    for instrumentation, ours in _LISTENERS.items():
        wrapt.register_post_import_hook(_hook(ours), instrumentation)


def listens_to(instrumentation: str) -> bool:
    """Whether changes by the drivers of OpenTelemetry's module *instrumentation* are heard of in this process."""
    module = instrumentation if instrumentation in _LISTENERS else "opentelemetry.instrumentation.dbapi"
    return module in _heard


def _hook(ours: str) -> Callable[[Any], None]:
    """What calls ``hook`` of the module *ours* with the module that was imported; nothing is raised there."""

    def hook(module: Any) -> None:
        try:
            importlib.import_module(ours).hook(module)
            _heard.add(module.__name__)
        except Exception:  # noqa: BLE001 - inside an import
            _log.warning(
                "Auditspan can't listen to %s; changes of data leave no record",
                module.__name__,
                exc_info=True,
            )

    return hook


_GIVES: Final = "transactions rows keys values"
# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "sqlite3 and other drivers instrumented as DB-API": {
        "page": "dbapi",
        "distribution": "",
        "gives": _GIVES,
    },
    "psycopg 3": {"page": "dbapi", "distribution": "psycopg", "gives": _GIVES},
    "psycopg2": {"page": "dbapi", "distribution": "psycopg2-binary", "gives": _GIVES},
    "asyncpg": {"page": "dbapi", "distribution": "asyncpg", "gives": _GIVES},
}
