"""DB-API drivers: each change of data that a text of SQL makes is a record inside the request that made it.

For the connections that OpenTelemetry's instrumentations hand out as proxies: those of sqlite3, PyMySQL, mysqlclient, and what an
application wraps itself with ``opentelemetry.instrumentation.dbapi``. The psycopgs, whose connections are no proxies, have
modules of their own. A service without such an instrumentation loads no more than this.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Final

import wrapt

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

INSTRUMENTORS: Final[tuple[str, ...]] = ()  # what all of them go through is enough
TESTED: Final = {"opentelemetry-instrumentation-dbapi": ("0.66", "0.66")}
WATCHED: Final = "_self_auditspan"  # attribute of a proxy; wrapt keeps what is called so in the proxy itself


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """There is none."""
    del instrumentor
    return arguments


def start() -> None:
    """Wrap the proxies as soon as an instrumentation needs them. Again does nothing."""
    listen_to("opentelemetry.instrumentation.dbapi", "auditspan.extractors.driver_proxies")


def listen_to(instrumentation: str, ours: str) -> None:
    """Call ``hook`` of the module *ours* with the module *instrumentation* once that is imported; nothing is raised there."""
    wrapt.register_post_import_hook(_hook(ours), instrumentation)


def _hook(ours: str) -> Callable[[Any], None]:
    def hook(module: Any) -> None:
        try:
            importlib.import_module(ours).hook(module)
        except Exception:  # noqa: BLE001 - inside an import
            _log.warning(
                "Auditspan can't listen to %s; changes of data leave no record",
                module.__name__,
                exc_info=True,
            )

    return hook


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "sqlite3 and other drivers instrumented as DB-API": {
        "page": "dbapi",
        "distribution": "",
        "gives": "transactions rows keys values",
    },
}
