"""A FastAPI service under opentelemetry-instrument: what a request leaves in the spool."""

from __future__ import annotations

import time

import pytest

ALICE = ("alice", "alice-password")
BOB = ("bob", "bob-password")
NOBODY = {"actor.id": "anonymous", "actor.origin": "unverified", "actor.type": "user", "actor.roles": None}
BY_ALICE = {
    "actor.id": "alice",
    "actor.type": "user",
    "actor.roles": ["admin", "sales"],
    "actor.origin": "authenticated",
    "actor.auth_method": "basic",
}
BY_BOB = BY_ALICE | {"actor.id": "bob", "actor.roles": ["sales"]}


@pytest.fixture(
    scope="module",
    params=["always_on", "traceidratio"],
    ids=["every-trace-sampled", "ratio-0"],
)
def service(request, tmp_path_factory, harness, collector):
    service = harness.start(
        tmp_path_factory.mktemp("fastapi"),
        harness.uvicorn("fastapi_shop:app"),
        {
            "OTEL_TRACES_SAMPLER": request.param,
            "OTEL_TRACES_SAMPLER_ARG": "0",
            "OTEL_TRACES_EXPORTER": "otlp_proto_grpc",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_AUDITSPAN_READS": "/reports/*",
        },
    )
    service.sampled = request.param == "always_on"
    yield service
    service.stop()


CASES = [
    pytest.param(
        ("PUT", "/orders/7"),
        {"auth": ("alice", "guess")},
        NOBODY | {"action": "UPDATE", "outcome": "denied", "reason": "wrong password", "target.id": "7"},
        id="wrong-password",
    ),
    pytest.param(
        ("POST", "/needs-login"),
        {},
        NOBODY | {"outcome": "denied", "reason": "redirected to the login page"},
        id="sent-to-the-login-page",
    ),
    pytest.param(
        ("POST", "/tokens/t1"),
        {"headers": {"authorization": "Bearer token-of-alice"}},
        BY_ALICE | {"actor.auth_method": "bearer", "outcome": "success", "target.type": "tokens"},
        id="dependency-in-a-thread-pool",
    ),
    pytest.param(
        ("POST", "/tokens/t1"),
        {"headers": {"authorization": "Bearer made-up"}},
        NOBODY | {"outcome": "denied", "reason": "401 Unauthorized"},
        id="dependency-refuses",
    ),
]


@pytest.mark.parametrize(("request_line", "arguments", "expected"), CASES)
def test_a_request_becomes_a_record(service, request_line, arguments, expected):
    record = service.record(*request_line, **arguments)
    assert {name: record[name] for name in expected} == expected
    assert record["schema.version"] == "1"
    assert record["sequence.number"] > 0
    assert record["delivery"] is None


def test_a_record_is_the_whole_span(service):
    record = service.record("POST", "/orders/7/crash?note=1", auth=BOB)
    assert record.span.name == "POST /orders/{order_id}/crash"
    assert record.attributes["http.status_code"] == 500
    assert record.attributes["http.route"] == "/orders/{order_id}/crash"
    assert record.span.events[0].name == "exception"
    assert record.span.status.code == 2
    assert record.resource["service.name"] == "shop"
    assert record.scope == "opentelemetry.instrumentation.fastapi"
    assert bool(record.span.flags & 1) is service.sampled


def test_the_ordinary_span_carries_the_attributes_and_says_that_the_record_comes_by_the_spool(
    service, collector
):
    _, trace_id = service.call("PUT", "/orders/7", auth=BOB)
    (record,) = service.records(trace_id)
    if not service.sampled:
        return  # test_no_ordinary_span_is_exported_that_sampling_dropped has the rest

    ordinary = collector.ordinary(record)
    spans = collector.of(trace_id)
    ours = {name: text for name, text in record.attributes.items() if name.startswith("audit.")}
    seen = {name: text for name, text in ordinary.attributes.items() if name.startswith("audit.")}
    assert seen == {k: v for k, v in ours.items() if "sequence" not in k} | {"audit.delivery": "spool"}
    assert [
        span
        for span in spans
        if span is not ordinary and any(k.startswith("audit.") for k in span.attributes)
    ] == []


def test_no_ordinary_span_is_exported_that_sampling_dropped(service, collector, harness):
    dropped = [
        service.call("PUT", "/orders/7")[1],
        service.call("POST", "/mixed/x/spans", headers=_bearer("bob"))[1],
    ]
    for trace_id in dropped:
        service.records(trace_id)
    if service.sampled:
        for trace_id in dropped:
            harness.wait_for(lambda t=trace_id: collector.of(t), "the ordinary spans")
        return
    # The exporter sends every 100 ms and in order of ending; ten times that is enough for what it would send.
    time.sleep(1)
    assert [collector.of(trace_id) for trace_id in dropped] == [[], []]


def _bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer token-of-{name}"}


def test_an_actor_set_under_an_inner_span_is_the_requests(service):
    record = service.record("POST", "/mixed/red/spans", headers=_bearer("alice"))
    assert record["actor.id"] == "red-of-alice"
    assert record["reason"] == "red's reason"


def test_a_record_inside_a_read_stands_alone_with_the_requests_actor(service):
    record = service.record("GET", "/exports/e1", auth=ALICE)
    expected = BY_ALICE | {
        "action": "EXPORT",
        "target.type": "report",
        "target.id": "e1",
        "outcome": "success",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["reason"] == "asked by the auditors"
    assert record["parent.span_id"] is None


def test_records_inside_a_record_form_one_tree(service):
    _, trace_id = service.call("POST", "/steps", auth=BOB)
    by_action = {record["action"]: record for record in service.records(trace_id, 3)}
    assert set(by_action) == {"CREATE", "PREPARE", "FIRST"}
    assert by_action["PREPARE"]["parent.span_id"] == by_action["CREATE"].span.span_id.hex()
    assert by_action["FIRST"]["parent.span_id"] == by_action["PREPARE"].span.span_id.hex()
    assert by_action["PREPARE"]["target.id"] == "/steps"
    assert {record["actor.id"] for record in by_action.values()} == {"bob"}


def test_attributes_set_by_hand_say_what_is_done_but_never_by_whom(service):
    record = service.record("POST", "/by-hand", auth=BOB)
    assert record["action"] == "ARCHIVE"
    assert record["ticket"] == 3
    assert (record["actor.id"], record["actor.origin"]) == ("bob", "authenticated")


@pytest.mark.parametrize(
    "headers",
    [
        {"baggage": "audit.actor.id=root,audit.action=LOGIN,user.id=root,enduser.id=root"},
        {"audit.actor.id": "root", "audit-actor-id": "root", "x-user": "root", "user.id": "root"},
        {"audit-context": "k1.eyJhIjpbInJvb3QiXX0.AAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
        {"authorization": "Basic-root"},
        {"authorization": "Bearer root", "x-forwarded-user": "root", "remote-user": "root"},
    ],
    ids=["baggage", "headers", "forged-token", "odd-authorization", "proxy-headers"],
)
def test_nothing_that_a_client_sends_makes_an_actor(service, headers):
    record = service.record("PUT", "/orders/7", headers=headers)
    assert (record["actor.id"], record["actor.origin"]) == ("anonymous", "unverified")
    assert record["action"] == "UPDATE"
    ours = {name: text for name, text in record.attributes.items() if name.startswith("audit.")}
    assert "root" not in str(ours)


def test_a_credential_is_never_in_a_record(service):
    record = service.record("PUT", "/orders/7", headers={"authorization": "hunter2-without-a-scheme"})
    assert "hunter2" not in str(record.span)


def test_a_full_span_still_has_its_audit_attributes(service, collector):
    _, trace_id = service.call("POST", "/many-attributes", auth=BOB)
    (record,) = service.records(trace_id)
    assert (record["actor.id"], record["action"], record["outcome"]) == ("bob", "CREATE", "success")
    assert record["sequence.number"] > 0
    assert record.attributes["detail.199"] == 199
    assert record.span.dropped_attributes_count > 72
    if service.sampled:
        assert collector.ordinary(record)["actor.id"] == "bob"


def test_a_session_is_stored_hashed(service):
    _, trace_id = service.call("POST", "/session", auth=BOB)
    (record,) = service.records(trace_id)
    assert len(record["actor.session_id"]) == 32
    assert "a-secret-session" not in str(record.span)


def test_the_service_says_nothing_unusual(service):
    service.record("PUT", "/orders/7")
    assert "Auditspan" not in service.log
    assert "Traceback" not in service.log.replace(
        "Traceback", "", service.log.count("RuntimeError: out of luck")
    )
