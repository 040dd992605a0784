"""Spans that say nothing of audit become records where an operator's rule says so, whichever way a request goes."""

from __future__ import annotations

import json

import pytest
from auditspan_collector import decode
from auditspan_collector.config import parse
from auditspan_collector.errors import ConfigError, InvalidRequest, PermissionDenied
from auditspan_collector.pipeline import encode, readable
from auditspan_collector.processor.enrich import Limits, enrich
from auditspan_collector.processor.tagging import Rule, Tagger
from auditspan_collector.record import OtlpRequest, Sender
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRUSTED = Sender("legacy", tenant="default", services=None, instrumented=True)
SERVER, CLIENT = 2, 3
CREATE = Rule(
    name="invoices",
    service="billing*",
    span="POST /invoices*",
    having=("http.request.method=POST",),
    action="create",
    target_type="invoices",
    target_id="invoice.number",
)


def request(
    *, service="billing-v1", name="POST /invoices", kind=SERVER, spans=1, **attributes: object
) -> bytes:
    message = ExportTraceServiceRequest()
    group = message.resource_spans.add()
    group.resource.attributes.add(key="service.name").value.string_value = service
    for number in range(1, spans + 1):
        span = group.scope_spans.add().spans.add(
            trace_id=bytes([number]) * 16, span_id=bytes([number]) * 8, name=name, kind=kind
        )
        for key, value in {"http.request.method": "POST", **attributes}.items():
            if isinstance(value, int):
                span.attributes.add(key=key).value.int_value = value
            else:
                span.attributes.add(key=key).value.string_value = str(value)
    return message.SerializeToString()


@pytest.fixture(params=["compiled", "readable"])
def select(request, monkeypatch):
    """What turns a request into its selection, under rules."""
    monkeypatch.setattr(encode, "COMPILED", request.param == "compiled")

    def select(body, *rules, sender=TRUSTED, encoding="protobuf", limits=Limits()):  # noqa: B008 - frozen
        return encode.encoder(limits, rules)(OtlpRequest(body, encoding, sender, "127.0.0.1:1", 10**18))

    return select


def says(body: bytes, **attributes: str) -> bytes:
    """*body* whose spans say for themselves, in this order, what a rule would have put there."""
    message = ExportTraceServiceRequest.FromString(body)
    for group in message.resource_spans:
        for scoped in group.scope_spans:
            for span in scoped.spans:
                for key, value in attributes.items():
                    span.attributes.add(key=key).value.string_value = value
    return message.SerializeToString()


def record(body: bytes):
    """What the one span of *body* says, by the readable path's own steps."""
    (found,) = decode.find(body, "protobuf", "audit.").spans
    return enrich(decode.decode(found), TRUSTED, 10**18, Limits())


def test_a_span_that_a_rule_fits_is_a_record(select):
    body = request(**{"invoice.number": 7, "user.id": "alice", "http.response.status_code": 403})
    selection = select(body, CREATE)
    told = {"audit.action": "create", "audit.target.type": "invoices", "audit.target.id": "7"}
    said = says(body, **told, **{"auditspan.tagged": "invoices"})
    assert selection.leaves == select(said).leaves
    assert (selection.spans, selection.tagged) == (1, 1)
    expected = {
        "action": "CREATE",
        "target_type": "invoices",
        "target_id": "7",
        "actor_id": "alice",
        "actor_origin": "unverified",
        "outcome": "denied",
        "service_name": "billing-v1",
    }
    assert {name: getattr(record(said), name) for name in expected} == expected


@pytest.mark.parametrize(
    "other",
    [
        {"service": "shipping"},
        {"name": "POST /orders"},
        {"kind": CLIENT},
        {"http.request.method": "GET"},
    ],
    ids=["service", "name", "kind", "attribute"],
)
def test_one_that_none_fits_is_not(select, other):
    assert len(select(request(**other), CREATE).leaves) == 0


def test_the_first_rule_that_fits_counts(select):
    second = Rule(name="all", service="*", action="EXECUTE")
    first, other = select(request(), CREATE, second), select(request(service="shipping"), CREATE, second)
    assert first.leaves == select(request(), CREATE).leaves
    said = says(request(service="shipping"), **{"audit.action": "EXECUTE", "auditspan.tagged": "all"})
    assert other.leaves == select(said).leaves


def test_a_span_that_says_something_itself_is_left_as_it_is(select):
    body = request(**{"audit.action": "APPROVE"})
    assert select(body, CREATE).leaves == select(body).leaves
    copy = request(**{"audit.delivery": "spool"})
    assert len(select(copy, CREATE).leaves) == 0


def test_the_attribute_that_a_rule_names_is_the_actor(select):
    rule = Rule(name="users", service="billing*", action="CREATE", actor="app.login")
    both = request(**{"app.login": "bob", "user.id": "alice"})
    said = says(both, **{"audit.action": "CREATE", "audit.actor.id": "bob", "auditspan.tagged": "users"})
    assert select(both, rule).leaves == select(said).leaves
    assert (record(said).actor_id, record(said).actor_origin) == ("bob", "unverified")
    without = request(**{"user.id": "alice"})
    said = says(without, **{"audit.action": "CREATE", "auditspan.tagged": "users"})
    assert select(without, rule).leaves == select(said).leaves
    assert record(said).actor_id == "alice"


def test_a_retry_gives_the_same_leaf(select):
    body = request(spans=3)
    assert select(body, CREATE).leaves == select(body, CREATE).leaves
    assert len({leaf.identity for leaf in select(body, CREATE).leaves}) == 3


def test_json_is_tagged_too(select):
    message = ExportTraceServiceRequest.FromString(request())
    document = MessageToDict(message)
    for group in document["resourceSpans"]:
        for span in group["scopeSpans"][0]["spans"]:
            span |= {"traceId": "01" * 16, "spanId": "01" * 8, "kind": SERVER}
    sent = select(json.dumps(document).encode(), CREATE, encoding="json")
    assert sent.leaves == select(request(), CREATE).leaves


def test_records_by_themselves_come_first_and_stay_what_they_are(select):
    said = request(service="orders", **{"audit.action": "REFUND"})
    both = select(said + request(), CREATE)
    assert list(both.leaves) == [*select(said).leaves, *select(request(), CREATE).leaves]
    assert (both.spans, both.tagged) == (2, 2)


def test_a_sender_s_services_are_checked(select):
    sender = Sender("legacy", tenant="default", services=("orders",), instrumented=False)
    with pytest.raises(PermissionDenied, match="billing-v1"):
        select(request(), CREATE, sender=sender)
    assert len(select(request(), sender=sender).leaves) == 0


def test_a_span_without_ids_is_counted_and_named(select):
    message = ExportTraceServiceRequest.FromString(request(spans=2))
    message.resource_spans[0].scope_spans[0].spans[0].trace_id = b""
    selection = select(message.SerializeToString(), CREATE)
    assert (len(selection.leaves), selection.invalid) == (1, 1)
    assert "trace_id is missing" in selection.problems[0]


def test_a_malformed_request_is_what_it_is_without_rules(select):
    with pytest.raises(InvalidRequest) as with_rules:
        select(request()[:-1], CREATE)
    with pytest.raises(InvalidRequest) as without:
        select(request()[:-1])
    assert str(with_rules.value) == str(without.value)


def test_a_request_at_the_limit_of_spans_is_tagged(select):
    limits = Limits(spans_per_request=6)  # two spans, each in a scope, in one resource
    assert len(select(request(spans=2), CREATE, limits=limits).leaves) == 2


def test_without_rules_there_is_no_step_more():
    assert not isinstance(encode.encoder(Limits()), type(encode.encoder(Limits(), (CREATE,))))
    assert readable.encode(OtlpRequest(request(), "protobuf", TRUSTED, "", 0), Limits()).tagged == 0


@pytest.mark.parametrize(
    ("pattern", "looked_for"),
    [
        ("billing", True),
        ("billing*", True),
        ("b?lling", True),
        ("*", True),
        ("[b]illing", True),
        ("shop*", False),
    ],
)
def test_what_no_rule_can_mean_is_passed_over_quickly(pattern, looked_for):
    tagger = Tagger([Rule(name="x", service=pattern, action="X")])
    assert tagger.may_fit(b"... billing ...") is looked_for


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tagging: {rules: [{service: billing, action: CREATE}]}", "name"),
        ("tagging: {rules: [{name: a, service: billing, action: X, kinds: [servers]}]}", "servers"),
        ("tagging: {rules: [{name: a, service: b, action: X, having: [POST]}]}", "allowed: key=pattern"),
    ],
    ids=["no-name", "no-kind", "no-condition"],
)
def test_a_wrong_rule_is_a_clear_error(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text, data=tmp_path, environ={})


def test_a_rule_is_read_from_the_file(tmp_path):
    text = """
tagging:
  rules:
    - name: invoices
      service: billing*
      span: POST /invoices*
      having: [http.request.method=POST]
      action: create
      target_type: invoices
      target_id: invoice.number
"""
    assert parse(text, data=tmp_path, environ={}).tagging.rules == (CREATE,)
