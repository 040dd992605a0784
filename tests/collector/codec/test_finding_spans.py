"""decode: the spans that protobuf's own rules give, however the bytes lie, and only those that were looked for."""

from __future__ import annotations

from random import Random

import pytest
from auditspan_collector import decode
from auditspan_collector.decode.walk import Walk
from auditspan_collector.errors import InvalidRequest
from collector.codec import otlp_strategies as otlp
from collector.codec import wire_format as wf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

property_test = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def objects(found):
    """Everything decoded, as bytes that can be compared."""
    spans = [decode.decode(span) for span in found]
    return [
        (
            one.span.SerializeToString(deterministic=True),
            one.resource.SerializeToString(deterministic=True),
            one.scope.SerializeToString(deterministic=True),
            one.resource_schema_url,
            one.scope_schema_url,
        )
        for one in spans
    ]


def wanted(request: ExportTraceServiceRequest):
    return [
        (
            span.SerializeToString(deterministic=True),
            in_resource.resource.SerializeToString(deterministic=True),
            in_scope.scope.SerializeToString(deterministic=True),
            in_resource.schema_url,
            in_scope.schema_url,
        )
        for span, in_resource, in_scope in otlp.tagged_with_context(request)
    ]


def total(request: ExportTraceServiceRequest) -> int:
    return sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)


@property_test
@given(request=otlp.requests)
def test_the_quick_way_and_the_walk_find_the_same(request):
    body = request.SerializeToString()
    quick, walk = decode.find(body, "protobuf", "audit."), Walk(body, "audit.")
    assert quick.total == walk.total == total(request)
    assert objects(quick.spans) == objects(walk.frames) == wanted(request)


@property_test
@given(request=otlp.requests, seed=st.integers(0, 1 << 32))
def test_any_valid_encoding_gives_what_upb_merges_it_to(request, seed):
    body = wf.scrambled(request, Random(seed))
    merged = ExportTraceServiceRequest.FromString(body)
    merged.DiscardUnknownFields()
    assert merged.SerializeToString(deterministic=True) == request.SerializeToString(deterministic=True)
    found = decode.find(body, "protobuf", "audit.")
    assert found.total == total(request)
    assert objects(found.spans) == wanted(request)


def resource_part(key: bytes) -> bytes:
    return wf.length_delimited(1, wf.length_delimited(1, wf.attribute(key)))


def test_a_resource_after_its_spans_and_in_two_pieces_is_merged():
    span = wf.length_delimited(9, wf.attribute(b"audit.action"))
    scope_spans = wf.length_delimited(2, wf.length_delimited(2, span))
    body = wf.length_delimited(1, resource_part(b"a") + scope_spans + resource_part(b"b"))
    (found,) = decode.find(body, "protobuf", "audit.").spans
    assert [attribute.key for attribute in decode.decode(found).resource.attributes] == ["a", "b"]


def test_of_a_scalar_that_comes_twice_the_last_wins():
    body = wf.request(wf.length_delimited(5, b"first") + wf.length_delimited(5, b"last"))
    (found,) = decode.find(body, "protobuf", "audit.").spans
    assert decode.decode(found).span.name == "last"


def test_of_a_key_that_comes_twice_in_one_attribute_the_last_counts():
    keys = wf.length_delimited(1, b"audit.x") + wf.length_delimited(1, b"other")
    assert (
        decode.find(wf.request(wf.length_delimited(9, keys), tagged=False), "protobuf", "audit.").spans == []
    )
    keys = wf.length_delimited(1, b"other") + wf.length_delimited(1, b"audit.x")
    assert (
        len(decode.find(wf.request(wf.length_delimited(9, keys), tagged=False), "protobuf", "audit.").spans)
        == 1
    )


def test_the_prefix_in_a_value_does_not_tag_a_span():
    body = wf.request(wf.length_delimited(9, wf.attribute(b"note", b"audit.actor.id")), tagged=False)
    assert decode.find(body, "protobuf", "audit.") == decode.Found(total=1, spans=[])


@pytest.mark.parametrize("form", ["quick", "walk"])
def test_the_values_of_one_key_are_given_without_judging_the_rest(form):
    odd = wf.tag(7, wf.VARINT) + b"\x01" if form == "walk" else b""  # a time of the wrong wire type
    body = wf.request(odd + wf.length_delimited(9, wf.attribute(b"audit.x", b"1")) * 2)
    (found,) = decode.find(body, "protobuf", "audit.").spans
    assert [value.string_value for value in found.values("audit.x")] == ["1", "1"]
    if form == "walk":
        with pytest.raises(InvalidRequest):
            decode.decode(found)


def test_an_empty_request_has_no_spans():
    assert decode.find(b"", "protobuf", "audit.") == decode.Found(total=0, spans=[])
