"""WebSocket sessions of a FastAPI service under uvicorn: one record each."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from instrumentation.services import BIN, new_trace, spooled, start, traceparent, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

APPS = Path(__file__).parent / "apps"
ALICE = {"actor.id": "alice", "actor.origin": "authenticated", "actor.roles": ["admin", "sales"]}
ANONYMOUS = {"actor.id": "anonymous", "actor.origin": "unverified"}
KITCHEN = {"action": "CONNECT", "target.type": "rooms", "target.id": "kitchen"}


def uvicorn(folder, app):
    command = [str(BIN / "uvicorn"), app, "--app-dir", str(folder), "--port", "{port}", "--no-access-log"]
    return [*command, "--ws", "websockets-sansio"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = start(tmp_path_factory.mktemp("sockets"), uvicorn(APPS, "fastapi_sockets:app"))
    yield service
    service.stop()


def converse(service, *messages: str, name: str = "alice", path: str = "/rooms/kitchen") -> str:
    """Say *messages*, wait for an answer to each, and leave; the trace's id."""
    headers = traceparent(trace_id := new_trace())
    if name:
        headers["authorization"] = f"Bearer {name}-token"
    address = f"ws://127.0.0.1:{service.port}{path}"
    with (
        contextlib.suppress(ConnectionClosed, InvalidStatus),
        connect(address, additional_headers=headers, proxy=None) as ws,
    ):
        for message in messages:
            ws.send(message)
            ws.recv()
    return trace_id


def the_only_record(service, trace_id):
    (record,) = service.records(trace_id)
    service.record("POST", "/orders")  # when a second one would be there, too
    assert len(service.records(trace_id)) == 1
    return record


def of(record, expected):
    return {name: record[name] for name in expected}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ((), ALICE | {"outcome": "success", "reason": None}),
        (tuple("message" * 5), ALICE | {"outcome": "success", "actor.auth_method": "bearer"}),
        (("i am carol", "hello"), {"actor.id": "carol", "actor.origin": "authenticated"}),
        (("close 1000",), ALICE | {"outcome": "success"}),
        (("close 1008",), ALICE | {"outcome": "denied", "reason": "closed with 1008 (policy violation)"}),
        (("close 4403",), ALICE | {"outcome": "denied", "reason": "closed with 4403 (forbidden)"}),
        (("close 4000",), ALICE | {"outcome": "unknown", "reason": "closed with 4000"}),
        (("close 1011",), ALICE | {"outcome": "failure", "reason": "closed with 1011"}),
        (("raise",), ALICE | {"outcome": "failure", "reason": "ended by an exception"}),
    ],
    ids=[
        "left-at-once",
        "many-messages",
        "set-actor-later",
        "closed",
        "denied-later",
        "denied-by-an-own-code",
        "an-own-code",
        "closed-for-an-error",
        "exception",
    ],
)
def test_a_session_is_one_record_however_many_messages_it_had(service, messages, expected):
    record = the_only_record(service, converse(service, *messages))
    assert of(record, expected | KITCHEN) == expected | KITCHEN


@pytest.mark.parametrize(
    ("path", "name", "expected"),
    [
        ("/rooms/secret", "alice", ALICE | {"outcome": "denied", "reason": "403 Forbidden"}),
        ("/rooms/cellar", "", ANONYMOUS | {"outcome": "denied", "reason": "401 Unauthorized"}),
        ("/rooms/kitchen", "eve", ANONYMOUS | {"outcome": "denied", "reason": "bad token"}),
        ("/nowhere", "alice", ALICE | {"outcome": "failure", "reason": "no such route"}),
    ],
    ids=["closed-before-accepted", "answered-with-401", "authentication-failed", "no-such-route"],
)
def test_a_refused_handshake_is_a_record(service, path, name, expected):
    record = the_only_record(service, converse(service, path=path, name=name))
    assert of(record, expected | {"action": "CONNECT"}) == expected | {"action": "CONNECT"}


def test_a_session_of_a_mounted_application_has_its_route(service):
    record = the_only_record(service, converse(service, path="/inside/attic"))
    assert of(record, ALICE | {"target.type": "inside", "target.id": "attic"}) == ALICE | {
        "target.type": "inside",
        "target.id": "attic",
    }


def test_what_is_done_in_a_session_hangs_below_it(service):
    trace_id = converse(service, "charge")
    by_action = {record["action"]: record for record in service.records(trace_id, 2)}
    assert by_action["CHARGE"]["actor.id"] == "alice"
    assert by_action["CHARGE"]["parent.span_id"] == by_action["CONNECT"].span.span_id.hex()


def test_the_record_lasts_as_long_as_the_session(service):
    trace_id = converse(service, "charge")
    by_action = {record["action"]: record for record in service.records(trace_id, 2)}
    session, inside = by_action["CONNECT"].span, by_action["CHARGE"].span
    assert session.start_time_unix_nano < inside.start_time_unix_nano
    assert session.end_time_unix_nano > inside.end_time_unix_nano


@pytest.mark.parametrize(
    ("implementation", "expected"),
    [
        ("websockets-sansio", ("success", None)),  # uvicorn says 1005 of a lost connection, too
        ("websockets", ("failure", "the connection was lost")),
    ],
)
def test_a_connection_that_breaks_ends_as_the_server_tells_it(tmp_path, implementation, expected):
    service = start(tmp_path, [*uvicorn(APPS, "fastapi_sockets:app"), "--ws", implementation])
    try:
        headers = traceparent(trace_id := new_trace()) | {"authorization": "Bearer alice-token"}
        address = f"ws://127.0.0.1:{service.port}/rooms/kitchen"
        with (
            contextlib.suppress(ConnectionClosed),
            connect(address, additional_headers=headers, proxy=None) as ws,
        ):
            ws.send("hello")
            ws.recv()
            ws.socket.shutdown(socket.SHUT_RDWR)
        record = the_only_record(service, trace_id)
        assert (record["outcome"], record["reason"]) == expected
    finally:
        service.stop()


def test_a_rule_with_the_session_s_route_skips_it(tmp_path):
    (tmp_path / "rules.yaml").write_text("rules:\n  - route: /rooms/{room}\n    do: skip\n")
    rules = {"OTEL_AUDITSPAN_RULES": str(tmp_path / "rules.yaml")}
    service = start(tmp_path, uvicorn(APPS, "fastapi_sockets:app"), rules)
    try:
        trace_id = converse(service, "hello")
        service.records(converse(service, path="/inside/attic"))
        assert [record for record in spooled(service.spool) if record.trace_id == trace_id] == []
    finally:
        service.stop()


def test_two_users_at_the_same_time_are_never_mixed_up(service):
    def talk(number: int) -> tuple[str, str]:
        name = ("alice", "bob")[number % 2]
        return converse(service, "charge", "hello", name=name), name

    with ThreadPoolExecutor(20) as pool:
        expected = dict(pool.map(talk, range(200)))

    def found():
        by_trace = {trace_id: set() for trace_id in expected}
        for record in spooled(service.spool):
            if record.trace_id in by_trace:
                by_trace[record.trace_id].add((record["action"], record["actor.id"]))
        return by_trace if all(len(records) == 2 for records in by_trace.values()) else None

    for trace_id, records in wait_for(found, "400 records").items():
        assert records == {("CONNECT", expected[trace_id]), ("CHARGE", expected[trace_id])}


def test_the_record_is_there_before_the_client_hears_of_the_close(service):
    headers = traceparent(trace_id := new_trace()) | {"authorization": "Bearer alice-token"}
    address = f"ws://127.0.0.1:{service.port}/rooms/kitchen"
    with connect(address, additional_headers=headers, proxy=None) as ws:
        ws.send("close 1000")
        with contextlib.suppress(ConnectionClosed):
            ws.recv()
        assert [record["action"] for record in spooled(service.spool) if record.trace_id == trace_id] == [
            "CONNECT"
        ]


def test_the_example_of_the_guide_does_what_it_says(tmp_path):
    guide = (Path(__file__).parents[3] / "docs/frameworks/websockets.md").read_text()
    (tmp_path / "shop.py").write_text(guide.partition("```python\n")[2].partition("```")[0])
    service = start(tmp_path, uvicorn(tmp_path, "shop:app"))
    try:
        records = {
            record["action"]: record for record in service.records(converse(service, "hello", "bye"), 2)
        }
        assert of(records["CONNECT"], KITCHEN | {"actor.id": "alice"}) == KITCHEN | {"actor.id": "alice"}
        assert records["POST_MESSAGE"]["actor.id"] == "alice"
        (refused,) = service.records(converse(service, name="eve"))
        assert (refused["action"], refused["outcome"]) == ("CONNECT", "denied")
    finally:
        service.stop()
