"""decode: what is not OTLP is refused, with the byte and the field, and never with anything but InvalidRequest."""

from __future__ import annotations

import resource

import pytest
from auditspan_collector import decode
from auditspan_collector.decode import wire
from auditspan_collector.errors import InvalidRequest, TooLarge
from collector.codec import otlp_strategies as otlp
from collector.codec import wire_format as wf
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SPAN = wire.shape_of(Span.DESCRIPTOR)
SPAN_PATH = "resource_spans[0].scope_spans[0].spans[0]"
property_test = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def verdict(body: bytes) -> InvalidRequest | None:
    try:
        for found in decode.find(body, "protobuf", "audit.").spans:
            decode.decode(found)
    except InvalidRequest as error:
        return error
    return None


def refused(body: bytes) -> InvalidRequest:
    error = verdict(body)
    assert error is not None
    return error


TABLE = {
    "text": (b"GET / HTTP/1.1\r\n", 0, ""),
    "a tag of no field": (b"\x00\x01", 0, ""),
    "a tag that does not end": (b"\xff", 0, ""),
    "a tag of eleven bytes": (b"\xff" * 11, 0, ""),
    "a length past the end": (b"\x0a\x05\x00", 1, "resource_spans[0]"),
    "a length that does not end": (b"\x0a\x80", 1, "resource_spans[0]"),
    "an unknown wire type": (wf.tag(9, 6) + b"\x00", 0, ""),
    "a group that is not closed": (wf.tag(9, wf.START_GROUP), 1, "field_9"),
    "a group that is closed as another": (wf.tag(9, wf.START_GROUP) + wf.tag(8, wf.END_GROUP), 1, "field_9"),
    "the end of no group": (wf.tag(9, wf.END_GROUP), 0, ""),
    "a short fixed64": (wf.tag(99, wf.I64) + bytes(7), 2, "field_99"),
    "a short fixed32": (wf.tag(99, wf.I32) + bytes(3), 2, "field_99"),
    "a resource_spans that is a number": (wf.tag(1, wf.VARINT) + b"\x01", 0, "resource_spans[0]"),
    "a second resource_spans that is a number": (
        b"\x0a\x00" + wf.tag(1, wf.VARINT) + b"\x01",
        2,
        "resource_spans[1]",
    ),
    "a span's bytes past its scope_spans": (
        wf.length_delimited(1, wf.length_delimited(2, b"\x12\x05\x0a")),
        5,
        "resource_spans[0].scope_spans[0].spans[0]",
    ),
    "a broken second attribute of an untagged span": (
        wf.request(b"\x4a\x00\x4a\x02\x0a\x05", tagged=False),
        11,
        f"{SPAN_PATH}.attributes[1].key",
    ),
    "an attribute that is a number in an untagged span": (
        wf.request(wf.tag(9, wf.VARINT) + b"\x01", tagged=False),
        6,
        f"{SPAN_PATH}.attributes[0]",
    ),
    "a key of an untagged span that is not UTF-8": (
        wf.request(wf.length_delimited(9, wf.attribute(b"ab\xff")), tagged=False),
        12,
        f"{SPAN_PATH}.attributes[0].key",
    ),
    "a key of an untagged span that is a number": (
        wf.request(wf.length_delimited(9, wf.tag(1, wf.VARINT) + b"\x01"), tagged=False),
        8,
        f"{SPAN_PATH}.attributes[0].key",
    ),
    "a name of a tagged span that is not UTF-8": (
        wf.request(wf.length_delimited(5, b"a\xc3\x28")),
        9,
        f"{SPAN_PATH}.name",
    ),
    "a value deep in a tagged span that is not UTF-8": (
        wf.request(
            wf.length_delimited(
                11,
                wf.length_delimited(3, wf.attribute(b"k"))
                + wf.length_delimited(3, wf.attribute(b"k", b"\xed\xa0\x80")),
            )
        ),
        27,
        f"{SPAN_PATH}.events[0].attributes[1].value.string_value",
    ),
    "a resource of a tagged span": (
        wf.request(resource=wf.length_delimited(1, wf.length_delimited(1, b"\xff"))),
        8,
        "resource_spans[0].resource.attributes[0].key",
    ),
    "a scope of a tagged span": (
        wf.request(scope=wf.length_delimited(1, b"\xff")),
        8,
        "resource_spans[0].scope_spans[0].scope.name",
    ),
    "a schema_url of a tagged span's scope": (
        wf.length_delimited(
            1,
            wf.length_delimited(
                2, wf.length_delimited(3, b"\xff") + wf.length_delimited(2, b"\x4a\x08\x0a\x06audit.")
            ),
        ),
        6,
        "resource_spans[0].scope_spans[0].schema_url",
    ),
    "a schema_url of a tagged span's resource": (
        wf.length_delimited(
            1,
            wf.length_delimited(3, b"\xff")
            + wf.length_delimited(2, wf.length_delimited(2, b"\x4a\x08\x0a\x06audit.")),
        ),
        4,
        "resource_spans[0].schema_url",
    ),
}


@pytest.mark.parametrize(("body", "offset", "field"), TABLE.values(), ids=TABLE)
def test_a_refusal_names_the_byte_and_the_field(body, offset, field):
    error = refused(body)
    assert (error.offset, error.field) == (offset, field)
    assert f"at byte {offset}: " in str(error)


NOT_JUDGED = {
    "its name is not UTF-8": wf.length_delimited(5, b"\xff"),
    "a known field has another wire type": wf.tag(7, wf.VARINT) + b"\x01",
    "a value is nonsense": wf.length_delimited(
        9, wf.length_delimited(1, b"k") + wf.length_delimited(2, b"\xff\xff")
    ),
    "an event is nonsense": wf.length_delimited(11, b"\xff\xff\xff"),
}


@pytest.mark.parametrize("content", NOT_JUDGED.values(), ids=NOT_JUDGED)
def test_the_inside_of_an_untagged_span_is_skipped_and_of_a_tagged_one_judged(content):
    assert verdict(wf.request(content, tagged=False)) is None
    assert verdict(wf.request(content, tagged=True)) is not None


def test_a_resource_and_a_scope_without_tagged_spans_are_not_judged():
    nonsense = b"\xff\xff"
    assert verdict(wf.request(resource=nonsense, scope=nonsense, tagged=False)) is None


def every_field():
    """Each message of a trace request with a way to put bytes into one, and each of its known fields."""
    value_of = lambda content: wf.request(wf.length_delimited(9, wf.length_delimited(2, content)))  # noqa: E731
    holders = {
        "": lambda content: wf.request() + content,
        "ResourceSpans": lambda content: wf.length_delimited(1, inner(wf.request()) + content),
        "Resource": lambda content: wf.request(resource=content),
        "EntityRef": lambda content: wf.request(resource=wf.length_delimited(3, content)),
        "ScopeSpans": lambda content: wf.length_delimited(
            1, wf.length_delimited(2, inner(inner(wf.request())) + content)
        ),
        "InstrumentationScope": lambda content: wf.request(scope=content),
        "Span": wf.request,
        "Event": lambda content: wf.request(wf.length_delimited(11, content)),
        "Link": lambda content: wf.request(wf.length_delimited(13, content)),
        "Status": lambda content: wf.request(wf.length_delimited(15, content)),
        "KeyValue": lambda content: wf.request(wf.length_delimited(9, content)),
        "AnyValue": value_of,
        "ArrayValue": lambda content: value_of(wf.length_delimited(5, content)),
        "KeyValueList": lambda content: value_of(wf.length_delimited(6, content)),
    }
    shapes: dict[str, wire.Shape] = {}
    wire.shape_of(ExportTraceServiceRequest.DESCRIPTOR, shapes)
    for shape in shapes.values():
        holder = holders["" if shape.name == "ExportTraceServiceRequest" else shape.name]
        for number, field in shape.fields.items():
            for wire_type in (wf.VARINT, wf.I64, wf.LEN, wf.START_GROUP, wf.I32):
                if wire_type != field.wire_type:
                    yield pytest.param(
                        holder, number, wire_type, field, id=f"{shape.name}.{field.name}-{wire_type}"
                    )


def inner(message: bytes) -> bytes:
    """The content of the one length-delimited field that *message* is."""
    _, _, after = wire.tag(message, 0, len(message))
    begin, end = wire.span_of(message, after, len(message))
    return message[begin:end]


@pytest.mark.parametrize(("holder", "number", "wire_type", "field"), list(every_field()))
def test_a_known_field_of_another_wire_type_is_refused_not_ignored(holder, number, wire_type, field):
    mark = wf.tag(number, wire_type) + wf.payload(wire_type, number)
    body = holder(mark)
    ExportTraceServiceRequest.FromString(body)  # upb lets it pass for an unknown field
    error = refused(body)
    assert body[error.offset :].startswith(mark)
    assert error.field.rsplit(".", 1)[-1].partition("[")[0] == field.name
    assert "wire type" in error.problem


SMALL = ExportTraceServiceRequest()
_in_resource = SMALL.resource_spans.add(schema_url="u")
_in_resource.resource.attributes.add(key="service.name").value.string_value = "orders"
_span = _in_resource.scope_spans.add().spans.add(
    trace_id=b"t" * 16, span_id=b"s" * 8, name="n", flags=1, kind=2
)
_span.attributes.add(key="audit.actor.id").value.string_value = "alice"
_span.attributes.add(key="audit.actor.roles").value.array_value.values.add().string_value = "admin"
_span.events.add(time_unix_nano=5, name="e").attributes.add(key="k").value.double_value = 1.5
_span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8)
_span.status.message = "bad"


def test_a_request_cut_at_any_byte_is_refused_or_valid_as_protobuf_has_it():
    body = SMALL.SerializeToString()
    assert verdict(body) is None
    outcomes = set()
    for length in range(len(body)):
        error = verdict(body[:length])
        try:
            ExportTraceServiceRequest.FromString(body[:length])
        except DecodeError:
            assert error is not None
            assert 0 <= error.offset <= length
        else:
            assert error is None
        outcomes.add(error is None)
    assert outcomes == {True, False}


@property_test
@given(
    position=st.integers(0, len(SMALL.SerializeToString()) - 1),
    replacement=st.binary(max_size=3),
    length=st.integers(0, 3),
)
def test_a_damaged_request_never_gives_another_error(position, replacement, length):
    body = SMALL.SerializeToString()
    error = verdict(body[:position] + replacement + body[position + length :])
    assert error is None or 0 <= error.offset <= len(body) + 3


@property_test
@given(
    data=st.one_of(st.binary(max_size=40), otlp.tagged_spans.map(lambda span: span.SerializeToString())),
    cut=st.data(),
)
def test_whatever_the_judge_lets_pass_upb_can_parse(data, cut):
    if data:
        position = cut.draw(st.integers(0, len(data) - 1))
        data = (
            data[:position] + cut.draw(st.binary(max_size=2)) + data[position + cut.draw(st.integers(0, 2)) :]
        )
    try:
        wire.judge(data, 0, len(data), SPAN, 1, wire.Budget(data))
    except wire.Malformed as judged:
        problem = judged.problem
    else:
        Span.FromString(data)
        return
    try:
        Span.FromString(data)
    except DecodeError:
        return
    assert "wire type" in problem  # the one thing that upb does not mind


def nested(levels: int, holder: str) -> bytes:
    """A request whose one attribute value holds arrays, or unknown groups, that many levels deep."""
    if holder == "group":
        return wf.tag(77, wf.START_GROUP) * levels + wf.tag(77, wf.END_GROUP) * levels
    value = b""
    for _ in range(levels):
        value = wf.length_delimited(5, wf.length_delimited(1, value))
    return wf.length_delimited(9, wf.length_delimited(2, value))


@pytest.mark.parametrize("holder", ["array", "group"])
@pytest.mark.parametrize("odd", [False, True], ids=["quick way", "walk"])
def test_nesting_is_followed_as_deep_as_upb_follows_it(holder, odd):
    deepest = 0
    for levels in range(120):
        span = nested(levels, holder)
        body = wf.request(span + (wf.tag(77, wf.VARINT) + b"\x01" if odd else b""))
        error = verdict(body)
        try:
            Span.FromString(span)
        except DecodeError:
            assert error is not None
            assert "deep" in error.problem
        else:
            # upb counts a whole request from its root and a span from the span; the walk sees spans.
            assert error is None
            deepest = levels
    assert 40 <= deepest < 110


@pytest.mark.parametrize("levels", [200, 5_000, 200_000])
@pytest.mark.parametrize("holder", ["array", "group"])
def test_bottomless_nesting_is_refused_and_harms_nothing(levels, holder):
    if holder == "array" and levels > 5_000:
        levels = 20_000  # quadratic in this test's own writer
    assert "deep" in refused(wf.request(nested(levels, holder))).problem


def test_a_shape_with_a_repeated_scalar_is_refused_at_import():
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, SourceCodeInfo

    assert FileDescriptorProto.DESCRIPTOR is not None
    with pytest.raises(NotImplementedError, match=r"SourceCodeInfo\.Location\.path"):
        wire.shape_of(SourceCodeInfo.DESCRIPTOR)


def test_values_of_a_profile_string_table_are_no_value():
    value = AnyValue(string_value_strindex=3)
    from auditspan_collector.processor.values import text_of

    assert text_of(value) == ("", "empty")


# What is cheap to send and dear to read

DENSE = 2 << 20
EMPTY_SPANS = wf.length_delimited(1, wf.length_delimited(2, b"\x12\x00" * (DENSE // 2)))
TOO_MUCH = {
    "empty spans": (EMPTY_SPANS, "65536 spans"),
    "empty scopes": (wf.length_delimited(1, b"\x12\x00" * (DENSE // 2)), "65536 resources and scopes"),
    "empty resources": (b"\x0a\x00" * (DENSE // 2), "65536 resources and scopes"),
    "empty pieces of a resource": (wf.length_delimited(1, b"\x0a\x00" * (DENSE // 2)), "messages"),
    "empty attributes of an untagged span": (
        wf.request(b"\x4a\x00" * (DENSE // 2), tagged=False),
        "messages",
    ),
    "empty events": (wf.request(b"\x5a\x00" * (DENSE // 2)), "messages"),
    "empty links": (wf.request(b"\x6a\x00" * (DENSE // 2)), "messages"),
}


@pytest.mark.parametrize(("body", "words"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_a_request_that_is_all_tiny_messages_is_refused_before_they_become_objects(body, words):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge, match=words):
        [decode.decode(found) for found in decode.find(body, "protobuf", "audit.").spans]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_document_that_is_all_tiny_objects_is_refused_before_it_is_read():
    with pytest.raises(TooLarge, match="messages"):
        decode.find(b"[" + b"{}," * (1 << 20) + b"{}]", "json", "audit.")


@pytest.mark.parametrize(
    "unusual", [b"", b"\xf8\x7f\x01"], ids=["as exporters write it", "with an unknown field"]
)
def test_spans_over_the_limit_are_refused_in_both_ways_alike(unusual):
    body = wf.length_delimited(1, wf.length_delimited(2, b"\x12\x00" * 3)) + unusual
    assert decode.find(body, "protobuf", "audit.", spans_limit=3).total == 3
    with pytest.raises(TooLarge, match=r"more than 2 spans \(limits\.spans_per_request\)"):
        decode.find(body, "protobuf", "audit.", spans_limit=2)
