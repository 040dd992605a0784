"""Our encoder against the protobuf library and against the SDK's own encoder."""

from __future__ import annotations

from auditspan.wire import SpanEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.span import NonRecordingSpan

text = st.text(max_size=300)
scalar = st.one_of(
    text, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=40)
)
attribute = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(text.filter(bool), inner, max_size=3)
    ),
    max_leaves=6,
)
attributes = st.dictionaries(text.filter(bool), attribute, max_size=12)
span_context = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.integers(0, 3).map(TraceFlags),
    trace_state=st.sampled_from([TraceState(), TraceState([("a", "1"), ("b", "2")])]),
)


class Keeps(SpanProcessor):
    def __init__(self):
        self.ended = []

    def on_end(self, span):
        self.ended.append(span)


@given(
    name=text,
    own=attributes,
    resource=attributes,
    parent=st.none() | span_context,
    kind=st.sampled_from(list(SpanKind)),
    events=st.lists(st.tuples(text, attributes, st.integers(0, 2**63 - 1)), max_size=3),
    links=st.lists(st.tuples(span_context, attributes), max_size=3),
    status=st.sampled_from([StatusCode.UNSET, StatusCode.OK, StatusCode.ERROR]),
    times=st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)),
)
@settings(deadline=None, max_examples=60)
def test_a_span_is_the_same_message_as_the_sdks(  # noqa: PLR0917 - hypothesis passes them by name
    name, own, resource, parent, kind, events, links, status, times
):
    keeps = Keeps()
    provider = TracerProvider(
        resource=Resource(resource, "https://schema/r"), sampler=ALWAYS_ON, shutdown_on_exit=False
    )
    provider.add_span_processor(keeps)
    tracer = provider.get_tracer("scope", "1.2", "https://schema/s", {"of": "scope"})
    span = tracer.start_span(
        name,
        context=set_span_in_context(NonRecordingSpan(parent)) if parent else None,
        kind=kind,
        attributes=own,
        links=[Link(context, given_) for context, given_ in links],
        start_time=times[0],
    )
    for event_name, event_attributes, timestamp in events:
        span.add_event(event_name, event_attributes, timestamp)
    span.set_status(Status(status, "described" if status is StatusCode.ERROR else None))
    span.end(times[1])
    (ended,) = keeps.ended

    ours = ExportTraceServiceRequest.FromString(SpanEncoder().encode(ended, ended.attributes, ended.end_time))
    theirs = encode_spans([ended])

    (mine,) = ours.resource_spans[0].scope_spans[0].spans
    # The SDK leaves out the W3C flags in bits 0 to 7 (trace.proto, Span.flags) and the trace state of links.
    assert mine.flags & 0xFF == int(ended.context.trace_flags)
    assert [link.trace_state for link in mine.links] == [
        context.trace_state.to_header() for context, _ in links
    ]
    mine.flags &= ~0xFF
    for link in mine.links:
        link.trace_state = ""
        link.flags &= ~0xFF
    assert ours == theirs


def test_what_is_dropped_by_limits_is_counted():
    from opentelemetry.sdk.trace import SpanLimits

    keeps = Keeps()
    limits = SpanLimits(max_span_attributes=2, max_events=1, max_links=1, max_event_attributes=1)
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(keeps)
    links = [Link(SpanContext(5, n, False), {}) for n in (1, 2, 3)]
    span = provider.get_tracer("t").start_span("s", attributes={"a": 1, "b": 2, "c": 3, "d": 4}, links=links)
    for _ in range(3):
        span.add_event("e", {"a": 1, "b": 2})
    span.end()
    request = ExportTraceServiceRequest.FromString(SpanEncoder().encode(keeps.ended[0], {}, 1))
    (mine,) = request.resource_spans[0].scope_spans[0].spans
    assert (mine.dropped_attributes_count, mine.dropped_events_count, mine.dropped_links_count) == (2, 2, 2)
    assert mine.events[0].dropped_attributes_count == 1


def test_values_that_otlp_has_no_type_for_are_kept_as_text():
    keeps = Keeps()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(keeps)
    provider.get_tracer("t").start_span("s").end()
    odd = {
        "k" * 5000: "v",
        "t": "v" * 5000,
        "big": 2**70,
        "half a pair": "\ud800",
        "nothing": None,
        "a set": frozenset({1}),
    }
    mappings = {"mappings": ({"a": 1}, {}), "text": "v"}
    encoder = SpanEncoder()
    request = ExportTraceServiceRequest.FromString(encoder.encode(keeps.ended[0], odd, 1))
    assert set(odd) == {p.key for p in request.resource_spans[0].scope_spans[0].spans[0].attributes}
    again = encoder.encode(keeps.ended[0], odd, 1)  # the keys are known by now
    assert request == ExportTraceServiceRequest.FromString(again)
    nested = ExportTraceServiceRequest.FromString(encoder.encode(keeps.ended[0], mappings, 1))
    assert set(mappings) == {p.key for p in nested.resource_spans[0].scope_spans[0].spans[0].attributes}
    pairs = {p.key: p.value for p in request.resource_spans[0].scope_spans[0].spans[0].attributes}
    assert pairs["big"].string_value == str(2**70)
    assert pairs["half a pair"].string_value == "?"
    assert pairs["nothing"].WhichOneof("value") is None
    assert pairs["a set"].string_value == "frozenset({1})"


def test_a_new_resource_after_a_fork_is_not_mistaken_for_the_old_one():
    keeps = Keeps()
    encoder = SpanEncoder()
    found = []
    for number in range(40):  # more than are kept
        provider = TracerProvider(resource=Resource({"n": number}), shutdown_on_exit=False)
        provider.add_span_processor(keeps)
        provider.get_tracer(f"scope {number}").start_span("s").end()
        request = ExportTraceServiceRequest.FromString(encoder.encode(keeps.ended.pop(), {}, 1))
        group = request.resource_spans[0]
        found.append((group.resource.attributes[0].value.int_value, group.scope_spans[0].scope.name))
    assert found == [(number, f"scope {number}") for number in range(40)]
