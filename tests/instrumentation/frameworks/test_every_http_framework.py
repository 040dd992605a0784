"""The specification that each HTTP framework must pass: the same shop, the same requests, the same records."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from instrumentation import services

NOBODY = {"actor.id": "anonymous", "actor.origin": "unverified", "actor.roles": None}
ALICE = {
    "actor.id": "alice",
    "actor.type": "user",
    "actor.roles": ["admin", "sales"],
    "actor.origin": "authenticated",
}
BOB = ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}
TEA = {"json": {"product": "tea"}}


def case(who, request_line, named, *, id, arguments=None, **expected):  # noqa: A002 - as pytest's
    said = {name.replace("_", "."): text for name, text in expected.items()}
    return pytest.param(who, request_line.split(), arguments or {}, named | said, id=id)


CASES = [
    case(
        "",
        "POST /orders",
        NOBODY,
        id="anonymous",
        arguments=TEA,
        action="CREATE",
        outcome="success",
        reason=None,
        target_type="orders",
        target_id=None,
    ),
    case(
        "alice",
        "POST /orders",
        ALICE,
        id="several-roles",
        arguments=TEA,
        action="CREATE",
        outcome="success",
        target_type="orders",
    ),
    case(
        "bob",
        "PUT /orders/7",
        BOB,
        id="authenticated",
        action="UPDATE",
        outcome="success",
        reason=None,
        target_type="orders",
        target_id="7",
    ),
    case(
        "bob",
        "POST /orders/7/refund",
        BOB,
        id="a-verb-of-its-own",
        action="REFUND",
        outcome="success",
        target_type="orders",
        target_id="7",
    ),
    case(
        "",
        "PUT /orders/7",
        NOBODY,
        id="denied-401",
        action="UPDATE",
        outcome="denied",
        reason="401 Unauthorized",
        target_type="orders",
        target_id="7",
    ),
    case(
        "bob",
        "DELETE /orders/7",
        BOB,
        id="denied-403",
        action="DELETE",
        outcome="denied",
        reason="403 Forbidden",
        target_type="orders",
        target_id="7",
    ),
    case(
        "bob",
        "GET /secrets/plan",
        BOB,
        id="a-read-that-is-denied",
        action="READ",
        outcome="denied",
        reason="403 Forbidden",
        target_type="secrets",
        target_id="plan",
    ),
    case(
        "bob",
        "GET /reports/r1",
        BOB,
        id="a-read-that-was-asked-for",
        action="READ",
        outcome="success",
        target_type="reports",
        target_id="r1",
    ),
    case(
        "bob",
        "POST /orders/7/missing",
        BOB,
        id="not-found",
        outcome="failure",
        target_type="orders",
        target_id="7",
    ),
    case(
        "bob",
        "POST /nowhere/9",
        BOB,
        id="no-such-route",
        action="CREATE",
        outcome="failure",
        target_type=None,
        target_id=None,
    ),
    case(
        "bob",
        "POST /orders/7/crash",
        BOB,
        id="exception",
        action="CRASH",
        outcome="failure",
        target_type="orders",
        target_id="7",
    ),
    case(
        "bob",
        "POST /orders",
        BOB,
        id="validation-error",
        arguments={"json": {}},
        action="CREATE",
        outcome="failure",
        target_type="orders",
    ),
    case(
        "bob",
        "POST /streams/whole",
        BOB,
        id="streaming",
        outcome="success",
        reason=None,
        target_type="streams",
        target_id="whole",
    ),
    case(
        "bob",
        "PUT /shop/customers/c1",
        BOB,
        id="mounted-router",
        action="UPDATE",
        outcome="success",
        target_type="customers",
        target_id="c1",
    ),
    case(
        "bob",
        "PUT /admin/eu/users/carol/role",
        BOB,
        id="sub-application",
        action="UPDATE",
        outcome="denied",
        reason="403 Forbidden",
        target_type="users",
        target_id="carol",
    ),
]


@pytest.mark.parametrize(("who", "request_line", "arguments", "expected"), CASES)
def test_a_request_has_one_record(shop, who, request_line, arguments, expected):
    record = shop.record(*request_line, who, **arguments)
    if expected["outcome"] == "denied":  # a framework may say more
        assert record["reason"].startswith(expected["reason"])
        expected = expected | {"reason": record["reason"]}
    if shop.framework.late and "nowhere" in request_line[1]:
        who, expected = "", expected | {"actor.type": "user"} | NOBODY
    assert {name: record[name] for name in expected} == expected
    assert record["actor.auth_method"] == (shop.framework.auth_method if who else None)
    assert (record["schema.version"], record["delivery"]) == ("1", None)


def test_a_read_that_nobody_asked_for_has_none(shop):
    response, trace_id = shop.call("GET", "/orders/7", "bob")
    assert response.status_code == 200
    no_record(shop, trace_id)


def test_an_excluded_url_has_none_and_the_log_says_so(shop):
    if not shop.framework.excluded:
        pytest.fail(f"{shop.framework.name}: which variable leaves out URLs?")
    response, trace_id = shop.call("POST", "/excluded", "bob")
    assert response.status_code == 200
    no_record(shop, trace_id)
    assert f"requests that {shop.framework.excluded} leaves out get no audit record" in shop.service.log


def no_record(shop, trace_id):
    shop.record("PUT", "/orders/8", "bob")  # once this one is there, the other would be
    assert [r for r in services.spooled(shop.service.spool) if r.trace_id == trace_id] == []


def test_a_record_is_the_requests_span(shop):
    record = shop.record("POST", "/orders/7/crash?note=1", "bob")
    assert record.span.events[0].name == "exception"
    assert record.span.status.code == 2
    assert record.resource["service.name"] == "shop"
    addresses = ("client.address", "net.peer.ip", "net.sock.peer.addr", "network.peer.address")
    assert "127.0.0.1" in [record.attributes.get(name) for name in addresses]
    assert "bob-password" not in str(record.span)


def test_a_stream_that_breaks_has_failed(shop):
    record = streamed(shop, "breaks")
    assert record["outcome"] == "failure"
    assert record["reason"].startswith("the response was cut short")


def test_a_stream_that_the_client_leaves_has_failed(shop):
    record = streamed(shop, "endless", hang_up_after=3)
    assert record["outcome"] == "failure"
    assert record["reason"] in ("the response was cut short", "the client disconnected")


def streamed(shop, kind, hang_up_after=0):
    trace_id = services.new_trace()
    headers = services.traceparent(trace_id) | shop.headers("bob")
    url = f"http://127.0.0.1:{shop.service.port}/streams/{kind}"
    with shop.service.client.stream("POST", url, headers=headers) as response:
        try:
            for number, _ in enumerate(response.iter_lines(), 1):
                if number == hang_up_after:
                    break
        except (httpx.RemoteProtocolError, httpx.ReadError):
            pass
    (record,) = shop.service.records(trace_id)
    assert (record["actor.id"], record["target.id"]) == ("bob", kind)
    return record


def test_a_handler_fails_when_it_is_cancelled_and_not_because_its_client_leaves(shop):
    if shop.framework.cancels:
        record = shop.record("POST", "/cancelled", "bob")
        expected = ("bob", "failure", "cancelled before there was a response")
    else:
        record = left(shop, "/mixed/left?ms=50")
        expected = ("bob", "success", "left's reason")
    assert (record["actor.id"], record["outcome"], record["reason"]) == expected


def left(shop, path):
    """The record of a request whose client closes the connection without reading a byte."""
    trace_id = services.new_trace()
    headers = services.traceparent(trace_id) | shop.headers("bob") | {"host": "shop", "content-length": "0"}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    with socket.create_connection(("127.0.0.1", shop.service.port)) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    (record,) = shop.service.records(trace_id)
    return record


def test_parallel_requests_of_two_people_are_never_mixed_up(shop):
    for who in ("alice", "bob"):
        shop.headers(who)

    def call(number):
        who = ("alice", "bob")[number % 2]
        return shop.call("POST", f"/mixed/n{number}?ms={number % 7}", who)[1], (who, f"n{number}'s reason")

    with ThreadPoolExecutor(16) as pool:
        expected = dict(pool.map(call, range(200)))
    found = {}
    for trace_id in expected:
        (record,) = shop.service.records(trace_id)
        found[trace_id] = (record["actor.id"], record["reason"])
    assert found == expected


def test_requests_inside_a_request_keep_their_own_actor(shop):
    _, trace_id = shop.call("POST", "/calls-itself/2", "bob")
    records = {record["target.id"]: record for record in shop.service.records(trace_id, 3)}
    assert {d: (r["actor.id"], r["reason"]) for d, r in records.items()} == {
        d: (f"depth-{d}", f"{d}'s reason") for d in "012"
    }


def test_records_inside_a_request_form_one_tree(shop):
    _, trace_id = shop.call("POST", "/steps", "bob")
    by_action = {record["action"]: record for record in shop.service.records(trace_id, 3)}
    assert by_action["PREPARE"]["parent.span_id"] == by_action["CREATE"].span.span_id.hex()
    assert by_action["FIRST"]["parent.span_id"] == by_action["PREPARE"].span.span_id.hex()
    assert {record["actor.id"] for record in by_action.values()} == {"bob"}


def test_work_in_the_background_goes_on_in_the_requests_name(shop):
    _, trace_id = shop.call("POST", "/background", "bob")
    by_action = {record["action"]: record for record in shop.service.records(trace_id, 2)}
    assert by_action["NOTIFY"]["actor.id"] == "bob"
    assert by_action["NOTIFY"]["parent.span_id"] == by_action["CREATE"].span.span_id.hex()


def test_nothing_that_a_client_sends_makes_an_actor(shop):
    claims = {
        "baggage": "audit.actor.id=root,audit.action=LOGIN,user.id=root,enduser.id=root",
        "audit-context": "k1.eyJhIjpbInJvb3QiXX0.AAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "authorization": "Basic-root",
        "audit.actor.id": "root",
        "x-forwarded-user": "root",
        "remote-user": "root",
        "x-user": "root",
    }
    record = shop.record("POST", "/orders", headers=claims, **TEA)
    assert {name: record[name] for name in NOBODY} == NOBODY
    assert "root" not in str({k: v for k, v in record.attributes.items() if k.startswith("audit.")})


def test_the_service_says_nothing_unusual_of_us(shop):
    shop.record("PUT", "/orders/7", "bob")
    expected = shop.service.log.count("leaves out get no audit record")
    assert shop.service.log.count("Auditspan") == expected
