"""migrations: each step once, in order, without harm when it runs again, and never backwards."""

from __future__ import annotations

import pytest
from auditspan_collector.errors import StoreRejected
from auditspan_collector.migrations import MIGRATIONS, Migration, migrate


def add_column(database, cluster):
    return (f"ALTER TABLE `{database}`.records ADD COLUMN IF NOT EXISTS extra String",)


def alter_nothing(database, cluster):
    return (f"ALTER TABLE `{database}`.nowhere ADD COLUMN extra String",)


NEXT = Migration(len(MIGRATIONS) + 1, "add a column", add_column)


def applied_versions(engine, database):
    return [
        row[0] for row in engine.rows(f"SELECT version FROM {database}.schema_migrations ORDER BY version")
    ]


def test_a_new_database_gets_every_step_once_and_in_order(engine):
    assert migrate(engine, "fresh") == [step.name for step in MIGRATIONS]
    assert migrate(engine, "fresh") == []
    assert applied_versions(engine, "fresh") == [step.version for step in MIGRATIONS]


def test_versions_are_numbered_without_a_gap():
    assert [step.version for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_an_older_database_gets_what_it_lacks(engine):
    migrate(engine, "older")
    assert migrate(engine, "older", migrations=(*MIGRATIONS, NEXT)) == ["add a column"]
    assert engine.rows("SELECT count() FROM system.columns WHERE database = 'older' AND name = 'extra'") == [
        (1,)
    ]


def test_a_step_that_was_done_but_not_recorded_is_done_again_without_harm(engine):
    migrate(engine, "torn")
    engine.execute("TRUNCATE TABLE torn.schema_migrations")
    assert migrate(engine, "torn") == [step.name for step in MIGRATIONS]


def test_a_table_that_somebody_dropped_is_made_again(engine):
    migrate(engine, "dropped")
    engine.execute("DROP TABLE dropped.records")
    assert migrate(engine, "dropped") == [step.name for step in MIGRATIONS]
    assert engine.rows("SELECT count() FROM dropped.records") == [(0,)]
    assert migrate(engine, "dropped") == []


class Interleaved:
    """A client under which a second collector runs all migrations before each of our statements."""

    def __init__(self, engine, database):
        self._engine, self._database = engine, database

    def execute(self, sql, parameters=None):
        migrate(self._engine, self._database)
        self._engine.execute(sql, parameters)

    def rows(self, sql, parameters=None):
        answer = self._engine.rows(sql, parameters)
        migrate(self._engine, self._database)
        return answer


def test_two_that_start_at_once_do_not_disturb_each_other(engine):
    migrate(Interleaved(engine, "raced"), "raced")
    assert set(applied_versions(engine, "raced")) == {step.version for step in MIGRATIONS}
    assert migrate(engine, "raced") == []


def test_a_failed_step_is_not_recorded_and_the_ones_before_it_are(engine):
    broken = Migration(len(MIGRATIONS) + 1, "broken", alter_nothing)
    with pytest.raises(RuntimeError, match="nowhere"):
        migrate(engine, "broken", migrations=(*MIGRATIONS, broken))
    assert applied_versions(engine, "broken") == [step.version for step in MIGRATIONS]


def test_a_database_that_is_newer_than_the_code_is_left_alone(engine):
    migrate(engine, "newer", migrations=(*MIGRATIONS, NEXT))
    with pytest.raises(
        StoreRejected,
        match=rf"schema version {NEXT.version}, and this auditspan knows none after {len(MIGRATIONS)}\. Upgrade",
    ):
        migrate(engine, "newer")


def test_a_database_name_is_checked_before_anything_is_sent(engine):
    with pytest.raises(ValueError, match="no name of a database"):
        migrate(engine, "x; DROP DATABASE audit")
