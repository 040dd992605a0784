"""Rules, pseudonyms and proxies in real services under opentelemetry-instrument."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from auditspan.pseudonyms import HMAC, ActorKey, ActorNames
from google.protobuf.type_pb2 import Field

APPS = Path(__file__).parent / "apps"
ALICE = ("alice", "alice-password")
BOB = ("bob", "bob-password")
KEY = "2026-11 a-secret-of-more-than-thirty-two-characters"
NAMES = ActorNames(HMAC, ActorKey.parse(KEY))
EVERYTHING = {
    "OTEL_SEMCONV_STABILITY_OPT_IN": "http/dup",  # the old and the new names of all attributes
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": ".*",
}
SENT = {
    "params": {"page": "2", "token": "hunter2"},
    "headers": {"x-ticket": "T-77", "x-other": "hunter2", "user-agent": "hunter2-browser"},
}

RULES = """
rules:
  - route: /orders/{order_id}/refund
    action: REFUND_ORDER
    target: {type: order, id: order_id}
    reason: goodwill
    keep: {headers: [X-Ticket], query: [page]}
  - route: /orders/{order_id}
    method: GET
    do: audit
    target: {type: order}
  - route: [/orders, /secrets/*, /mixed/*]
    do: skip
"""


def relay(harness) -> list[str]:
    return [*harness.uvicorn("relay:app"), "--app-dir", str(APPS)]


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


@pytest.fixture(scope="module")
def fastapi(tmp_path_factory, harness, collector):
    folder = tmp_path_factory.mktemp("fastapi")
    service = harness.start(
        folder,
        [*harness.uvicorn("fastapi_shop:app"), "--no-proxy-headers"],
        {
            **EVERYTHING,
            "OTEL_AUDITSPAN_RULES": written(folder, "rules.yaml", RULES),
            "OTEL_AUDITSPAN_ACTOR": "hmac",
            "OTEL_AUDITSPAN_ACTOR_KEY_FILE": written(folder, "actor.key", KEY),
            "OTEL_AUDITSPAN_TRUSTED_PROXIES": "127.0.0.0/8",
            "OTEL_AUDITSPAN_SPAN_ATTRIBUTES": "off",
            "OTEL_TRACES_EXPORTER": "otlp_proto_grpc",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        },
    )
    yield service
    service.stop()


def test_a_rule_says_what_is_done_to_what_and_what_is_kept(fastapi):
    record = fastapi.record("POST", "/orders/7/refund", auth=BOB, **SENT)
    expected = {
        "action": "REFUND_ORDER",
        "target.type": "order",
        "target.id": "7",
        "reason": "goodwill",
        "outcome": "success",
    }
    assert {name: record[name] for name in expected} == expected
    assert record.attributes["http.request.header.x-ticket"] == ["T-77"]
    assert record.attributes["url.query"] == "page=2"
    assert "hunter2" not in str(record.span)


def test_a_read_is_a_record_by_a_rule(fastapi):
    record = fastapi.record("GET", "/orders/7", auth=BOB, **SENT)
    assert (record["action"], record["target.type"], record["target.id"]) == ("READ", "order", "7")
    assert "hunter2" not in str(record.span)
    assert "T-77" not in str(record.span)
    assert record.attributes["http.url"].endswith("/orders/7")


@pytest.mark.parametrize("request_line", [("POST", "/orders"), ("GET", "/secrets/plan")])
def test_a_skipped_route_leaves_no_record(fastapi, request_line):
    fastapi.nothing(*request_line, auth=BOB, after=("PUT", "/orders/7"))


def test_what_the_application_asks_for_is_a_record_on_a_skipped_route_too(fastapi):
    record = fastapi.record("POST", "/mixed/a/spans", headers={"authorization": "Bearer token-of-bob"})
    assert record["reason"] == "a's reason"


def test_an_actor_has_a_pseudonym_and_no_name(fastapi):
    record = fastapi.record("PUT", "/orders/7", auth=ALICE)
    assert record["actor.id"] == NAMES.name("alice")
    assert record["actor.key_id"] == "2026-11"
    assert record["actor.roles"] == ["admin", "sales"]
    assert "alice" not in str(record.span)


def test_a_name_in_a_path_is_replaced_where_its_bearer_acts(fastapi):
    record = fastapi.record("POST", "/tokens/alice", headers={"authorization": "Bearer token-of-alice"})
    assert record["target.id"] == record["actor.id"] == NAMES.name("alice")
    assert "alice" not in str(record.span)


def test_an_exception_leaves_its_type_and_not_what_it_says(fastapi):
    record = fastapi.record("POST", "/orders/7/crash", auth=BOB)
    assert record["outcome"] == "failure"
    assert "RuntimeError" in str(record.span.events)
    assert "out of luck" not in str(record.span)


def test_the_client_behind_a_named_proxy(fastapi):
    forwarded = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
    record = fastapi.record("PUT", "/orders/7", headers=forwarded)
    peers = {key: text for key, text in record.attributes.items() if "peer" in key or "address" in key}
    del peers["server.address"], peers["net.peer.port"]
    assert peers == {"client.address": "203.0.113.7", "audit.proxy.address": "127.0.0.1"}


def test_switched_off_ordinary_spans_carry_nothing_of_ours(fastapi, collector, harness):
    _, trace_id = fastapi.call("GET", "/exports/5", auth=ALICE)
    (record,) = fastapi.records(trace_id)
    assert record["action"] == "EXPORT"
    spans = harness.wait_for(
        lambda: len(collector.of(trace_id)) >= 2 and collector.of(trace_id), "both spans"
    )
    assert [key for span in spans for key in span.attributes if key.startswith("audit.")] == []


def test_the_service_says_nothing_unusual(fastapi):
    fastapi.record("PUT", "/orders/7")
    assert "Auditspan" not in fastapi.log


# -- Flask, with rules that can't be used


@pytest.fixture(scope="module")
def flask(tmp_path_factory, harness):
    folder = tmp_path_factory.mktemp("flask")
    service = harness.start(
        folder,
        [sys.executable, "flask_shop.py"],
        {
            **EVERYTHING,
            "OTEL_AUDITSPAN_RULES": written(
                folder, "rules.yaml", "rules:\n  - route: /orders\n    do: omit\n"
            ),
            "OTEL_AUDITSPAN_ACTOR": "hmac",
            "OTEL_AUDITSPAN_TRUSTED_PROXIES": "10.0.0.0/8,proxy",
        },
    )
    yield service
    service.stop()


def test_wrong_rules_are_told_with_file_and_line_and_the_defaults_stay(flask, tmp_path_factory):
    record = flask.record("POST", "/orders", **SENT)
    assert record["action"] == "CREATE"
    assert "rules.yaml:3: 'omit' is not known; allowed is audit or skip" in flask.log
    assert "the defaults are in force" in flask.log


def test_hmac_without_a_key_names_nobody(flask):
    record = flask.record("POST", "/login", data={"name": "alice", "password": "alice-password"})
    assert (record["actor.id"], record["actor.origin"], record["outcome"]) == (
        None,
        "authenticated",
        "success",
    )
    assert "alice" not in str(record.span)
    assert "there is no key for pseudonyms" in flask.log


def test_headers_and_queries_stay_out_of_flasks_records_too(flask):
    record = flask.record("POST", "/orders", **SENT)
    assert "hunter2" not in str(record.span)
    assert record.attributes["http.target"] == "/orders"


def test_a_forwarding_header_from_anybody_else_counts_for_nothing(flask):
    record = flask.record("POST", "/orders", headers={"x-forwarded-for": "203.0.113.7"})
    assert record.attributes["net.peer.ip"] == "127.0.0.1"
    assert "203.0.113.7" not in str(record.span)
    assert "'proxy' is left out" in flask.log


# -- gRPC


GRPC_RULES = """
keep: {headers: [x-request-id]}
rules:
  - grpc: shop.v1.Billing/Get*
    do: audit
    target: {type: invoice, id: name}
  - grpc: shop.v1.Billing/ChargeCard
    action: CHARGE_CARD
    target: {id: [type_url, number]}
  - grpc: shop.v1.Billing
    do: skip
"""


@pytest.fixture(scope="module", params=["sync", "aio"])
def billing(request, tmp_path_factory, harness):
    folder = tmp_path_factory.mktemp("billing")
    service = harness.start(
        folder,
        [sys.executable, str(APPS / "billing.py"), request.param],
        {
            "OTEL_AUDITSPAN_RULES": written(folder, "rules.yaml", GRPC_RULES),
            "OTEL_AUDITSPAN_TRUSTED_PROXIES": "127.0.0.1",
        },
    )
    with grpc.insecure_channel(f"127.0.0.1:{service.port}") as channel:

        def call(method: str) -> str:
            trace_id = harness.new_trace()
            metadata = [
                *harness.traceparent(trace_id).items(),
                ("x-request-id", "R-1"),
                ("x-other", "hunter2"),
                ("forwarded", "for=203.0.113.7"),
            ]
            message = Field(name="I-42", number=9, type_url="card", json_name="hunter2")
            send = channel.unary_unary(f"/shop.v1.Billing/{method}")
            send(message.SerializeToString(), metadata=metadata, timeout=20)
            return trace_id

        yield service, call
    service.stop()


def test_a_target_is_read_off_the_message(billing):
    service, call = billing
    (read,), (charged,) = (service.records(call(method)) for method in ("GetInvoice", "ChargeCard"))
    assert (read["action"], read["target.type"], read["target.id"]) == ("READ", "invoice", "I-42")
    assert (charged["action"], charged["target.type"], charged["target.id"]) == (
        "CHARGE_CARD",
        "Billing",
        "card/9",
    )


def test_of_the_metadata_only_what_is_named_is_kept(billing):
    service, call = billing
    (record,) = service.records(call("GetInvoice"))
    assert record.attributes["rpc.grpc.request.metadata.x-request-id"] == ["R-1"]
    assert "hunter2" not in str(record.span)
    assert "grpc-python" not in str(record.span)
    assert record.attributes["client.address"] == "203.0.113.7"


def test_a_skipped_method_leaves_no_record(billing, harness):
    service, call = billing
    skipped = call("Ping")
    service.records(call("GetInvoice"))
    assert [record for record in harness.spooled(service.spool) if record.trace_id == skipped] == []


# -- over three services


def test_services_downstream_record_the_same_pseudonym_whatever_they_do_themselves(tmp_path_factory, harness):
    keys = written(
        tmp_path_factory.mktemp("keys"),
        "context.keys",
        "k1 another-secret-of-more-than-thirty-two-characters",
    )

    def start(mode: str):
        return harness.start(
            tmp_path_factory.mktemp(mode),
            relay(harness),
            {
                "OTEL_SERVICE_NAME": f"orders-{mode}",
                "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": keys,
                "OTEL_AUDITSPAN_ACTOR": mode,
                "OTEL_AUDITSPAN_ACTOR_KEY": KEY if mode == "hmac" else "",
            },
        )

    with ThreadPoolExecutor() as pool:
        ends = dict(zip(("hmac", "raw", "off"), pool.map(start, ("hmac", "raw", "off")), strict=True))
    addresses = [f"127.0.0.1:{end.port}" for end in ends.values()]
    gateway = harness.start(
        tmp_path_factory.mktemp("gateway"),
        relay(harness),
        {
            "OTEL_SERVICE_NAME": "gateway",
            "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": keys,
            "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": ",".join(addresses),
            "OTEL_AUDITSPAN_ACTOR": "hmac",
            "OTEL_AUDITSPAN_ACTOR_KEY": KEY,
            "NEXT": ",".join(f"http://{address}" for address in addresses),
        },
    )
    try:
        response, trace_id = gateway.call("POST", "/work?name=alice")
        assert response.status_code == 200, gateway.log
        (first,) = gateway.records(trace_id)
        records = {mode: end.records(trace_id)[0] for mode, end in ends.items()}
    finally:
        for service in (gateway, *ends.values()):
            service.stop()
    alice = NAMES.name("alice")
    assert (first["actor.id"], first["actor.origin"]) == (alice, "authenticated")
    for mode, record in records.items():
        assert record["actor.id"] == (None if mode == "off" else alice)
        assert (record["actor.origin"], record["actor.delegate"]) == ("asserted", "gateway")
        assert record["actor.roles"] == ["sales"]
        assert record["parent.span_id"] == first.span.span_id.hex()
        assert "alice" not in str(record.span)


def test_a_service_that_names_nobody_tells_nobody_downstream(tmp_path_factory, harness):
    keys = written(
        tmp_path_factory.mktemp("keys"),
        "context.keys",
        "k1 another-secret-of-more-than-thirty-two-characters",
    )
    shared = {"OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": keys}
    end = harness.start(tmp_path_factory.mktemp("end"), relay(harness), shared)
    gateway = harness.start(
        tmp_path_factory.mktemp("gateway"),
        relay(harness),
        shared
        | {
            "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": "127.0.0.1",
            "OTEL_AUDITSPAN_ACTOR": "off",
            "NEXT": f"http://127.0.0.1:{end.port}",
        },
    )
    try:
        _, trace_id = gateway.call("POST", "/work?name=alice")
        (first,), (record,) = gateway.records(trace_id), end.records(trace_id)
    finally:
        gateway.stop()
        end.stop()
    assert (record["actor.id"], record["actor.origin"], record["context.rejected"]) == (
        "unknown",
        "unverified",
        None,
    )
    assert record["parent.span_id"] == first.span.span_id.hex()
