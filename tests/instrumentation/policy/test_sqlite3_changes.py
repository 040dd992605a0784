"""Changes of data by sqlite3 under OpenTelemetry's instrumentation, in this process: how transactions end, and what is known."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from auditspan.changes import transaction as tx
from auditspan.extractors import dbapi as extractor
from auditspan.extractors import driver_connections, sqlalchemy
from auditspan.rules_file import parse
from auditspan.settings import Settings
from opentelemetry.instrumentation.dbapi import DatabaseApiIntegration
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from sqlalchemy.ext.asyncio import create_async_engine

PAGE = (Path(__file__).parents[3] / "docs/frameworks/dbapi.md").read_text()
RULES = "rules: [{table: orders, columns: [status]}]"
BY_RULE = "rules: [{table: orders, target: {id: id}}]"
INSERT = "INSERT INTO orders (id, status) VALUES (?, ?)"


@pytest.fixture(autouse=True, scope="module")
def instrumented():
    extractor.start()
    instrumentor = SQLite3Instrumentor()
    instrumentor.instrument()
    yield
    instrumentor.uninstrument()


@pytest.fixture
def shop(installed):
    def make(rules: str = RULES):
        return installed(Settings(), rules=parse(rules, "rules.yaml"))

    return make


@pytest.fixture
def connect(tmp_path):
    opened = []

    def make(**options):
        opened.append(sqlite3.connect(tmp_path / "shop.db", timeout=0, **options))
        return opened[-1]

    with closing(make()) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT UNIQUE)")
        connection.execute("CREATE TABLE visits (page TEXT)")
        connection.commit()
    yield make
    for connection in opened:
        connection.close()


def changes_of(running):
    return [record for record in running.sink.records if "db.system.name" in record.attributes]


def said(change) -> tuple[str, ...]:
    return change["action"], change["target.type"], change["target.id"], change["outcome"]


def only(running):
    (change,) = changes_of(running)
    return change


def outcomes(running) -> list[tuple[str, ...]]:
    return [(change["action"], change["outcome"], change["reason"]) for change in changes_of(running)]


def test_a_change_says_where_it_was_made_and_with_what_verb(shop, connect, tmp_path):
    running, connection = shop(), connect()
    with running.serve():
        connection.cursor().execute(INSERT, (1, "new"))
        connection.commit()
    said = {name: value for name, value in only(running).attributes.items() if name.startswith("db.")}
    assert said == {
        "db.system.name": "sqlite",
        "db.namespace": str(tmp_path / "shop.db"),
        "db.collection.name": "orders",
        "db.operation.name": "INSERT",
    }


def test_outside_a_request_a_change_is_a_record_where_a_rule_asks_and_only_there(shop, connect):
    running, connection = shop(), connect(isolation_level=None)
    connection.execute(INSERT, (1, "new"))
    assert running.sink.records == []
    running = shop("rules: [{table: orders, do: audit}]")
    connection.execute(INSERT, (2, "newer"))
    assert said(only(running)) == ("CREATE", "orders", "2", "success")
    assert only(running)["actor.id"] == "unknown"


def test_a_skipped_table_leaves_no_record(shop, connect):
    running, connection = shop("rules: [{table: ord*, do: skip}]"), connect()
    with running.serve(), connection:
        connection.execute(INSERT, (1, "new"))
    assert changes_of(running) == []


def test_no_record_is_written_before_the_commit(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        connection.execute(INSERT, (1, "new"))
        assert changes_of(running) == []
        connection.commit()
        assert outcomes(running) == [("CREATE", "success", None)]


def test_a_connection_that_commits_by_itself_has_succeeded_at_once_whatever_comes(shop, connect):
    running, connection = shop(), connect(isolation_level=None)
    with running.serve():
        connection.execute(INSERT, (1, "new"))
        assert outcomes(running) == [("CREATE", "success", None)]
        connection.rollback()
    assert len(changes_of(running)) == 1


@pytest.mark.parametrize(
    ("end", "outcome"), [("COMMIT", "success"), ("END", "success"), ("ROLLBACK", "failure")]
)
def test_a_transaction_that_the_application_wrote_itself_counts(shop, connect, end, outcome):
    running, connection = shop(), connect(isolation_level=None)
    with running.serve():
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(INSERT, (1, "new"))
        assert changes_of(running) == []
        connection.execute(end)
    assert only(running)["outcome"] == outcome


def test_a_block_of_the_connection_commits_or_rolls_back(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), connection:
        connection.execute(INSERT, (1, "new"))
    with running.serve(), suppress(KeyError), connection:
        connection.execute(INSERT, (2, "newer"))
        raise KeyError
    assert outcomes(running) == [("CREATE", "success", None), ("CREATE", "failure", tx.ROLLED_BACK)]


def test_a_commit_that_found_the_database_busy_can_be_tried_again(shop, connect):
    running, connection, reader = shop(), connect(), connect()
    connection.execute(INSERT, (1, "new"))
    connection.commit()
    with running.serve():
        reading = reader.execute("SELECT * FROM orders")
        reading.fetchone()
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM orders").fetchone()
        connection.execute(INSERT, (2, "newer"))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            connection.commit()
        assert changes_of(running) == []
        reader.rollback()
        reading.close()
        connection.commit()
    assert outcomes(running) == [("CREATE", "success", None)]


def test_what_was_rolled_back_with_a_failed_statement_is_a_failure_too(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        connection.execute(INSERT, (1, "new"))
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT OR ROLLBACK INTO orders (id) VALUES (1)")
        connection.commit()
    assert sorted(outcomes(running), key=str) == [
        ("CREATE", "failure", "the statement failed: IntegrityError"),
        ("CREATE", "failure", tx.ROLLED_BACK),
    ]


@pytest.mark.parametrize(("end", "outcome"), [("commit", "unknown"), ("rollback", "failure")])
def test_of_many_sets_of_parameters_that_failed_half_way_nobody_knows_the_rows(shop, connect, end, outcome):
    running, connection = shop(), connect()
    with running.serve():
        with pytest.raises(sqlite3.IntegrityError):
            connection.executemany(INSERT, [(1, "a"), (2, "b"), (2, "c")])
        getattr(connection, end)()
    assert only(running)["outcome"] == outcome
    assert "auditspan.change.rows" not in only(running).attributes


def test_an_end_past_the_instrumentation_leaves_the_outcome_unknown(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        cursor = connection.cursor()
        cursor.execute(INSERT, (1, "new"))
        cursor.connection.commit()  # the driver's own connection
        cursor.execute("SELECT 1")
    assert outcomes(running) == [("CREATE", "unknown", tx.NOT_SEEN)]


def test_a_connection_that_is_dropped_without_a_commit_is_a_failure_that_the_next_statement_tells(
    shop, connect
):
    running, other = shop(), connect()
    with running.serve():
        sqlite3.connect(other.execute("PRAGMA database_list").fetchone()[2]).cursor().execute(
            INSERT, (1, "new")
        )
        gc.collect()
        other.execute("SELECT 1")
    assert outcomes(running) == [("CREATE", "failure", tx.NOT_COMMITTED)]


def test_a_change_belongs_to_the_request_that_made_it_whoever_commits(shop, connect):
    running, connection = shop(), connect()
    with running.serve() as first:
        connection.execute(INSERT, (1, "new"))
    with running.serve():
        connection.execute("INSERT INTO visits VALUES ('x')")
        connection.commit()
    parents = {change["target.type"]: change["parent.span_id"] for change in changes_of(running)}
    assert parents["orders"] == f"{first.get_span_context().span_id:016x}"
    assert parents["visits"] != parents["orders"]


def test_savepoints_that_nothing_was_changed_in_do_not_pile_up(shop, connect):
    running, connection = shop(), connect(isolation_level=None)
    with running.serve():
        for _ in range(2 * tx.MAX_SAVEPOINTS):
            connection.execute("BEGIN")
            connection.execute("SAVEPOINT s")
            connection.commit()
        connection.execute("BEGIN")
        connection.execute("SAVEPOINT s")
        connection.execute(INSERT, (1, "new"))
        connection.execute("ROLLBACK TO s")
        connection.commit()
    assert outcomes(running) == [("CREATE", "failure", tx.ROLLED_BACK_TO_SAVEPOINT)]


def test_a_script_commits_what_came_before_and_each_of_its_statements(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        connection.execute(INSERT, (1, "new"))
        connection.executescript("UPDATE orders SET status = 'x'; -- ;\nDELETE FROM \"visits\";")
        connection.rollback()
    assert [said(change)[:2] + said(change)[3:] for change in changes_of(running)] == [
        ("CREATE", "orders", "success"),
        ("UPDATE", "orders", "success"),
        ("DELETE", "visits", "success"),
    ]


def test_a_scripts_own_transactions_count(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        connection.cursor().executescript(
            "BEGIN; INSERT INTO orders (id) VALUES (1); COMMIT;"
            "BEGIN; INSERT INTO visits VALUES ('x'); ROLLBACK;"
        )
    assert outcomes(running) == [("CREATE", "success", None), ("CREATE", "failure", tx.ROLLED_BACK)]


def test_how_far_a_script_came_that_failed_is_unknown(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), pytest.raises(sqlite3.OperationalError):
        connection.executescript("DELETE FROM orders; INSERT INTO nowhere VALUES (1);")
    assert [outcome for _, outcome, _ in outcomes(running)] == ["unknown", "unknown"]


def test_what_a_trigger_will_do_is_not_done_when_it_is_made(shop, connect):
    running, connection = shop(), connect()
    with running.serve():
        connection.executescript(
            "CREATE TRIGGER t AFTER DELETE ON orders BEGIN"
            " UPDATE visits SET page = CASE WHEN 1 THEN 'x' END; DELETE FROM visits; END;"
        )
    assert changes_of(running) == []


@pytest.mark.parametrize(
    ("sql", "parameters", "expected"),
    [
        (INSERT, (7, "new"), ("CREATE", "7", 1)),
        ('insert into "orders" ("id") values (:id)', {"id": 7}, ("CREATE", "7", 1)),
        ("/* by hand */ INSERT INTO main.orders (id) VALUES (7)", (), ("CREATE", "7", 1)),
        ("INSERT INTO orders (id) VALUES (?), (?), (?)", (7, 8, 9), ("CREATE", None, 3)),
        ("INSERT INTO orders (id) VALUES (?) RETURNING status", (7,), ("CREATE", "7", 1)),
        ("INSERT INTO orders SELECT 7, page FROM visits", (), ("CREATE", None, 1)),
        ("INSERT OR IGNORE INTO orders (id) VALUES (7)", (), ("CREATE", "7", 1)),
        ("WITH x(n) AS (SELECT 7) INSERT INTO orders (id) SELECT n FROM x", (), ("CREATE", None, None)),
        ("REPLACE INTO orders (id) VALUES (?)", (7,), ("UPDATE", "7", 1)),
        ("INSERT OR REPLACE INTO orders (id) VALUES (?)", (7,), ("UPDATE", "7", 1)),
        (
            "INSERT INTO orders (id, status) VALUES (?, ?) ON CONFLICT (status) DO UPDATE SET status = 'x'",
            (7, "there"),
            ("CREATE", None, 1),
        ),
        ("UPDATE orders SET status = ? WHERE id = ?", ("paid", 1), ("UPDATE", "1", 1)),
        ("UPDATE orders SET status = 'a' WHERE id = ? AND status <> ?", (1, "b"), ("UPDATE", "1", 1)),
        ("UPDATE orders SET status = ? WHERE id = ? OR status = ?", ("z", 1, "q"), ("UPDATE", None, 1)),
        ("UPDATE orders SET status = ? FROM visits WHERE visits.page = ?", ("z", "p"), ("UPDATE", None, 1)),
        ("DELETE FROM orders WHERE id IN (?, ?)", (1, 404), ("DELETE", None, 1)),
        ("DELETE FROM orders WHERE (orders.id = 1)", (), ("DELETE", "1", 1)),
        ("DELETE FROM orders", (), ("DELETE", None, 1)),
    ],
)
def test_a_row_is_named_by_its_key_where_the_statement_surely_says_it(
    shop, connect, sql, parameters, expected
):
    running, connection = shop(), connect()
    with connection:
        connection.execute(INSERT, (1, "there"))
        connection.execute("INSERT INTO visits VALUES ('p')")
    with running.serve(), connection:
        connection.execute(sql, parameters).close()
    change = only(running)
    assert (change["action"], change["target.id"], change.attributes.get("auditspan.change.rows")) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM orders",
        "DELETE FROM orders WHERE id = 404",
        "INSERT OR IGNORE INTO orders (id) VALUES (1)",
        "CREATE TABLE more (id)",
    ],
)
def test_what_changes_no_row_leaves_no_record(shop, connect, sql):
    running, connection = shop(), connect()
    with connection:
        connection.execute(INSERT, (1, "there"))
    with running.serve(), connection:
        connection.execute(sql).close()
    assert changes_of(running) == []


def test_the_key_that_the_database_gave_counts_where_somebody_said_which_column_it_is(shop, connect):
    connection = connect()
    for rules, expected in ((BY_RULE, "1"), (RULES, None)):
        running = shop(rules)
        with running.serve():
            connection.execute("INSERT INTO orders (status) VALUES ('new')")
            connection.commit()
        connection.executescript("DELETE FROM orders")
        assert only(running)["target.id"] == expected


def test_values_of_a_named_column_are_what_was_bound_or_written(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), connection:
        connection.executemany(INSERT, [(1, "a"), (2, "b")])
        connection.execute("UPDATE orders SET status = 'it''s' WHERE id = 1")
        connection.execute("UPDATE orders SET status = lower(?) WHERE id = 2", ("C",))
    many, written, computed = changes_of(running)
    assert many.attributes["auditspan.change.after.status"] == ["a", "b"]
    assert written.attributes["auditspan.change.after.status"] == "it's"
    assert "auditspan.change.after.status" not in computed.attributes


def test_no_value_is_in_a_record_that_no_rule_names(shop, connect):
    running, connection = shop("rules: []"), connect()
    with running.serve(), connection:
        connection.execute(INSERT, (1, "hunter2"))
        connection.execute("UPDATE orders SET status = 'hunter3' WHERE status = 'hunter2'")
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(INSERT, (1, "hunter2"))
    assert len(changes_of(running)) == 3
    assert "hunter" not in str([change.span for change in changes_of(running)])


def test_an_iterator_of_parameters_is_left_to_the_driver(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), connection:
        connection.executemany(INSERT, ((n, str(n)) for n in range(5)))
    assert only(running).attributes["auditspan.change.rows"] == 5
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (5,)


def test_ten_thousand_rows_are_one_small_record(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), connection:
        connection.executemany(INSERT, [(n, str(n)) for n in range(10_000)])
    assert only(running).attributes["auditspan.change.rows"] == 10_000
    assert len(only(running).attributes["auditspan.change.keys"]) == tx.MAX_ROWS
    assert only(running).span.ByteSize() < 10_000


def test_a_long_insert_of_many_rows_is_named_by_its_parameters(shop, connect):
    running, connection = shop(), connect()
    sql = "INSERT INTO orders (id, status) VALUES " + ", ".join(["(?, ?)"] * 900)
    with running.serve(), connection:
        connection.execute(sql, [value for n in range(900) for value in (n, f"s{n}")])
    attributes = only(running).attributes
    assert attributes["auditspan.change.rows"] == 900
    assert attributes["auditspan.change.keys"] == [str(n) for n in range(tx.MAX_ROWS)]
    assert attributes["auditspan.change.after.status"] == [f"s{n}" for n in range(tx.MAX_ROWS)]


def test_a_thousand_statements_are_a_bounded_number_of_records_that_count_them_all(shop, connect):
    running, connection = shop(), connect()
    with running.serve(), connection:
        for number in range(1_000):
            connection.execute(INSERT, (number, str(number)))
    changes = changes_of(running)
    assert len(changes) == tx.MAX_CHANGES + 1
    assert sum(change.attributes["auditspan.change.rows"] for change in changes) == 1_000


def test_a_failure_of_ours_never_reaches_the_application(shop, connect, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(driver_connections, "rows_of", broken)
    running, connection = shop(), connect()
    with caplog.at_level(logging.WARNING), running.serve(), connection:
        connection.execute(INSERT, (1, "new"))
        connection.execute(INSERT, (2, "newer"))
    assert connection.execute("SELECT count(*) FROM orders").fetchone() == (2,)
    assert changes_of(running) == []
    assert len([r for r in caplog.records if "Auditspan" in r.getMessage()]) <= 1


def test_a_connection_that_was_instrumented_by_hand_is_read_too(shop, connect, tmp_path):
    running = shop()
    SQLite3Instrumentor().uninstrument()
    try:
        bare = sqlite3.connect(tmp_path / "shop.db")
    finally:
        SQLite3Instrumentor().instrument()
    with (
        closing(SQLite3Instrumentor().instrument_connection(bare)) as connection,
        running.serve(),
        connection,
    ):
        connection.cursor().execute(INSERT, (1, "new"))
    assert outcomes(running) == [("CREATE", "success", None)]


@pytest.fixture
def engine(connect, tmp_path):
    sqlalchemy.start()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db")
    yield engine
    engine.dispose()


def test_what_sqlalchemy_tells_is_not_told_again_and_what_it_does_not_is(shop, engine):
    running = shop()
    with running.serve(), engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO orders (id, status) VALUES (1, 'new')"))
        connection.exec_driver_sql("INSERT INTO visits VALUES ('x')")
        connection.exec_driver_sql(INSERT, [(2, "a"), (3, "b")])
    assert sorted(change["target.type"] for change in changes_of(running)) == ["orders", "orders", "visits"]
    running = shop()
    with running.serve(), closing(engine.raw_connection()) as raw:  # the driver's, past SQLAlchemy
        raw.cursor().execute(INSERT, (4, "c"))
        raw.commit()
    assert said(only(running)) == ("CREATE", "orders", "4", "success")


def test_sqlalchemys_asynchronous_engine_is_told_once_also_outside_of_requests(shop, engine):
    running = shop("rules: [{table: orders, do: audit}]")

    async def run() -> None:
        other = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
        async with other.begin() as connection:
            await connection.execute(sa.text("INSERT INTO orders (id, status) VALUES (1, 'new')"))
        await other.dispose()

    asyncio.run(run())
    assert said(only(running))[:2] == ("CREATE", "orders")


def test_the_extractor_imports_without_a_driver_or_its_instrumentation():
    absent = ("psycopg", "psycopg2", "asyncpg", "opentelemetry.instrumentation.dbapi")
    code = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
        "from auditspan.extractors import dbapi\ndbapi.start(); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_the_example_of_the_documentation_does_what_the_page_says(shop):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (rules,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    running, shown = shop(rules), {}
    exec(compile(code, "dbapi.md", "exec", dont_inherit=True), shown)
    with running.serve():
        shown["pay"](7)
    shown["connection"].close()
    assert said(only(running)) == ("UPDATE", "order", "7", "success")
    assert only(running).attributes["auditspan.change.before.status"] == "new"
    assert only(running).attributes["auditspan.change.after.status"] == "paid"


def test_connections_that_are_made_at_the_same_time_keep_their_own_files(shop, tmp_path):
    both = threading.Barrier(2, timeout=10)

    class Slow(sqlite3.Connection):
        def __init__(self, *args, **kwargs):
            both.wait()  # when each thread has said which file it wants
            super().__init__(*args, **kwargs)

    def work(number: int) -> None:
        with closing(sqlite3.connect(tmp_path / f"{number}.db", factory=Slow)) as connection:
            connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT)")
            with running.serve():
                connection.execute(INSERT, (number, "paid"))
                connection.commit()

    running = shop()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, [1, 2]))
    assert {change["target.id"]: change.attributes["db.namespace"] for change in changes_of(running)} == {
        "1": str(tmp_path / "1.db"),
        "2": str(tmp_path / "2.db"),
    }


def test_a_connection_that_names_no_database_does_not_get_the_last_ones(shop):
    """As MySQL's may; what OpenTelemetry knows of connections, all of them share."""

    class Connection(sqlite3.Connection):
        db = b"shop"

    running = shop()
    integration = DatabaseApiIntegration("t", "mysql", connection_attributes={"database": "db"})
    for name in (b"shop", None):
        Connection.db = name
        made = integration.wrapped_connection(Connection, (":memory:",), {})
        with closing(made) as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, status TEXT)")
            with running.serve():
                cursor.execute(INSERT, (1, "paid"))
                connection.commit()
    assert [change.attributes.get("db.namespace", "") for change in changes_of(running)] == ["shop", ""]
