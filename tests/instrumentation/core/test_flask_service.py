"""A Flask service under opentelemetry-instrument, with Werkzeug's server and with forking gunicorn workers."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import loopback
import pytest

NOBODY = {"actor.id": "anonymous", "actor.origin": "unverified"}
ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["admin", "sales"]}
BOB = ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}
GUNICORN = ["--workers", "2", "--threads", "4", "--bind", "127.0.0.1:{port}", "flask_shop:app"]


@pytest.fixture(scope="module", params=["werkzeug", "gunicorn"])
def service(request, tmp_path_factory, harness):
    command = [sys.executable, "flask_shop.py"]
    if request.param == "gunicorn":
        command = [str(harness.BIN / "gunicorn"), *GUNICORN]
    service = harness.start(
        tmp_path_factory.mktemp(request.param), command, {"OTEL_AUDITSPAN_READS": "/orders/{order_id}"}
    )
    yield service
    service.stop()


def login(service, name: str, headers: dict[str, str]) -> dict[str, str]:
    form = {"name": name, "password": f"{name}-password"}
    response = loopback.post(f"http://127.0.0.1:{service.port}/login", data=form)
    return headers | {"cookie": response.headers["set-cookie"].partition(";")[0]}


def test_an_extension_that_knows_nobody_does_not_hide_one_that_has_verified_somebody(service):
    record = service.record("POST", "/orders", headers={"x-extension": "1", "x-http-auth": "carol"})
    assert (record["actor.id"], record["actor.origin"]) == ("carol", "authenticated")


@pytest.mark.parametrize(
    "headers", [{}, {"x-extension": "1"}], ids=["user-in-g", "user-where-flask-login-has-it"]
)
@pytest.mark.parametrize(
    ("who", "request_line", "expected"),
    [
        ("bob", ("GET", "/account"), BOB | {"outcome": "denied", "reason": "redirected to the login page"}),
        ("bob", ("POST", "/login"), {"action": "LOGIN", "outcome": "denied"}),
    ],
    ids=[
        "sent-to-the-login-page",
        "login-without-a-form",
    ],
)
def test_a_request_becomes_a_record(service, headers, who, request_line, expected):
    sent = login(service, who, headers) if who else headers
    record = service.record(*request_line, headers=sent)
    assert {name: record[name] for name in expected} == expected


def test_a_login_has_the_name_that_the_view_found(service):
    record = service.record("POST", "/login", data={"name": "alice", "password": "alice-password"})
    assert {name: record[name] for name in ALICE} == ALICE
    assert (record["action"], record["outcome"]) == ("LOGIN", "success")


def test_a_wrong_password_is_a_denied_login(service):
    record = service.record("POST", "/login", data={"name": "alice", "password": "guess"})
    expected = {"actor.id": "anonymous", "action": "LOGIN", "outcome": "denied", "reason": "401 Unauthorized"}
    assert {name: record[name] for name in expected} == expected


def test_a_session_is_stored_hashed(service):
    record = service.record("POST", "/orders", headers=login(service, "bob", {}))
    assert len(record["actor.session_id"]) == 32
    assert "a-secret-session" not in str(record.span)


def test_the_user_name_in_a_header_is_only_the_clients_word(service):
    record = service.record("POST", "/plain", auth=("root", "anything"), headers={"remote-user": "root"})
    assert (record["actor.id"], record["actor.origin"]) == ("unknown", "unverified")
    assert "root" not in str({k: v for k, v in record.attributes.items() if k.startswith("audit.")})


def test_people_in_reused_threads_are_never_mixed_up(service):
    def call(number: int) -> tuple[str, str]:
        return service.call("POST", f"/threads/n{number}")[1], f"n{number}-in-a-thread"

    with ThreadPoolExecutor(8) as pool:
        expected = dict(pool.map(call, range(80)))
    for trace_id, actor in expected.items():
        (record,) = service.records(trace_id)
        assert record["actor.id"] == actor


def test_each_process_numbers_its_records_without_a_gap(service, harness):
    pids = {service.call("POST", f"/threads/w{n}")[0].json()["pid"] for n in range(20)}
    _, trace_id = service.call("POST", "/plain")
    service.records(trace_id)
    streams: dict[str, list[int]] = {}
    for record in harness.spooled(service.spool):
        streams.setdefault(record["sequence.stream_id"], []).append(record["sequence.number"])
    assert len(streams) >= len(pids)
    for numbers in streams.values():
        assert sorted(numbers) == list(range(1, len(numbers) + 1))


def test_the_service_says_nothing_unusual(service):
    service.record("POST", "/plain")
    assert "Auditspan" not in service.log
