"""Random valid OTLP trace requests, for hypothesis, and what it takes to say that two spans are the same.

Everything that protobuf and OTLP allow may come: repeated keys, keys without a value, numbers that are not finite,
unknown enum numbers, any 64-bit time, links with odd ids.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, EntityRef, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

if TYPE_CHECKING:
    from google.protobuf.message import Message

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
uint32 = st.integers(0, (1 << 32) - 1)
uint64 = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(1_700_000_000 * 10**9, 1_900_000_000 * 10**9))
# One NaN: its sign and payload mean nothing to OpenTelemetry, and JSON has no words for them.
doubles = st.floats().map(lambda number: math.nan if math.isnan(number) else number)
enum_numbers = st.one_of(st.integers(0, 6), st.integers(-(1 << 31), (1 << 31) - 1))
trace_ids = st.binary(min_size=16, max_size=16).filter(any)
span_ids = st.binary(min_size=8, max_size=8).filter(any)
urls = st.sampled_from(["", "https://opentelemetry.io/schemas/1.37.0", "https://example.org/ä"])


def _empty_value(_: None) -> AnyValue:
    return AnyValue()


def _array(values: list[AnyValue]) -> AnyValue:
    value = AnyValue()
    value.array_value.SetInParent()
    value.array_value.values.extend(values)
    return value


def _kvlist(pairs: list[KeyValue]) -> AnyValue:
    value = AnyValue()
    value.kvlist_value.SetInParent()
    value.kvlist_value.values.extend(pairs)
    return value


def key_values(
    values: st.SearchStrategy[AnyValue], keys: st.SearchStrategy[str] = texts
) -> st.SearchStrategy[KeyValue]:
    return st.builds(lambda key, value: KeyValue(key=key, value=value), keys, values)


_scalars = st.one_of(
    st.builds(lambda text: AnyValue(string_value=text), texts),
    st.builds(lambda flag: AnyValue(bool_value=flag), st.booleans()),
    st.builds(lambda number: AnyValue(int_value=number), st.integers(-(1 << 63), (1 << 63) - 1)),
    st.builds(lambda number: AnyValue(double_value=number), doubles),
    st.builds(lambda number: AnyValue(double_value=float(number)), st.integers(-1000, 1000)),
    st.builds(lambda data: AnyValue(bytes_value=data), st.binary(max_size=12)),
    st.builds(_empty_value, st.none()),
)
any_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.builds(_array, st.lists(inner, max_size=4)),
        st.builds(_kvlist, st.lists(key_values(inner), max_size=4)),
    ),
    max_leaves=6,
)
attributes = st.lists(key_values(any_values), max_size=6)
audit_attributes = st.lists(
    key_values(
        any_values,
        st.sampled_from(
            ["audit.actor.id", "audit.action", "audit.actor.roles", "audit.record.id", "audit.x", "audit."]
        ),
    ),
    min_size=1,
    max_size=4,
)
events = st.builds(
    Span.Event,
    time_unix_nano=uint64,
    name=texts,
    attributes=attributes,
    dropped_attributes_count=uint32,
)
links = st.builds(
    Span.Link,
    trace_id=st.one_of(trace_ids, st.binary(min_size=1, max_size=20).filter(lambda data: len(data) != 16)),
    span_id=st.one_of(span_ids, st.binary(min_size=1, max_size=12).filter(lambda data: len(data) != 8)),
    trace_state=texts,
    attributes=attributes,
    dropped_attributes_count=uint32,
    flags=uint32,
)
statuses = st.builds(Status, message=texts, code=enum_numbers)


def _spans(found: st.SearchStrategy[list[KeyValue]]) -> st.SearchStrategy[Span]:
    return st.builds(
        Span,
        trace_id=trace_ids,
        span_id=span_ids,
        trace_state=texts,
        parent_span_id=st.one_of(st.just(b""), span_ids),
        flags=uint32,
        name=texts,
        kind=enum_numbers,
        start_time_unix_nano=uint64,
        end_time_unix_nano=uint64,
        attributes=found,
        dropped_attributes_count=uint32,
        events=st.lists(events, max_size=2),
        dropped_events_count=uint32,
        links=st.lists(links, max_size=2),
        dropped_links_count=uint32,
        status=st.one_of(st.none(), statuses),
    )


untagged_spans = _spans(attributes)
tagged_spans = _spans(
    st.builds(
        lambda before, audit, after: [*before, *audit, *after], attributes, audit_attributes, attributes
    )
)
resources = st.builds(
    Resource,
    attributes=st.builds(
        lambda service, others: [*service, *others],
        st.lists(
            key_values(st.builds(lambda text: AnyValue(string_value=text), texts), st.just("service.name")),
            max_size=1,
        ),
        attributes,
    ),
    dropped_attributes_count=uint32,
    entity_refs=st.lists(
        st.builds(
            EntityRef,
            schema_url=urls,
            type=texts,
            id_keys=st.lists(texts, max_size=2),
            description_keys=st.lists(texts, max_size=2),
        ),
        max_size=2,
    ),
)
scopes = st.builds(
    InstrumentationScope,
    name=texts,
    version=texts,
    attributes=attributes,
    dropped_attributes_count=uint32,
)
scope_spans = st.builds(
    ScopeSpans,
    scope=st.one_of(st.none(), scopes),
    spans=st.lists(st.one_of(tagged_spans, untagged_spans), max_size=3),
    schema_url=urls,
)
resource_spans = st.builds(
    ResourceSpans,
    resource=st.one_of(st.none(), resources),
    scope_spans=st.lists(scope_spans, max_size=2),
    schema_url=urls,
)
requests = st.builds(ExportTraceServiceRequest, resource_spans=st.lists(resource_spans, max_size=2))


def is_tagged(span: Span) -> bool:
    return any(attribute.key.startswith("audit.") for attribute in span.attributes)


def tagged_with_context(request: ExportTraceServiceRequest) -> list[tuple[Span, ResourceSpans, ScopeSpans]]:
    """The tagged spans of *request*, each with the messages that it lies in."""
    return [
        (span, in_resource, in_scope)
        for in_resource in request.resource_spans
        for in_scope in in_resource.scope_spans
        for span in in_scope.spans
        if is_tagged(span)
    ]


def same(one: Message, other: Message) -> bool:
    """Equal byte for byte once written, so that NaN equals NaN and -0.0 is not 0.0."""
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
