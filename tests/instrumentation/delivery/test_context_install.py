"""What an operator gets to hear, and that the header counts only behind traceparent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from auditspan.context import Actor, AuditedSpan, Upstream, upstream, with_state
from auditspan.propagation import AuditContextPropagator, Destinations, KeyRing, Tokens, install
from auditspan.propagation.http_guard import guard_aiohttp
from auditspan.propagation.tokens import Claims
from auditspan.settings import Settings
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider

KEY = "k1 thirty-two-characters-at-the-very-least"


@pytest.fixture(autouse=True)
def own_global_propagator(monkeypatch):
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", propagate.get_global_textmap())
    # Guarding the clients would last beyond this test; other tests do it in processes of their own.
    monkeypatch.setattr("auditspan.propagation._guard", lambda *_: None)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


def test_a_request_passes_through_the_global_propagator_and_counts_for_its_own_trace_only(keys):
    settings = Settings(context_keys_file=keys, context_destinations=("orders",))
    install(settings, service="gateway")
    tracer = TracerProvider().get_tracer("t")
    entry = tracer.start_span("entry", kind=trace.SpanKind.SERVER)
    ids = entry.get_span_context()
    state = AuditedSpan(
        trace.format_span_id(ids.span_id), ids.trace_id, entry=True, certain=True, actor=Actor("bob")
    )
    around = with_state(state, trace.set_span_in_context(entry))
    client = tracer.start_span(
        "GET", context=around, kind=trace.SpanKind.CLIENT, attributes={"http.url": "http://orders/x"}
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(client, around))
    assert set(carrier) == {"traceparent", "audit-context"}
    arrived = upstream(propagate.extract(carrier, Context()))
    assert arrived == Upstream(Actor("bob", origin="asserted"), state.span_id, "gateway")
    carrier["traceparent"] = carrier["traceparent"].replace(trace.format_trace_id(ids.trace_id), "1" * 32)
    assert upstream(propagate.extract(carrier, Context())).rejected == "wrong_trace"
    del carrier["traceparent"]
    assert upstream(propagate.extract(carrier, Context())).rejected == "wrong_trace"


@pytest.mark.parametrize(
    ("scope", "sent"),
    [
        ("opentelemetry.instrumentation.requests", True),
        ("opentelemetry.instrumentation.urllib", True),
        ("shop.client", True),
        ("opentelemetry.instrumentation.aiohttp_client", False),
        ("opentelemetry.instrumentation.botocore", False),
    ],
)
def test_a_client_whose_redirects_nobody_checks_gets_no_token(keys, scope, sent):
    propagator = install(
        Settings(context_keys_file=keys, context_destinations=("orders",)), service="gateway"
    )
    client = (
        TracerProvider()
        .get_tracer(scope)
        .start_span("GET", kind=trace.SpanKind.CLIENT, attributes={"url.full": "http://orders/"})
    )
    state = AuditedSpan(
        "1" * 16, client.get_span_context().trace_id, entry=False, certain=True, actor=Actor("bob")
    )
    carrier: dict[str, str] = {}
    propagator.inject(carrier, with_state(state, trace.set_span_in_context(client)))
    assert ("audit-context" in carrier) is sent


@pytest.mark.parametrize(
    ("kind", "attributes", "sent"),
    [
        (trace.SpanKind.PRODUCER, {"messaging.destination.name": "orders"}, True),
        (trace.SpanKind.PRODUCER, {"messaging.destination": "orders"}, True),
        (trace.SpanKind.PRODUCER, {"messaging.destination": "strangers"}, False),
        (trace.SpanKind.PRODUCER, {"url.full": "http://gateway/"}, False),
        (trace.SpanKind.PRODUCER, {}, False),
        (trace.SpanKind.CLIENT, {"messaging.destination": "orders"}, False),
        (trace.SpanKind.INTERNAL, {"messaging.destination": "orders"}, False),
    ],
)
@pytest.mark.parametrize("carrier", [dict, list], ids=["headers as a mapping", "headers as pairs"])
def test_a_producer_s_message_gets_a_token_for_queues_when_its_queue_is_listed(
    keys, kind, attributes, sent, carrier
):
    propagator = install(
        Settings(context_keys_file=keys, context_destinations=("queue:orders", "gateway")), service="gateway"
    )
    tracer = TracerProvider().get_tracer("shop")
    span = tracer.start_span("send", kind=kind, attributes=attributes)
    state = AuditedSpan(
        "1" * 16, span.get_span_context().trace_id, entry=False, certain=True, actor=Actor("bob")
    )
    old = propagator.tokens.sign(Claims("2" * 32))
    headers = carrier([("audit-context", old), ("x-own", "kept")])

    class Setter:
        def set(self, carrier, key, value):
            carrier.append((key, value)) if isinstance(carrier, list) else carrier.update({key: value})

    propagator.inject(headers, with_state(state, trace.set_span_in_context(span)), Setter())
    found = dict(headers)
    assert found.pop("x-own") == "kept"
    assert len(headers) == 1 + sent
    assert set(found) == ({"audit-context"} if sent else set())
    assert all(value.startswith("q.k1.") for value in found.values())


def test_an_aiohttp_that_writes_requests_in_another_way_is_not_guarded():
    class ClientRequest:
        """Without the method that sends."""

    assert not guard_aiohttp(SimpleNamespace(ClientRequest=ClientRequest), Destinations(["orders"]))
    assert not guard_aiohttp(SimpleNamespace(), Destinations(["orders"]))


def test_an_actor_whom_nobody_vouches_for_is_not_signed(keys):
    judge = Tokens(KeyRing.from_text(KEY))
    propagator = AuditContextPropagator(judge, Destinations(["orders"]), service="gateway")
    span = TracerProvider().get_tracer("t").start_span("entry")
    ids = span.get_span_context()
    state = AuditedSpan(trace.format_span_id(ids.span_id), ids.trace_id, entry=True, certain=True)
    token = propagator.token(with_state(state, trace.set_span_in_context(span)))
    assert judge.verify(token, trace.format_trace_id(ids.trace_id)) == Upstream(
        None, state.span_id, "gateway"
    )


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_text("k1 short"), "line 1: the secret has 5 characters"),
        (lambda path: path.chmod(0o644), "every user of this host can read"),
    ],
    ids=["missing", "weak", "world-readable"],
)
def test_trouble_with_the_keys_is_said_without_the_secret(keys, caplog, prepare, said):
    prepare(keys)
    install(Settings(context_keys_file=keys, context_destinations=("orders",)), service="gateway")
    assert said in caplog.text
    assert "thirty-two" not in caplog.text


def test_a_list_without_keys_and_an_entry_that_can_t_be_used_are_said(caplog):
    install(Settings(context_destinations=("orders", "http://orders")), service="gateway")
    assert "there is no usable key, so nothing is sent" in caplog.text
    assert "'http://orders' is not usable" in caplog.text


def test_without_settings_nothing_is_said_and_an_incoming_header_is_recorded_as_not_judged(caplog):
    install(Settings(), service="gateway")
    carrier = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00", "audit-context": "a.bbbb.c." + "d" * 43}
    assert upstream(propagate.extract(carrier, Context())) == Upstream(rejected="unknown_key")
    out: dict[str, str] = {}
    propagate.inject(out, propagate.extract(carrier, Context()))
    assert "audit-context" not in out
    assert caplog.text == ""


def test_a_setter_that_fails_costs_the_header_and_nothing_else(keys, caplog):
    propagator = AuditContextPropagator(
        Tokens(KeyRing.from_text(KEY)), Destinations(["orders"]), service="gateway"
    )
    tracer = TracerProvider().get_tracer("t")
    client = tracer.start_span("GET", kind=trace.SpanKind.CLIENT, attributes={"http.url": "http://orders/"})
    ids = client.get_span_context()
    state = AuditedSpan("1" * 16, ids.trace_id, entry=False, certain=True, actor=Actor("bob"))
    context = with_state(state, trace.set_span_in_context(client))

    class Setter:
        def set(self, carrier, key, value):
            raise RuntimeError("read only")

    for _ in range(3):
        propagator.inject({}, context, Setter())
    assert caplog.text.count("read only") == 1
