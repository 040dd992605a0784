"""gate: what C passes over, the readable way passes over too; and whoever the SDK calls, is called as before."""

from __future__ import annotations

import pytest
from auditspan import context, gate
from auditspan.bootstrap import install
from auditspan.context import Upstream, with_upstream
from auditspan.processor import AuditSpanProcessor
from auditspan.settings import Settings
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
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


# -- several processors


class Hears(SpanProcessor):
    def __init__(self, heard, name, *, raises=False):
        self.heard, self.name, self.raises = heard, name, raises

    def on_start(self, span, *, parent_context=None):
        self.heard.append((self.name, "start", parent_context))

    def _on_ending(self, span):
        self.heard.append((self.name, "ending"))

    def on_end(self, span):
        self.heard.append((self.name, "end"))
        if self.raises:
            raise RuntimeError(self.name)


@pytest.fixture
def briefly():
    found = TracerProvider(shutdown_on_exit=False)
    gate.tell_briefly(found._active_span_processor)
    return found


def test_each_processor_is_told_in_turn_also_one_that_comes_later(briefly):
    heard, around = [], remote()
    tracer = briefly.get_tracer("t")
    tracer.start_span("nobody listens").end()
    for name in "ab":
        briefly.add_span_processor(Hears(heard, name))
        briefly.add_span_processor(SpanProcessor())
    tracer.start_span("x", around).end()
    assert heard == [
        ("a", "start", around),
        ("b", "start", around),
        *[("a", "ending"), ("b", "ending"), ("a", "end"), ("b", "end")],
    ]


def test_where_one_raises_the_caller_hears_of_it_and_those_behind_it_do_not(briefly):
    heard = []
    briefly.add_span_processor(Hears(heard, "a", raises=True))
    briefly.add_span_processor(Hears(heard, "b"))
    span = briefly.get_tracer("t").start_span("x")
    with pytest.raises(RuntimeError, match="a"):
        span.end()
    assert ("b", "end") not in heard


@pytest.mark.parametrize("kind", [BatchSpanProcessor, SimpleSpanProcessor])
def test_what_somebody_puts_in_the_place_of_an_empty_method_is_called(briefly, monkeypatch, kind):
    processor = kind(InMemorySpanExporter())
    briefly.add_span_processor(processor)
    briefly.get_tracer("t").start_span("x").end()
    heard = []
    monkeypatch.setattr(kind, "on_start", lambda *_, **named: heard.append(named))
    briefly.get_tracer("t").start_span("x").end()
    processor.shutdown()
    assert heard == [{"parent_context": None}]


def test_what_returns_something_but_does_nothing_else_is_called_as_well(briefly):
    class Counts(SpanProcessor):
        def on_start(self, span, parent_context=None):
            self.started = True

    processor = Counts()
    briefly.add_span_processor(processor)
    briefly.get_tracer("t").start_span("x")
    assert processor.started


def test_only_the_sdks_own_way_to_several_processors_is_made_shorter():
    class Theirs(SynchronousMultiSpanProcessor):
        pass

    theirs = Theirs()
    gate.tell_briefly(theirs)
    assert "on_start" not in vars(theirs)


def test_a_processor_that_extends_ours_is_called_itself(harness):
    class More(AuditSpanProcessor):
        pass

    assert "on_end" not in vars(More(Settings(), harness.Sink()))
