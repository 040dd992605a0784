"""Changes of data by psycopg and psycopg2 against a real PostgreSQL: how transactions end there, and what only they do."""

from __future__ import annotations

import asyncio
from contextlib import closing

import psycopg
import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from auditspan.changes import transaction as tx
from auditspan.extractors import dbapi as extractor
from auditspan.rules_file import parse
from auditspan.settings import Settings
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.psycopg2 import Psycopg2Instrumentor
from psycopg import sql

RULES = "rules: [{table: orders, columns: [status]}]"
INSERT = "INSERT INTO orders (id, status) VALUES (%s, %s)"
INSTRUMENTORS = (PsycopgInstrumentor(), Psycopg2Instrumentor())


@pytest.fixture(autouse=True, scope="module")
def instrumented():
    extractor.start()
    for instrumentor in INSTRUMENTORS:
        instrumentor.instrument()
    yield
    for instrumentor in INSTRUMENTORS:
        instrumentor.uninstrument()


@pytest.fixture(scope="module")
def dsn(postgresql):
    with closing(psycopg.connect(postgresql.dsn, autocommit=True)) as connection:
        connection.execute("CREATE DATABASE changes")
        dsn = postgresql.dsn.replace("dbname=postgres", "dbname=changes")
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "CREATE TABLE orders (id SERIAL PRIMARY KEY, status TEXT UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("CREATE SCHEMA app CREATE TABLE visits (page TEXT)")
    return dsn


@pytest.fixture(autouse=True)
def empty(dsn):
    with psycopg.connect(dsn) as connection:
        connection.execute("TRUNCATE orders RESTART IDENTITY; TRUNCATE app.visits")


@pytest.fixture
def shop(installed):
    def make(rules: str = RULES):
        return installed(Settings(), rules=parse(rules, "rules.yaml"))

    return make


@pytest.fixture(params=[psycopg, psycopg2], ids=["psycopg", "psycopg2"])
def driver(request):
    return request.param


@pytest.fixture
def connection(driver, dsn):
    connection = driver.connect(dsn)
    yield connection
    connection.close()


def changes_of(running):
    return [record for record in running.sink.records if "db.system.name" in record.attributes]


def told(running) -> list[tuple[str, ...]]:
    return [
        (change["action"], change["target.id"], change["outcome"], change["reason"])
        for change in changes_of(running)
    ]


def test_a_change_says_where_it_was_made_and_with_what_verb(shop, connection):
    running = shop()
    with running.serve():
        connection.cursor().execute("INSERT INTO app.visits VALUES ('hunter2')")
        connection.commit()
    (change,) = changes_of(running)
    assert {name: value for name, value in change.attributes.items() if name.startswith("db.")} == {
        "db.system.name": "postgresql",
        "db.namespace": "changes",
        "db.collection.name": "app.visits",
        "db.operation.name": "INSERT",
    }
    assert "hunter2" not in str(change.span)


def test_a_connection_that_commits_by_itself_has_succeeded_at_once(shop, connection):
    running = shop()
    connection.autocommit = True
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
    assert told(running) == [("CREATE", "1", "success", None)]


def test_a_transaction_that_the_application_wrote_itself_counts(shop, connection):
    running = shop()
    connection.autocommit = True
    with running.serve():
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute(INSERT, (1, "new"))
        cursor.execute("ROLLBACK")
        cursor.execute("BEGIN; INSERT INTO orders (id) VALUES (2); COMMIT")
    assert [outcome for *_, outcome, _ in told(running)] == ["failure", "success"]


def test_a_commit_of_a_transaction_that_is_broken_rolls_it_back(shop, connection, driver):
    running = shop()
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
        with pytest.raises(driver.IntegrityError):
            connection.cursor().execute("INSERT INTO orders (id) VALUES (1)")
        connection.commit()
    assert told(running) == [
        ("CREATE", "1", "failure", tx.ROLLED_BACK),
        ("CREATE", None, "failure", "the statement failed: UniqueViolation"),
    ]


def test_a_commit_that_a_deferred_constraint_refuses_is_a_failure(shop, connection, driver):
    running = shop()
    with running.serve():
        connection.cursor().executemany(INSERT, [(1, "same"), (2, "same")])
        with pytest.raises(driver.IntegrityError):
            connection.commit()
    (change,) = changes_of(running)
    assert (change["outcome"], change["reason"]) == ("failure", "the commit failed: UniqueViolation")
    assert change.attributes["auditspan.change.keys"] == ["1", "2"]


def test_the_failure_inside_a_savepoint_leaves_the_rest_a_success(shop, connection, driver):
    running = shop()
    with running.serve():
        cursor = connection.cursor()
        cursor.execute(INSERT, (1, "new"))
        cursor.execute("SAVEPOINT mine")
        cursor.execute(INSERT, (2, "other"))
        with pytest.raises(driver.IntegrityError):
            cursor.execute(INSERT, (1, "twice"))
        cursor.execute("ROLLBACK TO mine")
        connection.commit()
    assert told(running) == [
        ("CREATE", "1", "success", None),
        ("CREATE", "2", "failure", tx.ROLLED_BACK_TO_SAVEPOINT),
        ("CREATE", None, "failure", "the statement failed: UniqueViolation"),
    ]


def test_a_connection_that_was_lost_is_a_failure(shop, connection, driver, dsn):
    running = shop()
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
        with closing(driver.connect(dsn)) as other:
            other.cursor().execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(driver.OperationalError):
            connection.cursor().execute("SELECT 1")
    assert told(running) == [("CREATE", "1", "failure", tx.LOST)]


def test_a_connection_that_was_lost_when_it_should_commit_leaves_the_outcome_unknown(
    shop, connection, driver, dsn
):
    running = shop()
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
        with closing(driver.connect(dsn)) as other:
            other.cursor().execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
        with pytest.raises(driver.OperationalError):
            connection.commit()
    assert told(running) == [("CREATE", "1", "unknown", "the connection was lost while it committed")]


def test_a_connection_that_is_closed_without_a_commit_is_a_failure(shop, connection):
    running = shop()
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
        connection.close()
    assert told(running) == [("CREATE", "1", "failure", tx.NOT_COMMITTED)]


def test_a_transaction_in_two_phases_is_left_unknown_at_the_first(shop, connection):
    running = shop()
    connection.autocommit = True
    with running.serve():
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        cursor.execute(INSERT, (1, "new"))
        cursor.execute("PREPARE TRANSACTION 'one'")
        cursor.execute("ROLLBACK PREPARED 'one'")
    assert told(running) == [("CREATE", "1", "unknown", tx.NOT_SEEN)]


@pytest.mark.parametrize(
    ("text", "parameters", "expected"),
    [
        ("UPDATE orders SET status = %(s)s WHERE id = %(id)s::int", {"s": "x", "id": 1}, ("UPDATE", "1", 1)),
        ("UPDATE orders SET status = 'x' WHERE status LIKE 'ne%%' AND id = %s", (1,), ("UPDATE", "1", 1)),
        ("UPDATE orders SET status = E'\\'' WHERE id = %s", (1,), ("UPDATE", None, 1)),
        ("DELETE FROM orders WHERE id = ANY(%s)", ([1],), ("DELETE", "1", 1)),
        ("DELETE FROM orders USING app.visits AS v WHERE v.page = %s AND orders.id = %s", ("p", 1), ("DELETE", None, 1)),
        ("INSERT INTO orders (id) VALUES (%s) ON CONFLICT (id) DO NOTHING", (5,), ("CREATE", "5", 1)),
        ("INSERT INTO orders (id) VALUES (%s) ON CONFLICT (id) DO UPDATE SET status = 'x'", (1,), ("CREATE", None, 1)),
        (
            "MERGE INTO orders USING app.visits ON false WHEN NOT MATCHED THEN INSERT (id) VALUES (9)",
            None,
            ("UPDATE", None, 1),
        ),
        (b"DELETE FROM orders WHERE id = 1", None, ("DELETE", "1", 1)),
    ],
)  # fmt: skip
def test_a_row_is_named_by_its_key_where_the_statement_surely_says_it(
    shop, connection, text, parameters, expected
):
    connection.cursor().execute(INSERT, (1, "new"))
    connection.cursor().execute("INSERT INTO app.visits VALUES ('p')")
    connection.commit()
    running = shop()
    with running.serve():
        connection.cursor().execute(text, parameters)
        connection.commit()
    (change,) = changes_of(running)
    assert (change["action"], change["target.id"], change.attributes["auditspan.change.rows"]) == expected


def test_both_statements_of_a_with_are_changes_and_the_last_one_is_counted(shop, connection):
    connection.cursor().execute(INSERT, (1, "new"))
    connection.commit()
    running = shop()
    with running.serve():
        connection.cursor().execute(
            "WITH gone AS (DELETE FROM orders RETURNING status) INSERT INTO app.visits SELECT status FROM gone"
        )
        connection.commit()
    assert [
        (change["action"], change["target.type"], change.attributes.get("auditspan.change.rows"))
        for change in changes_of(running)
    ] == [("DELETE", "orders", None), ("CREATE", "app.visits", 1)]


def test_psycopg_tells_the_keys_and_values_that_were_returned_and_leaves_them_to_the_application(shop, dsn):
    running = shop()
    with psycopg.connect(dsn) as connection, running.serve():
        cursor = connection.execute(
            "INSERT INTO orders (status) VALUES (lower('A')), (lower('B')) RETURNING id, status"
        )
        assert cursor.fetchall() == [(1, "a"), (2, "b")]
        connection.commit()
    (change,) = changes_of(running)
    assert change.attributes["auditspan.change.keys"] == ["1", "2"]
    assert change.attributes["auditspan.change.after.status"] == ["a", "b"]


def test_psycopgs_transaction_blocks_are_transactions_and_savepoints(shop, dsn):
    running = shop()
    with closing(psycopg.connect(dsn, autocommit=True)) as connection, running.serve():
        with connection.transaction():
            with connection.transaction():
                connection.execute(INSERT, (1, "inner"))
                raise psycopg.Rollback
            connection.execute(INSERT, (2, "outer"))
            assert changes_of(running) == []
        with connection.transaction(force_rollback=True):
            connection.execute(INSERT, (3, "never"))
    assert told(running) == [
        ("CREATE", "1", "failure", tx.ROLLED_BACK_TO_SAVEPOINT),
        ("CREATE", "2", "success", None),
        ("CREATE", "3", "failure", tx.ROLLED_BACK),
    ]


def test_psycopgs_copy_is_one_change_with_its_rows(shop, dsn):
    running = shop()
    with psycopg.connect(dsn) as connection, running.serve():
        with connection.cursor().copy("COPY orders (id, status) FROM STDIN") as copy:
            copy.write_row((1, "a"))
            copy.write_row((2, "b"))
        with connection.cursor().copy("COPY orders TO STDOUT") as copy:
            assert len(list(copy.rows())) == 2
        connection.commit()
    (change,) = changes_of(running)
    assert (change["action"], change.attributes["auditspan.change.rows"]) == ("CREATE", 2)


def test_what_a_pipeline_has_not_answered_is_no_success(shop, dsn):
    running = shop()
    with psycopg.connect(dsn) as connection, running.serve():
        with connection.pipeline():
            connection.execute(INSERT, (1, "a"))
        connection.commit()
    assert told(running) == [("CREATE", "1", "unknown", tx.NOT_SEEN)]


def test_psycopgs_asynchronous_connections_are_read_too_and_tasks_are_kept_apart(shop, dsn):
    running = shop()

    async def change(number: int) -> None:
        with running.serve():
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                statement = sql.SQL("INSERT INTO {} (id) VALUES (%s)").format(sql.Identifier("orders"))
                await connection.execute(statement, (number,))
                async with connection.cursor().copy("COPY app.visits FROM STDIN") as copy:
                    await copy.write_row(("x",))

    async def run() -> None:
        await asyncio.gather(*(change(number) for number in range(1, 6)))

    asyncio.run(run())
    changes = changes_of(running)
    by_request = {change["parent.span_id"]: change for change in changes if change["target.id"]}
    assert sorted(change["target.id"] for change in by_request.values()) == ["1", "2", "3", "4", "5"]
    assert len(changes) == 10
    assert {change["outcome"] for change in changes} == {"success"}


def test_a_connection_of_a_class_of_the_applications_own_stays_one(shop, dsn):
    class Own(psycopg2.extensions.connection):
        pass

    running = shop()
    own = psycopg2.connect(dsn, connection_factory=Own)
    assert isinstance(own, Own)
    with running.serve(), own:
        psycopg2.extras.execute_values(
            own.cursor(), "INSERT INTO orders (id, status) VALUES %s", [(1, "a"), (2, "b")]
        )
    own.close()
    (change,) = changes_of(running)
    assert (change["outcome"], change.attributes["auditspan.change.rows"]) == ("success", 2)
