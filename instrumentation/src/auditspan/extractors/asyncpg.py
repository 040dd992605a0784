"""asyncpg: each change of data that a text of SQL makes is a record inside the request that made it.

Where OpenTelemetry's instrumentation for it is. A service without that loads no more than this.
"""

from __future__ import annotations

from typing import Any, Final

from auditspan.extractors.dbapi import listen_to

INSTRUMENTORS: Final[tuple[str, ...]] = ()  # its module is enough, whoever starts it
TESTED: Final = {"asyncpg": ("0.32", "0.32")}


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """There is none."""
    del instrumentor
    return arguments


def start() -> None:
    """Listen as soon as the instrumentation is there. Again does nothing."""
    listen_to("opentelemetry.instrumentation.asyncpg", "auditspan.extractors.driver_asyncpg")


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "asyncpg": {"page": "dbapi", "distribution": "asyncpg", "gives": "transactions rows keys values"},
}
