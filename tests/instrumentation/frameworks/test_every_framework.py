"""The specification that each framework must pass: the same shop, the same requests, the same records."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from instrumentation.frameworks.frameworks import FRAMEWORKS

from instrumentation import services

NOBODY = {}
ALICE = {
    "actor.id": "alice",
    "actor.type": "user",
    "actor.roles": ["admin", "sales"],
    "actor.origin": "authenticated",
}
BOB = ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}
TEA = {"json": {"product": "tea"}}


@dataclass(frozen=True)
class Case:
    id: str
    who: str
    request_line: list[str]
    arguments: dict[str, Any]
    expected: dict[str, Any]

    @classmethod
    def of(cls, who, request_line, actor, *, id, arguments=None, **expected):  # noqa: A002 - as pytest's
        said = {name.replace("_", "."): text for name, text in expected.items()}
        return cls(id, who, request_line.split(), arguments or {}, actor | said)


CASES = [
    Case.of(
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
    Case.of(
        "alice",
        "POST /orders",
        ALICE,
        id="several-roles",
        arguments=TEA,
        action="CREATE",
        outcome="success",
        target_type="orders",
    ),
    Case.of(
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
    Case.of(
        "bob",
        "POST /orders/7/refund",
        BOB,
        id="a-verb-of-its-own",
        action="REFUND",
        outcome="success",
        target_type="orders",
        target_id="7",
    ),
    Case.of(
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
    Case.of(
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
    Case.of(
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
    Case.of(
        "bob",
        "GET /reports/r1",
        BOB,
        id="a-read-that-was-asked-for",
        action="READ",
        outcome="success",
        target_type="reports",
        target_id="r1",
    ),
    Case.of(
        "bob",
        "POST /orders/7/missing",
        BOB,
        id="not-found",
        outcome="failure",
        target_type="orders",
        target_id="7",
    ),
    Case.of(
        "bob",
        "POST /nowhere/9",
        BOB,
        id="no-such-route",
        action="CREATE",
        outcome="failure",
        target_type=None,
        target_id=None,
    ),
    Case.of(
        "bob",
        "POST /orders/7/crash",
        BOB,
        id="exception",
        action="CRASH",
        outcome="failure",
        target_type="orders",
        target_id="7",
    ),
    Case.of(
        "bob",
        "POST /orders",
        BOB,
        id="validation-error",
        arguments={"json": {}},
        action="CREATE",
        outcome="failure",
        target_type="orders",
    ),
    Case.of(
        "bob",
        "POST /streams/whole",
        BOB,
        id="streaming",
        outcome="success",
        reason=None,
        target_type="streams",
        target_id="whole",
    ),
    Case.of(
        "bob",
        "PUT /shop/customers/c1",
        BOB,
        id="mounted-router",
        action="UPDATE",
        outcome="success",
        target_type="customers",
        target_id="c1",
    ),
    Case.of(
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_request_has_one_record(shop, case):
    record = shop.record(*case.request_line, case.who, **case.arguments)
    who, expected = case.who, shop.expected(case.expected)
    if expected["outcome"] == "denied":  # a framework may say more
        assert record["reason"].startswith(expected["reason"])
        expected = expected | {"reason": record["reason"]}
    if shop.framework.late and case.id == "no-such-route":
        who, expected = "", expected | {"actor.type": "user"}
    if not who:
        expected = expected | shop.nobody()
    assert {name: record[name] for name in expected} == expected
    assert record["actor.auth_method"] == (shop.framework.auth_method if who else None)
    assert (record["schema.version"], record["delivery"]) == ("1", None)


def named(case):
    """By which name a framework's row leaves out the test."""

    def decorate(test):
        test.case = case
        return test

    return decorate


def test_a_read_that_nobody_asked_for_has_none(shop):
    response, trace_id = shop.call("GET", "/orders/7", "bob")
    assert response.is_success
    no_record(shop, trace_id)


@named("excluded-url")
def test_an_excluded_url_has_none_and_the_log_says_so(shop):
    response, trace_id = shop.call("POST", "/excluded", "bob")
    assert response.is_success
    no_record(shop, trace_id)
    assert f"requests that {shop.framework.excluded} leaves out get no audit record" in shop.service.log


def no_record(shop, trace_id):
    shop.record("PUT", "/orders/8", "bob")  # once this one is there, the other would be
    assert [r for r in services.spooled(shop.service.spool) if r.trace_id == trace_id] == []


def test_a_record_is_the_requests_span(shop):
    record = shop.record("POST", "/orders/7/crash?note=1", "bob")
    # An instrumentation writes down one of the two, or both.
    assert "exception" in [event.name for event in record.span.events] or record.span.status.code == 2
    assert record.resource["service.name"] == "shop"
    addresses = ("client.address", "net.peer.ip", "net.sock.peer.addr", "network.peer.address")
    assert "127.0.0.1" in [record.attributes.get(name) for name in addresses]
    assert "bob-password" not in str(record.span)


def test_a_stream_that_breaks_has_failed(shop):
    record = shop.streamed("breaks")
    assert (record["actor.id"], record["outcome"]) == ("bob", "failure")
    assert (record["reason"] or "").startswith(shop.cut_short)


def test_a_stream_that_the_client_leaves_has_failed(shop):
    record = shop.streamed("endless", hang_up_after=3)
    assert (record["actor.id"], record["outcome"]) == ("bob", "failure")
    assert record["reason"] in shop.left_alone


def test_a_handler_fails_when_it_is_cancelled_and_not_because_its_client_leaves(shop):
    if shop.framework.cancels:
        record = shop.cancel()
        expected = ("bob", "failure", shop.cancelled)
    else:
        record = shop.left()
        expected = ("bob", "success", "left's reason")
    assert (record["actor.id"], record["outcome"], record["reason"]) == expected


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
    records = shop.service.records(trace_id, 3)
    said = sorted((record["actor.id"], record["reason"]) for record in records)
    assert said == [(f"depth-{depth}", f"{depth}'s reason") for depth in "012"]


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
    assert {name: record[name] for name in shop.nobody()} == shop.nobody()
    assert "root" not in str({k: v for k, v in record.attributes.items() if k.startswith("audit.")})


def test_the_service_says_nothing_unusual_of_us(shop):
    shop.record("PUT", "/orders/7", "bob")
    expected = shop.service.log.count("leaves out get no audit record")
    assert shop.service.log.count("Auditspan") == expected


def test_what_a_framework_is_without_are_cases_each_with_a_reason():
    cases = {case.id for case in CASES} | {getattr(test, "case", "") for test in globals().values()}
    for framework in FRAMEWORKS:
        assert set(framework.without) <= cases - {""}, framework.name
        assert all(framework.without.values()), framework.name
