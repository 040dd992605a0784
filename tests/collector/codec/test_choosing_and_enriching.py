"""processor: which spans become records, and what their columns say."""

from __future__ import annotations

import hashlib
import json
import uuid

import pytest
from auditspan_collector import decode
from auditspan_collector.errors import InvalidRequest, PermissionDenied, TooLarge
from auditspan_collector.pipeline.readable import encode
from auditspan_collector.processor import values
from auditspan_collector.processor.enrich import Limits, enrich
from auditspan_collector.record import OtlpRequest, Sender
from collector.codec import wire_format as wf
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

RECEIVED_UNIX_NS = 1_790_000_000_123_456_789
INSTRUMENTED = Sender("orders", tenant="retail", services=None, instrumented=True)
SCALARS = {
    str: "string_value",
    bool: "bool_value",
    int: "int_value",
    float: "double_value",
    bytes: "bytes_value",
}
FOREIGN = Sender("vendor", tenant="retail", services=None, instrumented=False)


def any_value(value) -> AnyValue:
    """A Python value as OTLP has it."""
    field = SCALARS.get(type(value))
    if field:
        return AnyValue(**{field: value})
    made = AnyValue()
    if isinstance(value, list):
        made.array_value.SetInParent()
        made.array_value.values.extend(any_value(one) for one in value)
    elif isinstance(value, dict):
        made.kvlist_value.SetInParent()
        made.kvlist_value.values.extend(pairs(value))
    return made


def pairs(attributes: dict) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def a_span(attributes: dict | None = None, **fields) -> Span:
    fields = {"trace_id": b"t" * 16, "span_id": b"s" * 8, "name": "POST /orders"} | fields
    return Span(attributes=pairs(attributes or {}), **fields)


def a_request(*spans: Span, service: str | None = "orders") -> bytes:
    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add()
    if service is not None:
        in_resource.resource.attributes.extend(pairs({"service.name": service}))
    in_resource.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()


def encoded(body: bytes, sender: Sender = INSTRUMENTED):
    return encode(OtlpRequest(body, "protobuf", sender, "127.0.0.1", RECEIVED_UNIX_NS), Limits())


def record(attributes: dict | None = None, *, sender=INSTRUMENTED, limits=None, resource=None, **fields):
    decoded = decode.DecodedSpan(
        span=a_span(attributes, **fields),
        resource=resource or Resource(),
        scope=InstrumentationScope(),
        resource_schema_url="",
        scope_schema_url="",
    )
    return enrich(decoded, sender, RECEIVED_UNIX_NS, limits or Limits())


# Choosing


@pytest.mark.parametrize(
    ("attributes", "tagged", "copies"),
    [
        ({"audit.action": "READ"}, 1, 0),
        ({"audit.": ""}, 1, 0),
        ({"http.route": "/", "audit.anything": 1}, 1, 0),
        ({"audit.delivery": "spool", "audit.action": "READ"}, 0, 1),
        ({"audit.delivery": "other"}, 1, 0),
        ({"audit.delivery": 5}, 1, 0),
        ({"auditor": "x", "user.id": "alice", "enduser.id": "bob"}, 0, 0),
        ({"http.route": "audit.x"}, 0, 0),
        ({"Audit.action": "READ"}, 0, 0),
    ],
)
def test_a_key_that_starts_with_audit_tags_a_span_unless_its_complete_twin_comes_by_the_spool(
    attributes, tagged, copies
):
    selection = encoded(a_request(a_span(attributes)))
    assert (selection.spans, selection.tagged, selection.copies) == (1, tagged, copies)
    assert len(selection.leaves) == tagged


def test_of_an_ordinary_copy_only_what_makes_it_one_is_judged():
    nonsense = wf.tag(7, wf.VARINT) + b"\x01"
    copy = wf.request(nonsense + wf.length_delimited(9, wf.attribute(b"audit.delivery", b"spool")))
    assert encoded(copy).copies == 1
    broken = wf.length_delimited(1, b"audit.delivery") + wf.length_delimited(2, b"\xff")
    with pytest.raises(InvalidRequest) as caught:
        encoded(wf.request(wf.length_delimited(9, broken)))
    assert caught.value.field == "resource_spans[0].scope_spans[0].spans[0].attributes[0].value"


BAD_IDS = {
    "no trace id": ({"trace_id": b""}, "span 7373737373737373 ('POST /orders'): trace_id is missing"),
    "a short trace id": (
        {"trace_id": b"t"},
        "span 7373737373737373 ('POST /orders'): trace_id has 1 bytes, not 16",
    ),
    "a zero trace id": (
        {"trace_id": bytes(16)},
        "span 7373737373737373 ('POST /orders'): trace_id is all zeroes",
    ),
    "no span id": ({"span_id": b""}, "span without id ('POST /orders'): span_id is missing"),
    "a zero span id": (
        {"span_id": bytes(8)},
        "span 0000000000000000 ('POST /orders'): span_id is all zeroes",
    ),
    "a long parent": (
        {"parent_span_id": bytes(9)},
        "span 7373737373737373 ('POST /orders'): parent_span_id has 9 bytes, not 8",
    ),
}


@pytest.mark.parametrize(("fields", "problem"), BAD_IDS.values(), ids=BAD_IDS)
def test_a_span_without_valid_ids_is_left_out_counted_and_named(fields, problem):
    good = a_span({"audit.action": "READ"})
    selection = encoded(a_request(a_span({"audit.action": "READ"}, **fields), good))
    assert selection.problems == (problem,)
    assert (selection.invalid, selection.tagged, len(selection.leaves)) == (1, 2, 1)


def test_only_the_first_few_problems_are_named_but_all_are_counted():
    selection = encoded(a_request(*[a_span({"audit.x": ""}, span_id=b"") for _ in range(9)]))
    assert (selection.invalid, len(selection.problems), len(selection.leaves)) == (9, 5, 0)


def test_the_leaves_come_in_the_order_of_the_spans():
    spans = [a_span({"audit.target.id": f"target-{n}"}, span_id=bytes([n]) * 8) for n in range(1, 20)]
    selection = encoded(a_request(*spans))
    assert [b"target-%d" % n in leaf.content for n, leaf in enumerate(selection.leaves, 1)] == [True] * 19


LIMITED = Sender("shop", tenant="retail", services=("orders", "shop-*"), instrumented=True)


@pytest.mark.parametrize("service", ["orders", "shop-gateway"])
def test_a_sender_may_speak_for_its_services(service):
    assert encoded(a_request(a_span({"audit.x": ""}), service=service), LIMITED).tagged == 1


@pytest.mark.parametrize("service", ["billing", "Orders", "orders2", "", None])
def test_a_sender_may_not_speak_for_another_service(service):
    with pytest.raises(PermissionDenied, match=r"sender shop .*orders, shop-"):
        encoded(a_request(a_span({"audit.x": ""}), service=service), LIMITED)


def test_a_sender_may_send_untagged_spans_of_any_service():
    assert encoded(a_request(a_span({"http.route": "/"}), service="billing"), LIMITED).spans == 1


# Columns


def test_a_record_of_an_instrumented_service_says_all_it_was_told():
    made = record(
        {
            "audit.record.id": "01890A5D-ac96-774b-bcce-b302099a8057",
            "audit.actor.id": "alice",
            "audit.actor.type": "user",
            "audit.actor.roles": ["admin", "ops"],
            "audit.actor.origin": "authenticated",
            "audit.actor.session_id": "5f",
            "audit.actor.auth_method": "basic",
            "audit.actor.delegate": "support",
            "audit.action": "refund",
            "audit.outcome": "denied",
            "audit.reason": "no permission",
            "audit.target.type": "order",
            "audit.target.id": "17",
            "audit.parent.span_id": "00f067aa0ba902b7",
            "audit.sequence.stream_id": "stream",
            "audit.sequence.number": 42,
        },
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=100,
        end_time_unix_nano=350,
        flags=0x101,
        status=Status(code=Status.STATUS_CODE_ERROR, message="no"),
        resource=Resource(attributes=pairs({"service.name": "orders"})),
    )
    assert made.record_id == uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057").bytes
    assert (made.actor_id, made.actor_type, made.actor_origin) == ("alice", "user", "authenticated")
    assert made.actor_roles == ("admin", "ops")
    assert (made.actor_session, made.actor_auth_method, made.actor_delegate) == ("5f", "basic", "support")
    assert (made.action, made.outcome, made.reason) == ("REFUND", "denied", "no permission")
    assert (made.target_type, made.target_id) == ("order", "17")
    assert made.audit_parent_span_id == bytes.fromhex("00f067aa0ba902b7")
    assert (made.sequence_stream, made.sequence_number) == ("stream", 42)
    assert (made.span_kind, made.status_code, made.status_message) == ("Server", "Error", "no")
    assert (made.service_name, made.tenant, made.flags) == ("orders", "retail", 0x101)
    assert (made.start_time_unix_ns, made.duration_ns) == (100, 250)
    assert made.received_time_unix_ms == 1_790_000_000_123
    assert made.leaf_version == 1
    assert len(made.attributes) == 16
    assert made.attribute_types == (("audit.actor.roles", "array"), ("audit.sequence.number", "int"))


def test_a_tagged_span_that_says_nothing_is_unknown():
    made = record({"audit.x": ""})
    assert (made.actor_id, made.actor_type, made.actor_origin) == ("unknown", "unknown", "unverified")
    assert (made.actor_roles, made.action, made.outcome) == ((), "", "unknown")
    assert (made.target_id, made.sequence_number, made.client_address) == ("", 0, "")
    assert made.parent_span_id == made.audit_parent_span_id == bytes(8)


ALIASES = {
    "actor of another convention": ({"audit.actor": "bob"}, "actor_id", "bob"),
    "user.id": ({"user.id": "bob"}, "actor_id", "bob"),
    "enduser.id": ({"enduser.id": "bob"}, "actor_id", "bob"),
    "an id that is a number": ({"user.id": 17}, "actor_id", "17"),
    "the audit name before others": ({"enduser.id": "x", "audit.actor.id": "bob"}, "actor_id", "bob"),
    "an empty one is none": ({"audit.actor.id": "", "user.id": "bob"}, "actor_id", "bob"),
    "the first of two": ({"user.id": "bob", "user.name": "Bob"}, "actor_id", "bob"),
    "one role": ({"audit.role": "admin"}, "actor_roles", ("admin",)),
    "roles": ({"user.roles": ["a", "b"]}, "actor_roles", ("a", "b")),
    "a role with a comma": ({"enduser.role": "cn=admin,dc=x"}, "actor_roles", ("cn=admin,dc=x",)),
    "roles that are not strings": ({"audit.actor.roles": [1, True]}, "actor_roles", ("1", "true")),
    "no roles, then others": ({"audit.actor.roles": [], "audit.role": "a"}, "actor_roles", ("a",)),
    "target": ({"audit.target": "order 17"}, "target_id", "order 17"),
    "resource": ({"audit.resource": "order 17"}, "target_id", "order 17"),
    "operation": ({"audit.operation": "export"}, "action", "EXPORT"),
    "no span id": ({"audit.parent.span_id": "xyz"}, "audit_parent_span_id", bytes(8)),
    "a number as text": ({"audit.sequence.number": "7"}, "sequence_number", 7),
    "a negative number": ({"audit.sequence.number": -7}, "sequence_number", 0),
    "no number": ({"audit.sequence.number": "many"}, "sequence_number", 0),
    "a number too large": ({"audit.sequence.number": "99999999999999999999"}, "sequence_number", 0),
    "an unknown actor type": ({"audit.actor.type": "robot"}, "actor_type", "unknown"),
    "a type in capitals": ({"audit.actor.type": "SERVICE"}, "actor_type", "service"),
    "an unknown outcome": ({"audit.outcome": "maybe"}, "outcome", "unknown"),
    "an outcome in capitals": ({"audit.outcome": "SUCCESS"}, "outcome", "success"),
    "an unknown origin": ({"audit.actor.origin": "trust me"}, "actor_origin", "unverified"),
}


@pytest.mark.parametrize(("attributes", "column", "expected"), ALIASES.values(), ids=ALIASES)
def test_columns_are_filled_from_what_there_is_and_it_stays_in_the_attributes(attributes, column, expected):
    made = record({"audit.x": ""} | attributes)
    assert getattr(made, column) == expected
    assert {key for key, _ in made.attributes} == {"audit.x", *attributes}


@pytest.mark.parametrize("origin", ["authenticated", "asserted", "unverified"])
def test_what_a_foreign_sender_says_of_the_origin_does_not_count(origin):
    assert record({"audit.actor.origin": origin}, sender=FOREIGN).actor_origin == "unverified"
    assert record({"audit.actor.origin": origin}, sender=INSTRUMENTED).actor_origin == origin


OUTCOMES = {
    "ok status": ({}, Status.STATUS_CODE_OK, "success"),
    "error status": ({}, Status.STATUS_CODE_ERROR, "failure"),
    "no status": ({}, Status.STATUS_CODE_UNSET, "unknown"),
    "HTTP 200": ({"http.response.status_code": 200}, Status.STATUS_CODE_UNSET, "success"),
    "HTTP 302": ({"http.status_code": 302}, Status.STATUS_CODE_UNSET, "success"),
    "HTTP 401": ({"http.response.status_code": 401}, Status.STATUS_CODE_UNSET, "denied"),
    "HTTP 403 marked an error": ({"http.response.status_code": 403}, Status.STATUS_CODE_ERROR, "denied"),
    "HTTP 404": ({"http.response.status_code": 404}, Status.STATUS_CODE_UNSET, "failure"),
    "HTTP 200 marked an error": ({"http.response.status_code": 200}, Status.STATUS_CODE_ERROR, "failure"),
    "gRPC OK": ({"rpc.grpc.status_code": 0}, Status.STATUS_CODE_UNSET, "success"),
    "gRPC denied": ({"rpc.grpc.status_code": 7}, Status.STATUS_CODE_ERROR, "denied"),
    "gRPC unauthenticated": ({"rpc.grpc.status_code": "16"}, Status.STATUS_CODE_UNSET, "denied"),
    "gRPC not found": ({"rpc.grpc.status_code": 5}, Status.STATUS_CODE_UNSET, "failure"),
    "said": (
        {"audit.outcome": "success", "http.response.status_code": 500},
        Status.STATUS_CODE_ERROR,
        "success",
    ),
    "a code that is none": ({"http.response.status_code": "teapot"}, Status.STATUS_CODE_UNSET, "unknown"),
}


@pytest.mark.parametrize(("attributes", "code", "outcome"), OUTCOMES.values(), ids=OUTCOMES)
def test_an_outcome_that_nobody_named_is_read_from_the_codes(attributes, code, outcome):
    assert record({"audit.x": ""} | attributes, status=Status(code=code)).outcome == outcome


@pytest.mark.parametrize(
    ("kind", "attributes", "address"),
    [
        (
            Span.SPAN_KIND_SERVER,
            {"client.address": "203.0.113.9", "network.peer.address": "10.0.0.2"},
            "10.0.0.2",
        ),
        (Span.SPAN_KIND_SERVER, {"client.address": "203.0.113.9"}, "203.0.113.9"),
        (Span.SPAN_KIND_CONSUMER, {"net.peer.ip": "10.0.0.2"}, "10.0.0.2"),
        (Span.SPAN_KIND_CLIENT, {"network.peer.address": "10.0.0.2"}, ""),
        (
            Span.SPAN_KIND_INTERNAL,
            {"client.address": "203.0.113.9", "net.peer.ip": "10.0.0.2"},
            "203.0.113.9",
        ),
    ],
)
def test_the_client_address_is_the_connections_and_never_the_called_servers(kind, attributes, address):
    assert record({"audit.x": ""} | attributes, kind=kind).client_address == address


@pytest.mark.parametrize("number", [-1, 6, 99])
def test_numbers_that_otlp_does_not_name_are_kept_as_numbers(number):
    made = record(kind=number, status=Status(code=number))
    assert (made.span_kind, made.status_code) == (str(number), str(number))


def test_a_record_id_that_is_missing_or_wrong_is_derived_from_tenant_trace_and_span():
    first = uuid.UUID(bytes=record().record_id)
    digest = hashlib.sha256(b"auditspan record id\0retail\0" + b"t" * 16 + b"s" * 8).digest()[:16]
    unmarked = int.from_bytes(digest) & ~(0xF << 76) & ~(0x3 << 62)
    assert first.int == unmarked | 8 << 76 | 2 << 62
    assert first.version == 8
    assert first.variant == uuid.RFC_4122
    assert record({"audit.record.id": "{01890a5d-ac96-774b-bcce-b302099a8057}"}).record_id == first.bytes
    other_tenant = Sender("vendor", tenant="other", services=None, instrumented=False)
    others = [
        record(sender=other_tenant).record_id,
        record(trace_id=b"u" * 16).record_id,
        record(span_id=b"u" * 8).record_id,
    ]
    assert len({first.bytes, *others}) == 4


LAST_MOMENT = (1 << 63) - 1
TIMES = {
    "ordinary": (5, 9, (5, 4), {}),
    "no end": (5, 0, (5, 0), {"auditspan.end_time_unix_nano": "0"}),
    "neither": (0, 0, (0, 0), {}),
    "end before start": (9, 5, (9, 0), {"auditspan.end_time_unix_nano": "5"}),
    "after 2262": (
        LAST_MOMENT + 6,
        LAST_MOMENT + 8,
        (LAST_MOMENT, 2),
        {"auditspan.start_time_unix_nano": str(LAST_MOMENT + 6)},
    ),
    "the last of all, and back": (
        (1 << 64) - 1,
        1,
        (LAST_MOMENT, 0),
        {"auditspan.start_time_unix_nano": str((1 << 64) - 1), "auditspan.end_time_unix_nano": "1"},
    ),
    "the whole range": (0, (1 << 64) - 1, (0, (1 << 64) - 1), {}),
}


@pytest.mark.parametrize(("start", "end", "columns", "marks"), TIMES.values(), ids=TIMES)
def test_no_time_is_negative_or_lost(start, end, columns, marks):
    made = record(start_time_unix_nano=start, end_time_unix_nano=end)
    assert (made.start_time_unix_ns, made.duration_ns) == columns
    assert dict(made.attributes) == marks
    assert made.attribute_types == ()


# Values


def nested(*, levels: int):
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


EVERYTHING_INSIDE = (
    '{"arrayValue":{"values":[{"bytesValue":""},{"intValue":"1"},{"doubleValue":1.5},{"boolValue":true},{},'
    '{"kvlistValue":{"values":[{"key":"k","value":{"arrayValue":{"values":[]}}}]}}]}}'
)
VALUES = {
    "string": ("ä\x00", "ä\x00", "string"),
    "empty string": ("", "", "string"),
    "true": (True, "true", "bool"),
    "false": (False, "false", "bool"),
    "int": (-(1 << 63), "-9223372036854775808", "int"),
    "double": (0.1, "0.1", "double"),
    "whole double": (1.0, "1.0", "double"),
    "large double": (1e22, "1e+22", "double"),
    "negative zero": (-0.0, "-0.0", "double"),
    "NaN": (float("nan"), "NaN", "double"),
    "infinity": (float("inf"), "Infinity", "double"),
    "minus infinity": (float("-inf"), "-Infinity", "double"),
    "bytes": (b"\xff\xfe", "//4=", "bytes"),
    "nothing": (None, "", "empty"),
    "empty array": ([], "[]", "array"),
    "array": (["a", 1, 1.0, True, None, ["ü"]], '["a",1,1.0,true,null,["ü"]]', "array"),
    "kvlist": ({"b": 1, "a": {"c": "\n"}}, '{"b":1,"a":{"c":"\\n"}}', "kvlist"),
    "empty kvlist": ({}, "{}", "kvlist"),
    "bytes inside": (
        ["a", b"\xff"],
        '{"arrayValue":{"values":[{"stringValue":"a"},{"bytesValue":"/w=="}]}}',
        "anyvalue",
    ),
    "NaN inside": (
        {"a": float("nan")},
        '{"kvlistValue":{"values":[{"key":"a","value":{"doubleValue":"NaN"}}]}}',
        "anyvalue",
    ),
    "everything inside": (
        [b"", 1, 1.5, True, None, {"k": []}],
        EVERYTHING_INSIDE,
        "anyvalue",
    ),
    "deep": (nested(levels=30), "[" * 31 + "]" * 31, "array"),
}


@pytest.mark.parametrize(("value", "text", "kind"), VALUES.values(), ids=VALUES)
def test_a_value_has_one_text_and_one_type(value, text, kind):
    assert values.text_of(any_value(value)) == (text, kind)


def test_a_repeated_key_inside_a_key_value_list_is_not_lost():
    value = AnyValue()
    value.kvlist_value.values.extend(
        [KeyValue(key="k", value=any_value(1)), KeyValue(key="k", value=any_value(2))]
    )
    text, kind = values.text_of(value)
    assert kind == "anyvalue"
    assert text.count('"key":"k"') == 2


def test_where_a_key_repeats_all_its_types_are_named():
    made = record()
    span = a_span()
    span.attributes.extend([*pairs({"k": "text", "other": "x"}), *pairs({"k": 1}), *pairs({"k": None})])
    decoded = decode.DecodedSpan(span, Resource(), InstrumentationScope(), "", "")
    made = enrich(decoded, INSTRUMENTED, RECEIVED_UNIX_NS, Limits())
    assert made.attributes == (("k", "text"), ("other", "x"), ("k", "1"), ("k", ""))
    assert made.attribute_types == (("k", "string"), ("k", "int"), ("k", "empty"))


# Limits

SMALL = Limits(attributes_per_span=16, value_bytes=64)


def truncated(made) -> list[dict]:
    assert dict(made.attribute_types)["auditspan.truncated"] == "array"
    return json.loads(dict(made.attributes)["auditspan.truncated"])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("x" * 65, "x" * 64),
        ("x" * 63 + "ä", "x" * 63),
        ("💥" * 17, "💥" * 16),
        ("x" * 62 + "💥", "x" * 62),
    ],
    ids=["ascii", "two bytes", "four bytes", "four bytes cut"],
)
def test_an_over_long_value_is_cut_between_characters_and_marked(text, kept):
    made = record({"audit.target.id": text}, limits=SMALL)
    assert made.target_id == dict(made.attributes)["audit.target.id"] == kept
    assert truncated(made) == [{"in": "attributes", "key": "audit.target.id", "bytes": len(text.encode())}]


def test_a_value_of_just_the_limit_is_whole():
    made = record({"audit.target.id": "ä" * 32}, limits=SMALL)
    assert made.target_id == "ä" * 32
    assert [key for key, _ in made.attributes] == ["audit.target.id"]


def test_audit_attributes_are_kept_before_others_and_the_rest_is_counted():
    attributes = {f"http.{n}": n for n in range(20)} | {f"audit.{n}": n for n in range(10)}
    made = record(attributes, limits=SMALL, dropped_attributes_count=5)
    kept = [key for key, _ in made.attributes]
    assert kept == [
        *[f"http.{n}" for n in range(6)],
        *[f"audit.{n}" for n in range(10)],
        "auditspan.truncated",
    ]
    assert made.dropped_attributes_count == 5 + 14
    assert truncated(made) == [{"in": "attributes", "dropped": 14}]


def test_a_limit_is_named_wherever_it_cut():
    long, many = "x" * 100, {f"k{n}": "" for n in range(17)}
    made = record(
        {"audit.actor.roles": ["r"] * 17},
        limits=SMALL,
        events=[
            Span.Event(attributes=pairs({"e": long}), dropped_attributes_count=1),
            Span.Event(attributes=pairs(many)),
        ],
        links=[Span.Link(attributes=pairs({"l": long}), trace_id=b"t" * 16, span_id=b"s" * 8)],
        resource=Resource(
            attributes=pairs(many | {"service.name": "orders"}), dropped_attributes_count=(1 << 32) - 1
        ),
    )
    assert truncated(made) == [
        {"in": "attributes", "key": "audit.actor.roles", "bytes": 69},
        {"in": "resource_attributes", "dropped": 2},
        {"in": "events[0].attributes", "key": "e", "bytes": 100},
        {"in": "events[1].attributes", "dropped": 1},
        {"in": "links[0].attributes", "key": "l", "bytes": 100},
        {"in": "actor_roles", "dropped": 1},
    ]
    assert made.service_name == "orders"
    assert made.resource_dropped_attributes_count == (1 << 32) - 1  # the most that the column holds
    assert [event.dropped_attributes_count for event in made.events] == [1, 1]
    assert len(made.actor_roles) == 16


def test_a_small_request_can_not_come_to_any_amount_of_records():
    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add()
    in_resource.resource.attributes.add(key="big").value.string_value = "x" * 60_000
    spans = in_resource.scope_spans.add().spans
    for number in range(1, 31):
        span = spans.add(trace_id=b"t" * 16, span_id=number.to_bytes(8))
        span.attributes.add(key="audit.action").value.string_value = "READ"
    whole = OtlpRequest(request.SerializeToString(), "protobuf", INSTRUMENTED, "127.0.0.1", RECEIVED_UNIX_NS)
    assert len(whole.body) < 70_000
    assert len(encode(whole, Limits(request_bytes=2 << 20)).leaves) == 30
    with pytest.raises(TooLarge, match="send fewer spans at once"):
        encode(whole, Limits(request_bytes=1 << 20))


def test_the_same_span_gives_the_same_record_under_any_number_of_tries():
    body = a_request(a_span({"audit.action": "READ"}, start_time_unix_nano=1))
    first, second = encoded(body), encoded(body)
    assert first == second
    later = OtlpRequest(body, "protobuf", INSTRUMENTED, "127.0.0.1", RECEIVED_UNIX_NS + 10**9)
    assert next(iter(encode(later, Limits()).leaves)).identity == next(iter(first.leaves)).identity
    assert next(iter(encode(later, Limits()).leaves)).hash != next(iter(first.leaves)).hash


def test_events_and_links_over_the_limit_are_counted_and_the_first_are_kept():
    made = record(
        {"audit.action": "READ"},
        limits=Limits(events_per_span=2, links_per_span=1),
        events=[Span.Event(name=str(number)) for number in range(5)],
        links=[Span.Link(trace_id=bytes([number + 1] * 16), span_id=b"l" * 8) for number in range(3)],
        dropped_events_count=10,
    )
    assert [event.name for event in made.events] == ["0", "1"]
    assert [link.trace_id[0] for link in made.links] == [1]
    assert (made.dropped_events_count, made.dropped_links_count) == (13, 2)
    cuts = json.loads(dict(made.attributes)["auditspan.truncated"])
    assert {"in": "events", "dropped": 3} in cuts
    assert {"in": "links", "dropped": 2} in cuts


LONG = "n" * 65
TEXTS = {
    "span_name": {"name": LONG},
    "trace_state": {"trace_state": LONG},
    "status_message": {"status": Status(message=LONG)},
    "events[0].name": {"events": [Span.Event(name=LONG)]},
    "links[0].trace_state": {"links": [Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8, trace_state=LONG)]},
}


@pytest.mark.parametrize(("where", "fields"), TEXTS.items(), ids=TEXTS)
def test_a_text_beside_the_attributes_is_cut_and_marked_too(where, fields):
    made = record({"audit.action": "READ"}, limits=SMALL, **fields)
    assert truncated(made) == [{"in": where, "bytes": 65}]
    assert LONG not in repr(made)
    assert LONG[:64] in repr(made)


def test_a_long_key_is_cut_and_named_by_what_is_kept_of_it():
    made = record({"audit." + "k" * 60: "v" * 70}, limits=SMALL)
    kept = "audit." + "k" * 58
    assert dict(made.attributes)[kept] == "v" * 64
    assert truncated(made) == [
        {"in": "attributes", "key": kept, "key_bytes": 66},
        {"in": "attributes", "key": kept, "bytes": 70},
    ]


def test_what_a_scope_and_a_resource_are_called_is_cut_too():
    decoded = decode.DecodedSpan(
        span=a_span({"audit.action": "READ"}),
        resource=Resource(),
        scope=InstrumentationScope(name=LONG, version=LONG),
        resource_schema_url=LONG,
        scope_schema_url=LONG,
    )
    made = enrich(decoded, INSTRUMENTED, RECEIVED_UNIX_NS, SMALL)
    assert {made.scope_name, made.scope_version, made.resource_schema_url, made.scope_schema_url} == {
        LONG[:64]
    }
    assert [cut["in"] for cut in truncated(made)] == [
        "scope_name",
        "scope_version",
        "resource_schema_url",
        "scope_schema_url",
    ]
