"""Changes of data by DB-API drivers without a mapper of ours, in real services: sqlite3, psycopg, psycopg2, and Django's."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from auditspan.changes import transaction as tx

APPS = Path(__file__).parent / "apps"
RULES = "rules: [{table: orders, columns: [status], target: {type: order, id: id}}]"
DRIVERS = {"asyncpg", "psycopg", "psycopg2", "sqlite3"}


def start(harness, folder: Path, app: str, environment: dict[str, str], driver: str = "sqlite3"):
    rules = folder / "rules.yaml"
    rules.write_text(RULES)
    rules.chmod(0o600)
    known = {
        "DATABASE": str(folder / "shop.db"),
        "OTEL_AUDITSPAN_RULES": str(rules),
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(DRIVERS - {driver})),
    }
    return harness.start(folder, [sys.executable, str(APPS / app)], known | environment)


@pytest.fixture(scope="module", params=["sqlite3", "psycopg", "psycopg2"])
def service(request, tmp_path_factory, harness):
    environment = {"DRIVER": request.param}
    if request.param != "sqlite3":
        server = request.getfixturevalue("postgresql")
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {request.param}")
        environment["DATABASE"] = server.dsn.replace("dbname=postgres", f"dbname={request.param}")
    folder = tmp_path_factory.mktemp("driver")
    service = start(harness, folder, "driver_shop.py", environment, driver=request.param)
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
    return change["action"], change["target.type"], change["target.id"], change["outcome"], change["reason"]


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([("POST", "/orders/1")], ("CREATE", "order", "1", "success", None)),
        ([("POST", "/orders/2"), ("PUT", "/orders/2")], ("UPDATE", "order", "2", "success", None)),
        ([("POST", "/orders/3"), ("DELETE", "/orders/3")], ("DELETE", "order", "3", "success", None)),
        ([("POST", "/visits")], ("CREATE", "visits", None, "success", None)),
        ([("POST", "/rolled-back/4")], ("CREATE", "order", "4", "failure", tx.ROLLED_BACK)),
        ([("POST", "/crash/5")], ("CREATE", "order", "5", "failure", tx.ROLLED_BACK)),
        ([("POST", "/forgotten/6")], ("CREATE", "order", "6", "failure", tx.NOT_COMMITTED)),
    ],
    ids=["insert", "update", "delete", "no-columns", "rollback", "exception", "closed-without-commit"],
)
def test_a_change_is_a_record_inside_its_request_under_its_actor(service, requests, expected):
    for method, path in requests:
        request, (change,) = called(service, method, path, 2)
    assert said(change) == expected
    assert (change["actor.id"], change["parent.span_id"]) == ("alice", request.span.span_id.hex())
    assert change.attributes["auditspan.change.rows"] == 1
    assert "hunter" not in str(change.span)


def test_values_are_those_of_columns_that_a_rule_names_and_those_that_where_compared_are_from_before(service):
    called(service, "POST", "/orders/20", 2)
    _, (change,) = called(service, "PUT", "/orders/20", 2)
    values = {k: v for k, v in change.attributes.items() if k.startswith("auditspan.change.")}
    assert values == {
        "auditspan.change.rows": 1,
        "auditspan.change.keys": ["20"],
        "auditspan.change.before.status": "new",
        "auditspan.change.after.status": "paid",
    }


def test_a_statement_that_changes_no_row_leaves_no_record(service):
    assert called(service, "DELETE", "/orders/404", 1)[1] == []


def test_what_a_savepoint_undid_is_a_failure_while_the_rest_succeeds(service):
    _, changes = called(service, "POST", "/savepoint/30", 3)
    assert {change["target.type"]: (change["outcome"], change["reason"]) for change in changes} == {
        "order": ("success", None),
        "visits": ("failure", tx.ROLLED_BACK_TO_SAVEPOINT),
    }


def test_a_violated_constraint_is_a_failure_with_its_kind_and_no_values(service):
    _, changes = called(service, "POST", "/twice/31", 3)
    failed, undone = sorted((change["outcome"], change["reason"]) for change in changes)
    assert failed[0] == undone[0] == "failure"
    assert failed[1] in {f"the statement failed: {kind}" for kind in ("IntegrityError", "UniqueViolation")}
    assert undone[1] == tx.ROLLED_BACK
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


@pytest.fixture(scope="module")
def django_service(tmp_path_factory, harness):
    service = start(harness, tmp_path_factory.mktemp("django"), "driver_django.py", {})
    yield service
    service.stop()


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([("POST", "/groups/a")], ("CREATE", "auth_group", "success", None)),
        ([("POST", "/groups/b"), ("PUT", "/groups/b")], ("UPDATE", "auth_group", "success", None)),
        ([("POST", "/groups/c"), ("PUT", "/saved/c")], ("UPDATE", "auth_group", "success", None)),
        ([("POST", "/groups/d"), ("DELETE", "/groups/d")], ("DELETE", "auth_group", "success", None)),
        ([("POST", "/rolled-back/e")], ("CREATE", "auth_group", "failure", tx.ROLLED_BACK)),
    ],
    ids=["create", "update", "save", "delete", "rolled-back"],
)
def test_a_change_by_djangos_mapper_is_recorded_once_with_the_requests_actor(
    django_service, requests, expected
):
    for method, path in requests:
        request, (change,) = called(django_service, method, path, 2)
    assert (change["action"], change["target.type"], change["outcome"], change["reason"]) == expected
    assert (change["actor.id"], request["actor.id"]) == ("alice", "alice")
    assert change["parent.span_id"] == request.span.span_id.hex()
    assert change.attributes["auditspan.change.rows"] == 1
    if requests[-1] != ("PUT", "/groups/b"):  # whose WHERE names no key
        assert change["target.id"].isdigit()


def test_many_rows_of_djangos_mapper_are_one_record_for_each_statement(django_service):
    _, changes = called(django_service, "POST", "/many/f", 2)
    assert sum(change.attributes["auditspan.change.rows"] for change in changes) == 120


def test_a_nested_block_of_django_that_failed_is_a_failure_while_the_rest_succeeds(django_service):
    _, changes = called(django_service, "POST", "/nested/g", 4)
    assert [(change["outcome"], change["reason"]) for change in changes] == [
        ("success", None),
        ("failure", tx.ROLLED_BACK_TO_SAVEPOINT),
        ("failure", "the statement failed: IntegrityError"),
    ]


def test_the_key_of_a_session_is_in_no_record(django_service):
    response, trace_id = django_service.call("POST", "/visits/h", headers={"x-user": "alice"})
    _, changes = split(django_service.records(trace_id, 3))
    assert [change["action"] for change in changes] == ["CREATE", "DELETE"]
    assert response.json()["key"] not in str([change.span for change in changes])


def test_a_service_with_django_says_nothing_unusual(django_service):
    assert "Auditspan" not in django_service.log


def test_sqlalchemy_over_an_instrumented_driver_gives_one_record_of_each_change(tmp_path_factory, harness):
    service = start(harness, tmp_path_factory.mktemp("mapper"), "sql_shop.py", {})
    try:
        for method, path in (("POST", "/orders/1"), ("PUT", "/orders/1"), ("POST", "/core/2/text")):
            _, trace_id = service.call(method, path)
            assert len(split(service.records(trace_id, 2))[1]) == 1
        assert len(split(service.records(service.call("POST", "/savepoint/3")[1], 3))[1]) == 2
    finally:
        service.stop()
