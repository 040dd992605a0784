"""gate: what C passes over, the readable way passes over too."""

from __future__ import annotations

import pytest
from auditspan import context
from auditspan.bootstrap import install
from auditspan.context import Upstream, with_upstream
from auditspan.processor import AuditSpanProcessor
from auditspan.settings import Settings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context


def remote(upstream=None):
    parent = SpanContext(0x42, 0x77, is_remote=True, trace_flags=TraceFlags(1))
    found = set_span_in_context(NonRecordingSpan(parent))
    return with_upstream(upstream, found) if upstream else found


def readable(processor):
    """*processor*, without its shorter ways."""
    for name in ("on_start", "on_end", "passes"):
        vars(processor).pop(name)
    return processor


@pytest.fixture(params=["in C", "readable"])
def provider(request, harness):
    """Each test runs both ways and says what must be so in both."""
    found = TracerProvider(shutdown_on_exit=False)
    found.sink = harness.Sink()
    found.processor = install(found, Settings(), found.sink)
    assert {"on_start", "on_end"} <= vars(found.processor).keys()
    if request.param == "readable":
        readable(found.processor)
    return found


REQUESTS = {
    "a read": ({"http.request.method": "GET"}, {"http.response.status_code": 200}, 0),
    "an old read": ({"http.method": "GET"}, {"http.status_code": 204}, 0),
    "a read without an answer": ({"http.request.method": "GET"}, {}, 0),
    "a read that moved": ({"http.request.method": "GET"}, {"http.response.status_code": 302}, 0),
    "a denied read": ({"http.request.method": "GET"}, {"http.response.status_code": 403}, 1),
    "a status of another type": ({"http.request.method": "GET"}, {"http.response.status_code": "403"}, 0),
    "a change": ({"http.request.method": "POST"}, {"http.response.status_code": 201}, 1),
    "a method nobody knows": ({"http.request.method": "BREW"}, {"http.response.status_code": 200}, 1),
    "a call": ({"rpc.service": "shop.Billing", "rpc.method": "Charge"}, {"rpc.grpc.status_code": 0}, 1),
    "nothing known": ({}, {}, 0),
    "a word of ours from outside": (
        {"http.request.method": "GET", "audit.actor.id": "mallory"},
        {"http.response.status_code": 200},
        0,
    ),
    "a word by hand, which asks for no record": (
        {"http.request.method": "GET"},
        {"http.response.status_code": 200, "audit.action": "EXPORT"},
        0,
    ),
}


@pytest.mark.parametrize("around", [None, remote(), remote(Upstream(parent_span_id="00f067aa0ba902b7"))])
@pytest.mark.parametrize(("begun", "added", "records"), REQUESTS.values(), ids=REQUESTS)
def test_both_ways_make_the_same_records_and_leave_nothing_open(provider, around, begun, added, records):
    tracer = provider.get_tracer("t")
    for _ in range(3):  # keys are learned by the first
        span = tracer.start_span("request", around, SpanKind.SERVER, attributes=begun)
        state = context.of_span(span)
        assert state.entry
        assert state.emitter is provider.processor
        assert state.parent is None
        assert state.upstream.parent_span_id == (context.upstream(around).parent_span_id if around else "")
        assert state.certain == (
            begun.get("http.request.method") in {"POST", "BREW"} or "rpc.service" in begun
        )
        inner = tracer.start_span("inside", set_span_in_context(span), attributes={"a.b": 1})
        assert context.of_span(inner) is state
        inner.end()
        span.set_attributes(added)
        span.end()
        assert state.ended
        assert context.live.of(span.context.span_id) is None
    assert len(provider.sink.records) == 3 * records


def test_an_inner_entry_finds_the_span_around_it(provider):
    tracer = provider.get_tracer("t")
    get = {"http.request.method": "GET"}
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER, attributes=get) as outer:
        inner = tracer.start_span("inner", kind=SpanKind.SERVER, attributes=get)
        assert context.of_span(inner).parent is context.of_span(outer)
        inner.end()


def test_a_source_that_fails_to_let_go_is_logged_once_and_raises_nothing(provider, caplog):
    class Source:
        def let_go(self):
            raise RuntimeError("no")

    for _ in range(2):
        span = provider.get_tracer("t").start_span(
            "GET", kind=SpanKind.SERVER, attributes={"http.request.method": "GET"}
        )
        state = context.of_span(span)
        state.source, state.judged = Source(), True
        span.end()
        assert state.ended
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError]


@pytest.mark.parametrize(
    ("method", "status", "attributes", "passes"),
    [
        ("GET", 200, {}, True),
        ("HEAD", 299, {}, True),
        ("GET", 300, {}, False),
        ("GET", 199, {}, False),
        ("GET", 1 << 70, {}, False),
        ("GET", -200, {}, False),
        ("get", 200, {}, False),
        ("POST", 200, {}, False),
        ("GET", 200, {"audit.actor.id": "mallory"}, False),
    ],
)
def test_both_ways_pass_over_the_same_answers(provider, method, status, attributes, passes):
    known = {"http.request.method": "GET", **attributes}
    span = provider.get_tracer("t").start_span("GET", kind=SpanKind.SERVER, attributes=known)
    state = context.of_span(span)
    assert provider.processor.passes(span, state, method, status) is passes
    assert state.judged is passes


@pytest.mark.parametrize("name", ["wanted", "certain", "held"])
def test_neither_way_passes_over_what_somebody_asked_for(provider, name):
    get = {"http.request.method": "GET"}
    span = provider.get_tracer("t").start_span("GET", kind=SpanKind.SERVER, attributes=get)
    state = context.of_span(span)
    setattr(state, name, True)
    assert not provider.processor.passes(span, state, "GET", 200)
    assert not state.judged


def test_it_may_be_called_as_any_processor_may(provider):
    """As one of another vendor's calls it that stands around it."""
    span = provider.get_tracer("t").start_span("GET", kind=SpanKind.SERVER, attributes={"http.method": "PUT"})
    provider.processor.on_start(span=span, parent_context=remote())
    provider.processor.on_end(span=span)
    for call in (
        lambda: provider.processor.on_start(span, around=None),
        provider.processor.on_start,
        lambda: provider.processor.on_end(span, span),
        provider.processor.on_end,
    ):
        with pytest.raises(TypeError, match="argument"):
            call()


def test_a_processor_that_extends_ours_is_called_itself(harness):
    class More(AuditSpanProcessor):
        pass

    assert "on_end" not in vars(More(Settings(), harness.Sink()))
