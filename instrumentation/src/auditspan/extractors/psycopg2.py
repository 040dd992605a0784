"""psycopg2: each change of data that a text of SQL makes is a record inside the request that made it.

Where OpenTelemetry's instrumentation for it is. A service without that loads no more than this.
"""

from __future__ import annotations

from typing import Any, Final

from auditspan.extractors.dbapi import listen_to

INSTRUMENTORS: Final[tuple[str, ...]] = ()  # its module is enough, whoever starts it
TESTED: Final = {"psycopg2-binary": ("2.9", "2.9")}


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """There is none."""
    del instrumentor
    return arguments


def start() -> None:
    """Listen as soon as the instrumentation is there. Again does nothing."""
    listen_to("opentelemetry.instrumentation.psycopg2", "auditspan.extractors.driver_psycopg2")


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "psycopg2": {"page": "dbapi", "distribution": "psycopg2", "gives": "transactions rows keys values"},
}
