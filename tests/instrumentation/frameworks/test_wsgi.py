"""A WSGI application in OpenTelemetry's middleware, with wsgiref's server and with gunicorn's."""

from __future__ import annotations

import base64
import contextlib
import sys
from pathlib import Path

import httpx
import pytest
from instrumentation.services import BIN, new_trace, spooled, start

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
        (("DELETE", "/things/7"), {}, NOBODY | {"outcome": "denied", "reason": "401 Unauthorized"}),
        (("GET", "/account"), basic("bob"), BOB | {"reason": "redirected to the login page"}),
        (("POST", "/said"), basic("bob"), {"actor.id": "carol", "actor.roles": ["support"]}),
    ],
    ids=[
        "nobody-can-say",
        "several-roles",
        "wrong-password",
        "a-header-is-no-user",
        "denied-to-nobody",
        "sent-to-the-login-page",
        "set-actor",
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
