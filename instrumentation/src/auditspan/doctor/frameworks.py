"""Which frameworks are installed, which of them OpenTelemetry instruments here, and which extractors know them.

Asks the environment with the instrumentation package's own functions: what they refuse at start is refused here.
"""

from __future__ import annotations

import importlib.metadata
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation import bootstrap_gen
from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from auditspan.extractors import Extractor

_INSTRUMENTORS: Final = "opentelemetry_instrumentor"  # entry point group
_PREFIX: Final = "opentelemetry-instrumentation-"
_DISABLED: Final = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"

# The instrumentations whose spans work comes in by, and those that carry the actor to the next service.
_ENTRY: Final = frozenset(
    [
        "fastapi",
        "starlette",
        "flask",
        "grpc",
        "django",
        "pyramid",
        "falcon",
        "tornado",
        "aiohttp-server",
        "celery",
        "kafka-python",
        "confluent-kafka",
        "aiokafka",
        "pika",
        "aio-pika",
        "remoulade",
        "boto3sqs",
    ]
)
# Drivers of databases: the distributions that they come in, and the instrumentation that we hear of their changes by.
# Of sqlite3, which is everywhere, only where somebody has its instrumentation.
_DRIVERS: Final = {
    "sqlite3": (("opentelemetry-instrumentation-sqlite3",), "sqlite3"),
    "psycopg": (("psycopg",), "psycopg"),
    "psycopg2": (("psycopg2", "psycopg2-binary"), "psycopg2"),
    "asyncpg": (("asyncpg",), "asyncpg"),
    "PyMySQL": (("PyMySQL",), "pymysql"),
    "mysqlclient": (("mysqlclient",), "mysqlclient"),
}
_CLIENT: Final = frozenset(["requests", "httpx", "urllib3", "aiohttp-client"])


def look(extractors: Iterable[Extractor], started: frozenset[str]) -> list[dict[str, Any]]:
    """One dict for each installed framework and its instrumentation.

    *started* holds the instrumentors, as ``module:Class``, that run in this process; empty when none was started.
    """
    extractors = list(extractors)
    known: dict[str, set[str]] = {}
    for extractor in extractors:
        for instrumentor in extractor.INSTRUMENTORS:
            known.setdefault(instrumentor.partition(":")[0], set()).add(
                str(getattr(extractor, "__name__", extractor))
            )
    rows: dict[str, dict[str, Any]] = {}
    for entry in bootstrap_gen.libraries:
        framework, package = Requirement(entry["library"]).name, Requirement(entry["instrumentation"]).name
        short = package.removeprefix(_PREFIX)
        version = _version(framework)
        if version and short in _ENTRY | _CLIENT and short not in rows:
            rows[short] = _row((framework, version), short, known, started)
    return [*rows.values(), *_listened_to(extractors, started)]


def _listened_to(extractors: Iterable[Extractor], started: frozenset[str]) -> list[dict[str, Any]]:
    """Libraries that tell of changes of data, or of whom a token names, inside the requests of others."""
    by_name = {
        str(getattr(extractor, "__name__", "")).rpartition(".")[2]: extractor for extractor in extractors
    }
    mapper = _heard_by_itself("SQLAlchemy", "changes", by_name.get("sqlalchemy"))
    rows = [mapper] if mapper is not None else []
    mapped = mapper is not None and mapper["active"]
    for driver, (distributions, short) in _DRIVERS.items():
        version = next(filter(None, map(_version, distributions)), "")
        if version and driver == "sqlite3":
            version = sqlite3.sqlite_version
        if version:
            rows.append(_driver((driver, version), short, by_name.get("dbapi"), started, mapped=mapped))
    bearer = by_name.get("bearer")
    tokens = (_heard_by_itself(library, "actor", bearer) for library in getattr(bearer, "TESTED", ()))
    return [*rows, *filter(None, tokens)]


def _heard_by_itself(library: str, role: str, extractor: Extractor | None) -> dict[str, Any] | None:
    """The row of a *library* that needs no instrumentation of its own; None where it is not installed."""
    version = _version(library)
    if not version:
        return None
    return {
        "framework": library,
        "version": version,
        "role": role,
        "instrumentation": "",
        "instrumentation_version": "",
        "extractors": [] if extractor is None else [str(getattr(extractor, "__name__", extractor))],
        "active": extractor is not None,
        "why_not": "" if extractor is not None else "its extractor is not installed",
    }


def _driver(
    driver: tuple[str, str],
    short: str,
    extractor: Extractor | None,
    started: frozenset[str],
    *,
    mapped: bool,
) -> dict[str, Any]:
    """The row of a *driver*, name and version, which is heard of where its instrumentation runs.

    *mapped* says that a mapper is there, which tells of its changes itself.
    """
    row = _row(driver, short, {}, started)
    row["role"] = "changes"
    if extractor is not None:
        row["extractors"] = [str(getattr(extractor, "__name__", extractor))]
    elif row["active"]:
        row.update(active=False, why_not="its extractor is not installed")
    listens = getattr(extractor, "listens_to", None)
    if row["active"] and listens is not None and not listens(f"opentelemetry.instrumentation.{short}"):
        row.update(active=False, why_not="its extractor could not listen to it; the log says why")
    if mapped and row["why_not"]:
        row["why_not"] += "; what SQLAlchemy changes with it is heard of all the same"
    return row


def _row(
    framework: tuple[str, str], short: str, known: dict[str, set[str]], started: frozenset[str]
) -> dict[str, Any]:
    package = f"{_PREFIX}{short}"
    installed = _version(package)
    modules = {each.value.partition(":")[0] for each in _entry_points(package)} if installed else set()
    active = any(instrumentor.partition(":")[0] in modules for instrumentor in started)
    return {
        "framework": framework[0],
        "version": framework[1],
        "role": "entry" if short in _ENTRY else "client",
        "instrumentation": package,
        "instrumentation_version": installed,
        "extractors": sorted({name for module in modules for name in known.get(module, ())}),
        "active": active,
        "why_not": "" if active else _why_not(package, installed),
    }


def _why_not(package: str, installed: str) -> str:
    """Why the instrumentation would not start under opentelemetry-instrument; empty when it would."""
    if not installed:
        return f"{package} is not installed"
    disabled = [word.strip() for word in os.environ.get(_DISABLED, "").split(",")]
    names = {each.name for each in _entry_points(package)}
    if "*" in disabled or names <= set(disabled):
        return f"{_DISABLED} names it"
    conflict = get_dist_dependency_conflicts(importlib.metadata.distribution(package))
    return str(conflict) if conflict is not None else ""


def _entry_points(package: str) -> list[importlib.metadata.EntryPoint]:
    found = importlib.metadata.distribution(package).entry_points
    return [each for each in found if each.group == _INSTRUMENTORS]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
