"""Bring a database to the schema of this version: numbered steps, each recorded once it is done.

A step is a list of statements that may run again: a crash in the middle, or a second collector that starts at the
same moment, repeats them without harm. `schema_migrations` says which steps are done. A database that knows a
step that this code does not is newer than the code, and is left alone. A database whose table somebody dropped
gets all steps again, whatever is recorded: without its table nothing could be stored, however often one starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from auditspan_collector import crashpoint
from auditspan_collector.errors import StoreRejected
from auditspan_collector.schema import TABLE, ddl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MIGRATIONS_TABLE: Final = "schema_migrations"


class Client(Protocol):
    """What a migration asks of ClickHouse. Both may raise StoreUnavailable and StoreRejected."""

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> None:
        """Run a statement; it is done when this returns."""

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> Sequence[tuple[Any, ...]]:
        """The rows that a query gives."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A step: *statements* takes database and cluster ("" without one) and gives SQL that may run again."""

    version: int
    name: str
    statements: Callable[[str, str], tuple[str, ...]]


# Append only. A step that changes the table is an ALTER with IF (NOT) EXISTS: on a new database step 1 creates the
# table as schema.py defines it by then.
MIGRATIONS: Final = (
    Migration(1, "create records", ddl.create_table),
    Migration(2, "create the OpenTelemetry views", ddl.create_views),
    Migration(3, "create the view of conflicts", ddl.create_conflicts),
)


def migrate(
    client: Client,
    database: str,
    cluster: str = "",
    migrations: Sequence[Migration] = MIGRATIONS,
) -> list[str]:
    """Apply what is missing, in order; returns the names of the steps that this call applied.

    Creates *database* where there is none. Raises StoreRejected when the database is newer than this code, or
    ClickHouse refuses a step (the ones before it stay recorded), and ValueError for an impossible name.
    """
    where = f"{ddl.quoted(database)}.{ddl.quoted(MIGRATIONS_TABLE)}"
    on_cluster = ddl.on_cluster(cluster)
    client.execute(f"CREATE DATABASE IF NOT EXISTS {ddl.quoted(database)}{on_cluster}")
    client.execute(
        f"CREATE TABLE IF NOT EXISTS {where}{on_cluster} "
        "(version UInt32, name String, applied_at DateTime64(3, 'UTC') DEFAULT now64(3)) "
        f"ENGINE = {ddl.merge_tree(cluster)} ORDER BY version"
    )
    done = {int(row[0]) for row in client.rows(f"SELECT DISTINCT version FROM {where}")}  # noqa: S608 - quoted
    newest_known = migrations[-1].version
    if done and max(done) > newest_known:
        raise StoreRejected(
            f"database {database} has schema version {max(done)}, and this auditspan knows none after {newest_known}. "
            "Upgrade auditspan, or choose another database (clickhouse.database)."
        )
    if not _has_table(client, database):
        done = set()
    applied = []
    for migration in migrations:
        if migration.version in done:
            continue
        for statement in migration.statements(database, cluster):
            client.execute(statement)
            crashpoint.reach("migration.statement")
        # Last, so that a crash before this line repeats the step and never skips it.
        client.execute(
            f"INSERT INTO {where} (version, name) SELECT {{version:UInt32}}, {{name:String}}",
            {"version": migration.version, "name": migration.name},
        )
        crashpoint.reach("migration.step")
        applied.append(migration.name)
    return applied


def _has_table(client: Client, database: str) -> bool:
    found = client.rows(
        "SELECT count() FROM system.tables WHERE database = {database:String} AND name = {table:String}",
        {"database": database, "table": TABLE},
    )
    return bool(found[0][0])
