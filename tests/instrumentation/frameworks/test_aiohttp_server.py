"""An aiohttp service in a process of its own, under opentelemetry-instrument."""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

import httpx
import loopback
import pytest
from instrumentation.services import new_trace, spooled, start, traceparent, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

APPS = Path(__file__).parent / "apps"
NOBODY = {"actor.id": "unknown", "actor.origin": "unverified"}
GUEST = {"actor.id": "anonymous", "actor.origin": "unverified"}
ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["admin", "sales"]}
BOB = ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}
CREATED = {"action": "CREATE", "outcome": "success", "target.type": "orders"}


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-token"}


def start_shop(folder):
    command = [sys.executable, str(APPS / "aiohttp_shop.py")]
    environment = {
        "OTEL_AUDITSPAN_READS": "/orders/{order_id}",
        "OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS": "health",
    }
    return start(folder, command, environment)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = start_shop(tmp_path_factory.mktemp("aiohttp"))
    yield service
    service.stop()


def of(record, expected):
    return {name: record[name] for name in expected}


@pytest.mark.parametrize(
    ("request_line", "headers", "expected"),
    [
        (("POST", "/orders"), {}, NOBODY | CREATED),
        (("POST", "/orders"), bearer("eve"), NOBODY | {"outcome": "denied", "reason": "401 Unauthorized"}),
        (("DELETE", "/orders/7"), bearer("alice"), ALICE | {"action": "DELETE", "outcome": "success"}),
        (("PUT", "/orders"), bearer("bob"), BOB | {"outcome": "failure"}),
        (("GET", "/account"), bearer("bob"), BOB | {"reason": "redirected to the login page"}),
        (("POST", "/said"), bearer("bob"), {"actor.id": "carol", "actor.auth_method": "mtls"}),
        (("POST", "/secured"), {"cookie": "who=bob"}, {"actor.id": "bob", "actor.auth_method": "session"}),
        (("POST", "/secured"), {}, GUEST | {"outcome": "denied"}),
        (("POST", "/permitted"), {"cookie": "who=bob"}, {"actor.id": "bob", "outcome": "denied"}),
        (
            ("PUT", "/admin/users/eve/role"),
            bearer("alice"),
            ALICE | {"target.type": "users", "target.id": "eve"},
        ),
        (("POST", "/admin/deeper/reports"), bearer("alice"), ALICE | {"target.type": "reports"}),
        (("POST", "/generated/whole"), bearer("bob"), BOB | {"outcome": "success"}),
    ],
    ids=[
        "nobody-can-say",
        "refused-by-a-middleware",
        "raised-success",
        "no-such-method",
        "sent-to-the-login-page",
        "set-actor",
        "aiohttp-security",
        "aiohttp-security-finds-nobody",
        "aiohttp-security-permits-not",
        "sub-application",
        "sub-application-of-one",
        "generated-body",
    ],
)
def test_a_request_becomes_one_record(service, request_line, headers, expected):
    _, trace_id = service.call(*request_line, headers=headers)
    (record,) = service.records(trace_id)
    assert of(record, expected) == expected
    assert record.attributes["network.peer.address"] == "127.0.0.1"
    service.record("POST", "/orders")  # when a second one would be there, too
    assert len(service.records(trace_id)) == 1


def test_a_sub_application_s_request_is_one_trace_also_when_the_caller_has_none(service):
    response = loopback.put(
        f"http://127.0.0.1:{service.port}/admin/users/zoe/role", headers=bearer("alice"), trust_env=False
    )
    assert response.status_code == 200
    found = wait_for(
        lambda: [record for record in spooled(service.spool) if record["target.id"] == "zoe"], "a record"
    )
    assert len(found) == 1


@pytest.mark.parametrize("path", ["/streams/part", "/generated/part"])
def test_a_stream_that_breaks_off_is_a_failure(service, path):
    trace_id = new_trace()
    with contextlib.suppress(httpx.HTTPError):
        service.call("POST", path, trace_id=trace_id, headers=bearer("bob"))
    (record,) = service.records(trace_id)
    expected = BOB | {"outcome": "failure", "reason": "the response was cut short"}
    assert of(record, expected) == expected


def test_a_client_that_leaves_cancels_the_handler(service):
    trace_id = new_trace()
    head = f"POST /slow HTTP/1.1\r\nHost: x\r\ntraceparent: {traceparent(trace_id)['traceparent']}\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(f"{head}Authorization: Bearer bob-token\r\n\r\n".encode())
        service.call("GET", "/started")
    (record,) = service.records(trace_id)
    expected = BOB | {"outcome": "failure", "reason": "the client disconnected"}
    assert of(record, expected) == expected


def test_the_record_of_a_stream_is_there_before_its_last_piece(tmp_path):
    service = start_shop(tmp_path)
    try:
        response, trace_id = service.call("POST", "/streams/killed", headers=bearer("bob"))
        assert response.text == "firstsecond"
        service.process.wait(10)
        (record,) = [record for record in spooled(service.spool) if record.trace_id == trace_id]
        assert record["outcome"] == "success"
    finally:
        service.stop()


# -- sessions


def converse(service, *messages: str, name: str = "alice", headers: dict[str, str] | None = None) -> str:
    trace_id = new_trace()
    headers = bearer(name) | traceparent(trace_id) if headers is None else headers | traceparent(trace_id)
    with (
        contextlib.suppress(ConnectionClosed, InvalidStatus),
        connect(f"ws://127.0.0.1:{service.port}/rooms/kitchen", additional_headers=headers, proxy=None) as ws,
    ):
        for message in messages:
            ws.send(message)
            ws.recv()
    return trace_id


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (("hello", "again"), ALICE | {"outcome": "success"}),
        (("close 1000",), ALICE | {"outcome": "success"}),
        (("close 1008",), ALICE | {"outcome": "denied", "reason": "closed with 1008 (policy violation)"}),
        (("close 4000",), ALICE | {"outcome": "unknown", "reason": "closed with 4000"}),
        (("i am carol",), {"actor.id": "carol", "outcome": "success"}),
    ],
    ids=[
        "the-client-closes",
        "closed",
        "denied-later",
        "an-own-code",
        "set-actor",
    ],
)
def test_a_session_is_one_record_however_many_messages_it_had(service, messages, expected):
    trace_id = converse(service, *messages)
    (record,) = service.records(trace_id)
    expected = expected | {"action": "CONNECT", "target.type": "rooms", "target.id": "kitchen"}
    assert of(record, expected) == expected
    service.record("POST", "/orders")
    assert len(service.records(trace_id)) == 1


def test_a_refused_handshake_is_denied(service):
    trace_id = converse(service, headers={})
    (record,) = service.records(trace_id)
    expected = {"action": "CONNECT", "outcome": "denied", "reason": "403 Forbidden", "target.id": "kitchen"}
    assert of(record, expected) == expected


def test_the_example_of_the_guide_does_what_it_says(tmp_path):
    guide = (Path(__file__).parents[3] / "docs/frameworks/aiohttp.md").read_text()
    (tmp_path / "app.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    service = start(tmp_path, [sys.executable, str(tmp_path / "app.py")])
    try:
        record = service.record("POST", "/orders/7/refund", headers=bearer("alice"))
        expected = {"actor.id": "alice", "actor.roles": ["sales"], "action": "REFUND", "target.id": "7"}
        assert of(record, expected) == expected
        assert service.record("POST", "/orders/7/refund", headers=bearer("eve"))["outcome"] == "denied"
    finally:
        service.stop()
