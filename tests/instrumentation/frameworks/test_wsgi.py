"""A WSGI application in OpenTelemetry's middleware, with wsgiref's server and with gunicorn's."""

from __future__ import annotations

import base64
import contextlib
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from instrumentation.services import BIN, new_trace, spooled, start, traceparent, wait_for

APPS = Path(__file__).parent / "apps"
NOBODY = {"actor.id": "unknown", "actor.origin": "unverified"}
ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["admin", "sales"]}
BOB = ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}
WSGIREF = [sys.executable, str(APPS / "wsgi_shop.py")]
GUNICORN = [
    *(str(BIN / "gunicorn"), "--pythonpath", str(APPS), "--threads", "8"),
    *("--bind", "127.0.0.1:{port}", "wsgi_shop:app"),
]
READS = {"OTEL_AUDITSPAN_READS": "/orders/{order_id}"}


def basic(name: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{name}-password".encode()).decode()}


@pytest.fixture(
    scope="module",
    params=[(WSGIREF, READS | {"TELLS": "remote-user"}), (GUNICORN, READS)],
    ids=["wsgiref, REMOTE_USER", "gunicorn, repoze.who.identity"],
)
def service(request, tmp_path_factory):
    command, environment = request.param
    service = start(tmp_path_factory.mktemp("wsgi"), command, environment)
    yield service
    service.stop()


def of(record, expected):
    return {name: record[name] for name in expected}


@pytest.mark.parametrize(
    ("request_line", "headers", "expected"),
    [
        (("POST", "/orders"), {}, NOBODY | {"action": "CREATE", "outcome": "success"}),
        (("POST", "/orders"), basic("alice"), ALICE | {"actor.auth_method": "basic"}),
        (("POST", "/orders"), basic("eve"), NOBODY),
        (("POST", "/orders"), {"remote-user": "eve", "x-remote-user": "eve"}, NOBODY),
        (("GET", "/orders/7"), basic("bob"), BOB | {"action": "READ", "target.id": "7"}),
        (("PUT", "/orders/7"), basic("bob"), BOB | {"target.type": "orders", "target.id": "7"}),
        (("DELETE", "/things/7"), {}, NOBODY | {"outcome": "denied", "reason": "401 Unauthorized"}),
        (("GET", "/unauthorized"), {}, NOBODY | {"outcome": "denied", "reason": "401 Unauthorized"}),
        (("GET", "/forbidden"), basic("bob"), BOB | {"outcome": "denied", "reason": "403 Forbidden"}),
        (("POST", "/crash"), basic("bob"), BOB | {"outcome": "failure"}),
        (("POST", "/invalid"), basic("bob"), BOB | {"outcome": "failure"}),
        (("POST", "/nowhere"), basic("bob"), BOB | {"outcome": "failure", "target.type": None}),
        (("GET", "/account"), basic("bob"), BOB | {"reason": "redirected to the login page"}),
        (("POST", "/said"), basic("bob"), {"actor.id": "carol", "actor.roles": ["support"]}),
        (("POST", "/admin/users"), basic("bob"), BOB | {"outcome": "success"}),
        (("POST", "/streams/whole"), basic("bob"), BOB | {"outcome": "success"}),
        (("POST", "/streams/part"), basic("bob"), BOB | {"outcome": "failure"}),
    ],
    ids=[
        "nobody-can-say",
        "several-roles",
        "wrong-password",
        "a-header-is-no-user",
        "read-asked-for",
        "route-from-the-span",
        "denied-to-nobody",
        "401",
        "403",
        "exception",
        "validation-error",
        "not-found",
        "sent-to-the-login-page",
        "set-actor",
        "application-inside",
        "stream",
        "stream-that-breaks-off",
    ],
)
def test_a_request_becomes_a_record(service, request_line, headers, expected):
    trace_id = new_trace()
    with contextlib.suppress(httpx.HTTPError):
        service.call(*request_line, trace_id=trace_id, headers=headers)
    (record,) = service.records(trace_id)
    assert of(record, expected) == expected


def test_a_session_of_beaker_is_kept_as_a_hash(service):
    record = service.record("POST", "/session", headers=basic("alice"))
    assert len(record["actor.session_id"]) == 32


def test_a_read_leaves_nothing(service):
    service.nothing("GET", "/things", after=("POST", "/orders"), headers=basic("alice"))


def test_a_client_that_leaves_in_the_middle_is_a_failure(service):
    trace_id = new_trace()
    head = f"POST /endless HTTP/1.1\r\nHost: x\r\ntraceparent: {traceparent(trace_id)['traceparent']}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(head.encode())
        client.recv(1000)
    (record,) = service.records(trace_id)
    assert (record["outcome"], record["reason"]) == ("failure", "the response was cut short")


def test_two_users_at_the_same_time_are_never_mixed_up(service):
    def order(number: int) -> tuple[str, str]:
        name = ("alice", "bob")[number % 2]
        headers = basic(name) | traceparent(trace_id := new_trace())
        with httpx.Client(trust_env=False, timeout=60) as client:
            client.post(f"http://127.0.0.1:{service.port}/nested", headers=headers)
        return trace_id, name

    with ThreadPoolExecutor(20) as pool:
        expected = dict(pool.map(order, range(200)))

    def found():
        by_trace = {trace_id: set() for trace_id in expected}
        for record in spooled(service.spool):
            if record.trace_id in by_trace:
                by_trace[record.trace_id].add((record["action"], record["actor.id"]))
        return by_trace if all(len(records) == 2 for records in by_trace.values()) else None

    for trace_id, records in wait_for(found, "400 records").items():
        assert records == {("CREATE", expected[trace_id]), ("CHARGE", expected[trace_id])}


def test_work_in_the_background_goes_on_in_the_request_s_name(service):
    _, trace_id = service.call("POST", "/background", headers=basic("alice"))
    by_action = {record["action"]: record for record in service.records(trace_id, 2)}
    assert by_action["NOTIFY"]["actor.id"] == "alice"


def test_the_record_is_there_before_the_last_piece_of_a_response_of_known_length(tmp_path):
    service = start(tmp_path, WSGIREF, {"TELLS": "remote-user"})
    try:
        response, trace_id = service.call("POST", "/streams/killed", headers=basic("bob"))
        assert response.text == "firstsecond"
        service.process.wait(10)
        (record,) = [record for record in spooled(service.spool) if record.trace_id == trace_id]
        assert (record["outcome"], record["actor.id"]) == ("success", "bob")
    finally:
        service.stop()


def test_the_example_of_the_guide_does_what_it_says(tmp_path):
    guide = (Path(__file__).parents[3] / "docs/frameworks/wsgi.md").read_text()
    (tmp_path / "shop.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    command = [str(BIN / "gunicorn"), "--pythonpath", str(tmp_path), "--bind", "127.0.0.1:{port}", "shop:app"]
    service = start(tmp_path, command)
    try:
        record = service.record("PUT", "/orders/7", headers={"authorization": "Bearer alice-token"})
        expected = {"actor.id": "alice", "action": "UPDATE", "target.type": "orders", "target.id": "7"}
        assert of(record, expected) == expected
        assert service.record("PUT", "/orders/7")["outcome"] == "denied"
    finally:
        service.stop()
