"""Changes of data by SQLAlchemy: in a real service, and with real engines in this process."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from auditspan.changes import transaction as tx
from auditspan.extractors import sqlalchemy as extractor
from auditspan.rules import SECRET_COLUMNS
from auditspan.rules_file import parse
from auditspan.settings import Settings
from auditspan.testing import capture
from flask import Flask
from opentelemetry import trace
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, declarative_base

APPS = Path(__file__).parent / "apps"
PAGE = (Path(__file__).parents[3] / "docs/frameworks/sqlalchemy.md").read_text()
RULES = "rules: [{table: orders, columns: [status]}]"
METADATA = sa.MetaData()
ORDERS = sa.Table(
    "orders",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("status", sa.String),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory, harness):
    folder = tmp_path_factory.mktemp("sql")
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    rules.chmod(0o600)
    service = harness.start(
        folder,
        [sys.executable, str(APPS / "sql_shop.py")],
        {"DATABASE": str(folder / "shop.db"), "OTEL_AUDITSPAN_RULES": str(rules)},
    )
    yield service
    service.stop()


def called(service, method: str, path: str, count: int, user: str = "alice"):
    """The request's record where there is one, and those of its changes."""
    _, trace_id = service.call(method, path, headers={"x-user": user})
    return split(service.records(trace_id, count))


def split(records):
    changes = [record for record in records if "db.system.name" in record.attributes]
    requests = [record for record in records if record not in changes]
    return (requests[0] if requests else None), changes


def said(change) -> tuple[str, ...]:
    return change["action"], change["target.type"], change["target.id"], change["outcome"]


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([("POST", "/orders/1")], ("CREATE", "orders", "1", "success")),
        ([("POST", "/orders/2"), ("PUT", "/orders/2")], ("UPDATE", "orders", "2", "success")),
        ([("POST", "/orders/3"), ("DELETE", "/orders/3")], ("DELETE", "orders", "3", "success")),
        ([("POST", "/core/4/insert")], ("CREATE", "orders", "4", "success")),
        ([("POST", "/orders/5"), ("POST", "/core/5/update")], ("UPDATE", "orders", "5", "success")),
        ([("POST", "/orders/6"), ("POST", "/core/6/delete")], ("DELETE", "orders", "6", "success")),
        ([("POST", "/core/7/text")], ("CREATE", "visits", None, "success")),
        ([("POST", "/rolled-back/8")], ("CREATE", "orders", "8", "failure")),
    ],
    ids=[
        "orm-insert",
        "orm-update",
        "orm-delete",
        "core-insert",
        "core-update",
        "core-delete",
        "text",
        "rolled-back",
    ],
)
def test_a_change_is_a_record_inside_its_request_under_its_actor(service, requests, expected):
    for method, path in requests:
        request, (change,) = called(service, method, path, 2)
    assert said(change) == expected
    assert (change["actor.id"], change["parent.span_id"]) == ("alice", request.span.span_id.hex())
    assert change.attributes["auditspan.change.rows"] == 1
    assert "hunter" not in str(change.span)
    assert change["reason"] == (tx.ROLLED_BACK if expected[3] == "failure" else None)


def test_values_are_those_of_columns_that_a_rule_names_before_and_after(service):
    called(service, "POST", "/orders/20", 2)
    _, (change,) = called(service, "PUT", "/orders/20", 2)
    values = {k: v for k, v in change.attributes.items() if k.startswith("auditspan.change.")}
    assert values == {
        "auditspan.change.rows": 1,
        "auditspan.change.keys": ["20"],
        "auditspan.change.before.status": "new",
        "auditspan.change.after.status": "paid",
    }


def test_what_a_savepoint_undid_is_a_failure_while_the_rest_succeeds(service):
    _, changes = called(service, "POST", "/savepoint/30", 3)
    assert {change["target.type"]: (change["outcome"], change["reason"]) for change in changes} == {
        "orders": ("success", None),
        "visits": ("failure", tx.ROLLED_BACK_TO_SAVEPOINT),
    }


def test_a_violated_constraint_is_a_failure_with_its_kind_and_no_values(service):
    _, changes = called(service, "POST", "/twice/31", 3)
    assert sorted((change["outcome"], change["reason"]) for change in changes) == [
        ("failure", "the statement failed: IntegrityError"),
        ("failure", tx.ROLLED_BACK),
    ]
    assert "hunter" not in str([change.span for change in changes])


def test_a_write_in_a_read_is_a_record(service):
    request, (change,) = called(service, "GET", "/pages/home", 1)
    assert request is None
    assert said(change)[:2] == ("CREATE", "visits")
    assert change["actor.id"] == "alice"


def test_the_changes_of_parallel_requests_are_never_mixed_up(service):
    def call(number: int) -> tuple[str, str, int]:
        user, order = ("alice", "bob")[number % 2], 1000 + number
        return service.call("POST", f"/orders/{order}", headers={"x-user": user})[1], user, order

    with ThreadPoolExecutor(8) as pool:
        calls = list(pool.map(call, range(50)))
    for trace_id, user, order in calls:
        request, (change,) = split(service.records(trace_id, 2))
        assert (change["actor.id"], change["target.id"]) == (user, str(order))
        assert change["parent.span_id"] == request.span.span_id.hex()


def test_the_service_says_nothing_unusual(service):
    assert "Auditspan" not in service.log


@pytest.fixture
def shop(installed):
    extractor.start()

    def make(rules: str = RULES):
        return installed(Settings(), rules=parse(rules, "rules.yaml"))

    return make


@pytest.fixture
def engine(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shop.db", future=True)
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


def changes_of(running):
    return split(running.sink.records)[1]


def test_outside_a_request_a_change_is_a_record_where_a_rule_asks_and_only_there(shop, engine):
    running = shop()
    with engine.begin() as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
    assert running.sink.records == []
    running = shop("rules: [{table: orders, do: audit}]")
    with engine.begin() as connection:
        connection.execute(ORDERS.insert().values(id=2, status="new"))
    (change,) = changes_of(running)
    assert said(change) == ("CREATE", "orders", "2", "success")
    assert change["actor.id"] == "unknown"


def test_a_skipped_table_leaves_no_record(shop, engine):
    running = shop("rules: [{table: ord*, do: skip}]")
    with running.serve(), engine.begin() as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
    assert changes_of(running) == []


def test_an_insert_of_ten_thousand_rows_is_one_small_record(shop, engine):
    running = shop()
    with running.serve(), engine.begin() as connection:
        connection.execute(ORDERS.insert(), [{"id": n, "status": "new"} for n in range(10_000)])
    (change,) = changes_of(running)
    assert change.attributes["auditspan.change.rows"] == 10_000
    assert len(change.attributes["auditspan.change.keys"]) == tx.MAX_ROWS
    assert change.span.ByteSize() < 10_000


def test_a_thousand_statements_are_a_bounded_number_of_records_that_count_them_all(shop, engine):
    running = shop()
    with running.serve(), engine.begin() as connection:
        for number in range(1_000):
            connection.execute(ORDERS.insert().values(id=number, status="new"))
    changes = changes_of(running)
    assert len(changes) == tx.MAX_CHANGES + 1
    assert sum(change.attributes["auditspan.change.rows"] for change in changes) == 1_000


@pytest.mark.parametrize(
    "name", ['a"; DROP TABLE orders; --', "a\nb\x1b[31m", "t" * 5_000, "\u202eevil"], ids=range(4)
)
def test_a_hostile_table_name_is_recorded_in_plain_short_text(shop, engine, name):
    table = sa.Table(name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    table.create(engine)
    running = shop()
    with running.serve(), engine.begin() as connection:
        connection.execute(table.insert().values(id=1))
        connection.execute(sa.text('INSERT INTO "' + name.replace('"', '""') + '" VALUES (2)'))
    changes = changes_of(running)
    assert [change["action"] for change in changes] == ["CREATE", "CREATE"]
    for change in changes:
        assert change["target.type"].isprintable()
        assert len(change["target.type"]) <= 256


def test_a_key_by_which_somebody_could_act_as_another_is_in_no_record(shop, engine):
    base = declarative_base()  # as 1.4 has it, too

    class Login(base):
        __tablename__ = "logins"
        session_key = sa.Column(sa.String, primary_key=True)
        page = sa.Column(sa.String)

    base.metadata.create_all(engine)
    running = shop("rules: []")
    with running.serve(), Session(engine) as session:
        session.add(Login(session_key="hunter2", page="a"))
        session.commit()
        session.get(Login, "hunter2").page = "b"
        session.commit()
        session.execute(sa.delete(Login).where(Login.session_key == "hunter2"))
        session.commit()
    assert [change["action"] for change in changes_of(running)] == ["CREATE", "UPDATE", "DELETE"]
    assert "hunter2" not in str([change.span for change in changes_of(running)])


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_driver_that_commits_by_itself_has_succeeded_whatever_comes(shop, engine, end):
    running = shop()
    with running.serve(), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
        getattr(connection, end)()
    (change,) = changes_of(running)
    assert said(change) == ("CREATE", "orders", "1", "success")


def test_an_end_that_the_application_wrote_itself_counts(shop, engine):
    running = shop()
    with running.serve(), engine.connect() as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
        connection.exec_driver_sql("SAVEPOINT mine")
        connection.execute(ORDERS.update().where(ORDERS.c.id == 1).values(status="paid"))
        connection.exec_driver_sql("ROLLBACK TO mine")
        connection.exec_driver_sql("COMMIT")
        connection.rollback()
    assert {change["action"]: change["outcome"] for change in changes_of(running)} == {
        "CREATE": "success",
        "UPDATE": "failure",
    }


def test_the_asynchronous_engine_is_read_too_and_its_tasks_are_kept_apart(shop, engine):
    running = shop()

    async def change(user: int, other) -> None:
        with running.serve():
            async with other.begin() as connection:
                await connection.execute(ORDERS.insert().values(id=user, status="new"))

    async def run() -> None:
        other = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
        await asyncio.gather(*(change(user, other) for user in range(1, 6)))
        await other.dispose()

    asyncio.run(run())
    requests = {r.span.span_id.hex() for r in running.sink.records if "db.system.name" not in r.attributes}
    changes = changes_of(running)
    assert sorted(change["target.id"] for change in changes) == ["1", "2", "3", "4", "5"]
    assert {change["parent.span_id"] for change in changes} == requests
    assert {change["outcome"] for change in changes} == {"success"}


def test_a_rollback_to_a_savepoint_that_is_not_tracked_is_no_success(shop, engine):
    running = shop()
    with running.serve(), engine.begin() as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
        for _ in range(tx.MAX_SAVEPOINTS + 5):
            inner = connection.begin_nested()
        connection.execute(ORDERS.insert().values(id=2, status="new"))
        inner.rollback()
        connection.execute(ORDERS.insert().values(id=3, status="new"))
    outcomes = {change["target.id"]: change["outcome"] for change in changes_of(running)}
    assert outcomes == {"1": "success", "2": "unknown", "3": "success"}


def test_a_rollback_to_a_savepoint_that_nobody_saw_leaves_what_came_before_unknown(shop, engine):
    running = shop()
    with running.serve(), engine.begin() as connection:
        connection.execute(ORDERS.insert().values(id=1, status="new"))
        connection.connection.driver_connection.execute("SAVEPOINT unseen")  # past SQLAlchemy
        connection.execute(ORDERS.insert().values(id=2, status="new"))
        connection.exec_driver_sql("ROLLBACK TO unseen")
        connection.execute(ORDERS.insert().values(id=3, status="new"))
    outcomes = {change["target.id"]: change["outcome"] for change in changes_of(running)}
    assert outcomes == {"1": "unknown", "2": "unknown", "3": "success"}


def test_changes_of_two_requests_in_one_transaction_are_counted_in_the_request_of_each(shop, engine):
    running, requests = shop(), {}
    tables = [sa.Table(f"t{n}", sa.MetaData(), sa.Column("id", sa.Integer)) for n in range(40)]
    for table in tables:
        table.create(engine)
    with engine.begin() as connection:
        for number in range(2):
            with running.serve() as span:
                requests[f"{span.get_span_context().span_id:016x}"] = number
                for table in [*tables, *tables]:
                    connection.execute(table.insert().values(id=number))
    rows = dict.fromkeys(requests, 0)
    for change in changes_of(running):
        rows[change["parent.span_id"]] += change.attributes["auditspan.change.rows"]
    assert list(rows.values()) == [80, 80]


def test_an_application_s_own_test_sees_the_changes_of_its_requests(monkeypatch, engine):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    app = Flask("shop")

    @app.post("/orders")
    def create():
        with engine.begin() as connection:
            connection.execute(ORDERS.insert().values(id=7, status="new"))
        return {}

    with capture(app) as records:
        app.test_client().post("/orders")
    assert sorted((r.action, r.target_type, r.target_id, r.outcome) for r in records) == [
        ("CREATE", "orders", "", "success"),
        ("CREATE", "orders", "7", "success"),
    ]


def test_a_connection_that_is_dropped_without_a_commit_is_a_failure(shop, engine):
    running = shop()
    with running.serve():
        connection = engine.connect()
        connection.execute(ORDERS.insert().values(id=1, status="new"))
        connection.invalidate()
        connection.close()
    (change,) = changes_of(running)
    assert (change["outcome"], change["reason"]) == ("failure", tx.LOST)


def test_the_extractor_imports_without_sqlalchemy():
    code = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from auditspan.extractors import sqlalchemy\nsqlalchemy.start(); print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_the_example_of_the_documentation_does_what_the_page_says(shop):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (rules,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    running, shown = shop(rules), {}
    exec(compile(code, "sqlalchemy.md", "exec", dont_inherit=True), shown)
    with running.serve():
        shown["pay"](7)
    (change,) = changes_of(running)
    assert said(change) == ("UPDATE", "order", "7", "success")
    assert change.attributes["auditspan.change.before.status"] == "new"
    assert change.attributes["auditspan.change.after.status"] == "paid"
    shown["engine"].dispose()


@pytest.mark.parametrize("column", sorted(SECRET_COLUMNS))
def test_every_column_that_no_rule_may_name_is_documented(column):
    assert f"`{column}`" in PAGE
