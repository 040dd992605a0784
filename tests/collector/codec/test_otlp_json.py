"""OTLP/JSON: the same request as in protobuf, or the place of the value that is wrong."""

from __future__ import annotations

import base64
import json

import pytest
from auditspan_collector import decode
from auditspan_collector.decode.otlp_json import to_protobuf
from auditspan_collector.errors import InvalidRequest
from collector.codec import otlp_strategies as otlp
from google.protobuf import json_format
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ID_FIELDS = {"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"}


def hex_ids(value):
    """protobuf's JSON with OTLP's one difference that matters here: ids in hex."""
    if isinstance(value, list):
        return [hex_ids(element) for element in value]
    if isinstance(value, dict):
        return {
            key: base64.b64decode(inner).hex()
            if key in ID_FIELDS and isinstance(inner, str)
            else hex_ids(inner)
            for key, inner in value.items()
        }
    return value


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(request=otlp.requests, snake_case=st.booleans(), as_integers=st.booleans())
def test_a_request_in_json_becomes_the_same_in_protobuf(request, snake_case, as_integers):
    document = json_format.MessageToDict(
        request, preserving_proto_field_name=snake_case, use_integers_for_enums=as_integers
    )
    body = to_protobuf(json.dumps(hex_ids(document)).encode())
    assert otlp.same(ExportTraceServiceRequest.FromString(body), request)


def span_document(**fields) -> bytes:
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}).encode()


def value_document(value: str) -> bytes:
    """A request whose one attribute has the JSON text *value*."""
    return (
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"audit.x","value":'
        + value
        + "}]}]}]}]}"
    ).encode()


def span_of(body: bytes):
    return ExportTraceServiceRequest.FromString(to_protobuf(body)).resource_spans[0].scope_spans[0].spans[0]


def test_ids_are_hex_in_either_case():
    span = span_of(span_document(traceId="00aaBBff" * 4, spanId="0123456789abcdef", parentSpanId=""))
    assert span.trace_id == bytes.fromhex("00aabbff" * 4)
    assert span.span_id == bytes.fromhex("0123456789abcdef")
    assert span.parent_span_id == b""


@pytest.mark.parametrize("time", [1790000000000000001, "1790000000000000001"], ids=["number", "string"])
def test_a_64_bit_number_may_be_a_string_or_a_number_and_keeps_every_digit(time):
    assert span_of(span_document(startTimeUnixNano=time)).start_time_unix_nano == 1790000000000000001


@pytest.mark.parametrize("kind", [2, "SPAN_KIND_SERVER", 2.0])
def test_an_enum_is_its_number_and_its_name_is_understood(kind):
    assert span_of(span_document(kind=kind)).kind == 2


@pytest.mark.parametrize(
    ("value", "field", "expected"),
    [
        ('{"stringValue":""}', "string_value", ""),
        ('{"stringValue":"\\ud83d\\udca5"}', "string_value", "💥"),
        ('{"boolValue":false}', "bool_value", False),
        ('{"intValue":"-9223372036854775808"}', "int_value", -(1 << 63)),
        ('{"intValue":7}', "int_value", 7),
        ('{"intValue":1e3}', "int_value", 1000),
        ('{"doubleValue":1}', "double_value", 1.0),
        ('{"doubleValue":"-Infinity"}', "double_value", float("-inf")),
        ('{"doubleValue":"1e-3"}', "double_value", 0.001),
        ('{"bytesValue":"_-8="}', "bytes_value", b"\xff\xef"),
        ('{"bytesValue":"/+8"}', "bytes_value", b"\xff\xef"),
    ],
)
def test_a_value_is_read_as_protobuf_reads_it(value, field, expected):
    read = span_of(value_document(value)).attributes[0].value
    assert read.WhichOneof("value") == field
    assert getattr(read, field) == expected


def test_unknown_fields_and_nulls_are_ignored():
    body = b'{"resourceSpans":[{"resource":null,"new":[{"a":NaN}],"scopeSpans":null}],"later":1}'
    request = ExportTraceServiceRequest.FromString(to_protobuf(body))
    assert request == ExportTraceServiceRequest(resource_spans=[{}])


SPAN_PATH = "resourceSpans[0].scopeSpans[0].spans[0]"
VALUE_PATH = f"{SPAN_PATH}.attributes[0].value"
BAD_VALUES = {
    "odd hex": (span_document(traceId="abc"), f"{SPAN_PATH}.traceId", "is not hex"),
    "base64 for hex": (span_document(spanId="AAAAAAAAAAA="), f"{SPAN_PATH}.spanId", "is not hex"),
    "a number for hex": (span_document(spanId=5), f"{SPAN_PATH}.spanId", "a number, expected a string"),
    "an array for an object": (b"[]", "", "an array, expected an object"),
    "an object for an array": (b'{"resourceSpans":{}}', "resourceSpans", "an object, expected an array"),
    "null in an array": (b'{"resourceSpans":[null]}', "resourceSpans[0]", "null, expected an object"),
    "a negative time": (
        span_document(startTimeUnixNano=-1),
        f"{SPAN_PATH}.startTimeUnixNano",
        "outside 0 to",
    ),
    "a time too large": (
        span_document(endTimeUnixNano=str(1 << 64)),
        f"{SPAN_PATH}.endTimeUnixNano",
        "outside 0 to",
    ),
    "half a time": (
        span_document(startTimeUnixNano=1.5),
        f"{SPAN_PATH}.startTimeUnixNano",
        "expected an integer",
    ),
    "a spelled time": (
        span_document(startTimeUnixNano="now"),
        f"{SPAN_PATH}.startTimeUnixNano",
        '"now", expected',
    ),
    "an unknown kind": (span_document(kind="SERVER"), f"{SPAN_PATH}.kind", '"SERVER", expected an integer'),
    "true for a number": (span_document(flags=True), f"{SPAN_PATH}.flags", "a boolean, expected an integer"),
    "flags too large": (span_document(flags=1 << 32), f"{SPAN_PATH}.flags", "outside 0 to 4294967295"),
    "two values": (
        value_document('{"intValue":1,"stringValue":"x"}'),
        f"{VALUE_PATH}.stringValue",
        "a second value",
    ),
    "a field twice": (
        b'{"resourceSpans":[],"resource_spans":[]}',
        "resource_spans",
        "given twice",
    ),
    "half a surrogate pair": (
        value_document('{"stringValue":"\\ud800"}'),
        f"{VALUE_PATH}.stringValue",
        "surrogate",
    ),
    "a spelled boolean": (
        value_document('{"boolValue":"true"}'),
        f"{VALUE_PATH}.boolValue",
        "expected true or false",
    ),
    "a double of words": (
        value_document('{"doubleValue":"many"}'),
        f"{VALUE_PATH}.doubleValue",
        "is no number",
    ),
    "a double too large": (
        value_document('{"doubleValue":1e999}'),
        f"{VALUE_PATH}.doubleValue",
        "beyond a double",
    ),
    "an integer no double holds": (
        value_document('{"doubleValue":1' + "0" * 400 + "}"),
        f"{VALUE_PATH}.doubleValue",
        "beyond a double",
    ),
    "a bare NaN": (value_document('{"doubleValue":NaN}'), f"{VALUE_PATH}.doubleValue", "a bare NaN"),
    "no base64": (value_document('{"bytesValue":"!"}'), f"{VALUE_PATH}.bytesValue", "is not base64"),
    "an object for a string": (
        value_document('{"stringValue":{}}'),
        f"{VALUE_PATH}.stringValue",
        "an object",
    ),
    "values too deep": (
        value_document('{"arrayValue":{"values":[' * 60 + "{}" + "]}}" * 60),
        None,
        "nested more than 100 messages deep",
    ),
}


@pytest.mark.parametrize(("body", "field", "problem"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_wrong_value_is_refused_with_its_path(body, field, problem):
    with pytest.raises(InvalidRequest) as caught:
        decode.find(body, "json", "audit.")
    assert problem in caught.value.problem
    assert caught.value.offset is None
    assert field is None or caught.value.field == field


NOT_JSON = {
    "nothing": (b"", 0, "line 1, column 1"),
    "a torn object": (b'{"resourceSpans":\n  [', 21, "line 2, column 4"),
    "an umlaut before it": ('{"ä":}'.encode(), 6, "line 1, column 6"),
    "a second document": (b"{} {}", 3, "line 1, column 4"),
    "no UTF-8": (b'{"a":"\xff"}', 6, "not UTF-8"),
    "UTF-16": ("{}".encode("utf-16"), 0, "not UTF-8"),
    "a byte order mark": (b"\xef\xbb\xbf{}", 0, "BOM"),
    "protobuf": (b"\x0a\x00", 1, "not JSON"),
}


@pytest.mark.parametrize(("body", "offset", "problem"), NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_is_refused_with_byte_line_and_column(body, offset, problem):
    with pytest.raises(InvalidRequest) as caught:
        decode.find(body, "json", "audit.")
    assert problem in caught.value.problem
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":1' + b"0" * 5000 + b"}"],
    ids=["arrays", "objects", "digits"],
)
def test_json_made_to_exhaust_the_parser_is_refused(body):
    with pytest.raises(InvalidRequest):
        decode.find(body, "json", "audit.")


def test_a_span_in_json_is_judged_though_it_is_not_tagged():
    with pytest.raises(InvalidRequest):
        decode.find(span_document(traceId="zz"), "json", "audit.")
