"""What becomes a record, under whose name, without a framework in between."""

from __future__ import annotations

import os
import threading

import auditspan
import pytest
from auditspan import context
from auditspan.bootstrap import install
from auditspan.context import Actor, AuditedSpan, Facts, Upstream, with_upstream
from auditspan.extractors import begin, finish, hold, respond
from auditspan.sampler import AuditSampler, audit
from auditspan.settings import Settings
from auditspan.told import uuid7
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.propagation import set_span_in_context

ALICE = Actor("alice", roles=("admin",))


class Source:
    def __init__(self, actor=None, facts=None):
        self.who = actor
        self.what = facts or Facts(action="CREATE", outcome="success", changes=True)

    def actor(self):
        if isinstance(self.who, Exception):
            raise self.who
        return self.who

    def facts(self, span):
        if isinstance(self.what, Exception):
            raise self.what
        return self.what


def remote(trace_id: int = 0x42, *, upstream: Upstream | None = None, sampled: bool = True):
    parent = SpanContext(trace_id, 0x77, is_remote=True, trace_flags=TraceFlags(int(sampled)))
    found = set_span_in_context(NonRecordingSpan(parent))
    return with_upstream(upstream, found) if upstream else found


# -- what becomes a record


@pytest.mark.parametrize(
    ("method", "route", "status", "becomes"),
    [
        ("POST", "/orders/{id}", 200, True),
        ("DELETE", "/orders/{id}", 500, True),
        ("GET", "/orders/{id}", 200, False),
        ("GET", "/orders/{id}", 404, False),
        ("GET", "/orders/{id}", 403, True),
        ("GET", "/reports/{id}", 200, True),
        ("OPTIONS", "/orders/{id}", 204, False),
    ],
)
def test_changes_denials_and_reads_asked_for_become_records(running, method, route, status, becomes):
    with running.serve(method, route) as span:
        span.set_attribute("http.response.status_code", status)
    assert len(running.sink.records) == becomes


def test_a_framework_without_an_extractor_gives_action_target_and_outcome(running):
    with running.serve("PUT", "/orders/{id}") as span:
        span.set_attribute("http.response.status_code", 401)
    (record,) = running.sink.records
    expected = {
        "actor.id": "unknown",
        "actor.type": None,
        "action": "UPDATE",
        "outcome": "denied",
        "target.id": "7",
    }
    assert {name: record[name] for name in expected} == expected


def test_a_consumed_message_is_a_record_when_the_application_says_so(running):
    for speak in (False, True):
        with running.tracer.start_as_current_span("process orders", kind=SpanKind.CONSUMER):
            if speak:
                auditspan.describe(action="SHIP", target_type="order", target_id=7)
                auditspan.set_actor("shipper", type="system")
    (record,) = running.sink.records
    assert (record["action"], record["actor.id"], record["actor.type"]) == ("SHIP", "shipper", "system")


def test_client_and_inner_spans_are_no_records(running):
    for kind in (SpanKind.CLIENT, SpanKind.PRODUCER, SpanKind.INTERNAL):
        with running.tracer.start_as_current_span("x", kind=kind, attributes={"http.request.method": "POST"}):
            pass
    assert running.sink.records == []


# -- under whose name


ASSERTED = Upstream(actor=Actor("ann", roles=("r",)), parent_span_id="00000000000000aa", service="gateway")


@pytest.mark.parametrize(
    ("said", "framework", "upstream", "expected"),
    [
        ("bob", ALICE, ASSERTED, ("bob", "authenticated", None)),
        ("", ALICE, ASSERTED, ("alice", "authenticated", None)),
        ("", None, ASSERTED, ("ann", "asserted", "gateway")),
        ("", Actor("anonymous", origin="unverified"), ASSERTED, ("ann", "asserted", "gateway")),
        ("", Actor("spiffe://gw", type="service"), ASSERTED, ("ann", "asserted", "spiffe://gw")),
        ("", Actor("spiffe://gw", type="service"), None, ("spiffe://gw", "authenticated", None)),
        ("", Actor("anonymous", origin="unverified"), None, ("anonymous", "unverified", None)),
        ("", None, None, ("unknown", "unverified", None)),
        ("", RuntimeError("a user object that raises"), None, ("unknown", "unverified", None)),
        ("", RuntimeError("a user object that raises"), ASSERTED, ("ann", "asserted", "gateway")),
    ],
    ids=[
        "the-application-before-all",
        "the-framework-before-upstream",
        "upstream-when-the-framework-can-not-say",
        "upstream-before-anonymous",
        "a-relaying-service-is-the-delegate",
        "a-service-on-its-own",
        "anonymous",
        "unknown",
        "a-raising-user",
        "a-raising-user-with-upstream",
    ],
)
def test_whose_word_counts(running, said, framework, upstream, expected):
    with running.serve(context=remote(upstream=upstream)) as span:
        begin(span, Source(framework))
        if said:
            auditspan.set_actor(said)
    (record,) = running.sink.records
    assert (record["actor.id"], record["actor.origin"], record["actor.delegate"]) == expected


def test_why_a_signed_header_was_not_believed_is_kept(running):
    with running.serve(context=remote(upstream=Upstream(rejected="expired"))):
        pass
    (record,) = running.sink.records
    assert (record["context.rejected"], record["actor.id"]) == ("expired", "unknown")


def test_the_nearest_record_upstream_is_the_parent(running):
    with running.serve(context=remote(upstream=ASSERTED)) as span, auditspan.record("INNER"):
        pass
    by_action = {record["action"]: record for record in running.sink.records}
    assert by_action["CREATE"]["parent.span_id"] == "00000000000000aa"
    assert by_action["INNER"]["parent.span_id"] == f"{span.get_span_context().span_id:016x}"


def test_inside_a_read_the_nearest_record_is_upstream_of_it(running):
    with running.serve("GET", context=remote(upstream=ASSERTED)):
        assert context.current().nearest_record() == "00000000000000aa"
        with auditspan.record("INNER"):
            pass
    (record,) = running.sink.records
    assert record["parent.span_id"] == "00000000000000aa"


# -- finding the audited span


def test_a_thread_with_only_the_span_finds_the_request(running):
    with running.serve() as span:

        def work():
            with trace.use_span(span):
                auditspan.set_actor("from-a-thread")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert running.sink.records[0]["actor.id"] == "from-a-thread"


def test_a_child_that_sampling_dropped_leads_to_its_request_even_in_another_thread(running):
    with running.serve(), running.tracer.start_as_current_span("child") as child:

        def work():
            with trace.use_span(child):
                auditspan.set_actor("from-a-thread")

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert running.sink.records[0]["actor.id"] == "from-a-thread"


def test_between_two_open_requests_of_one_trace_nobody_is_named_by_guess(running):
    one = running.tracer.start_span(
        "a", context=remote(), kind=SpanKind.SERVER, attributes={"http.method": "POST"}
    )
    two = running.tracer.start_span(
        "b", context=remote(), kind=SpanKind.SERVER, attributes={"http.method": "POST"}
    )
    astray = NonRecordingSpan(SpanContext(0x42, 0x99, is_remote=False))
    with trace.use_span(astray):
        otel_context.attach(set_span_in_context(astray, otel_context.Context()))
        auditspan.set_actor("whose")
    one.end()
    two.end()
    assert [record["actor.id"] for record in running.sink.records] == ["unknown", "unknown"]


def test_requests_that_nest_in_one_context_keep_their_own_actor(running):
    with running.serve("POST", "/outer/{id}", context=remote()):
        auditspan.set_actor("outer")
        with running.tracer.start_as_current_span("process", kind=SpanKind.CONSUMER):
            auditspan.describe(action="INNER")
            auditspan.set_actor("inner")
        with running.tracer.start_as_current_span("afterwards"):
            auditspan.describe(reason="outer's")
    by_action = {record["action"]: record for record in running.sink.records}
    assert by_action["INNER"]["actor.id"] == "inner"
    assert (by_action["CREATE"]["actor.id"], by_action["CREATE"]["reason"]) == ("outer", "outer's")
    assert by_action["INNER"]["parent.span_id"] == by_action["CREATE"].span.span_id.hex()


def test_what_a_request_left_in_a_thread_is_not_the_next_ones(running):
    for name in ("first", "second", ""):
        entry = running.serve(context=remote(int.from_bytes(os.urandom(8), "big")))
        with entry, running.tracer.start_as_current_span("inner"):
            if name:
                auditspan.set_actor(name)
    assert [record["actor.id"] for record in running.sink.records] == ["first", "second", "unknown"]


def test_outside_of_any_request_nothing_happens(running):
    auditspan.set_actor("alice")
    auditspan.describe(action="X")
    assert context.current() is None
    with running.serve():
        pass
    assert running.sink.records[0]["actor.id"] == "unknown"


def test_spans_that_never_end_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(context, "_MAX_OPEN_SPANS", 10)
    live = context._Live()
    for number in range(50):
        live.add(number, AuditedSpan(span_id="0" * 16, trace_id=number, entry=True))
    assert len(live._open) == 10
    assert live.only(49) is not None


# -- attributes that are not ours

DENIED_POST = {"http.request.method": "POST", "http.route": "/pay", "http.response.status_code": 403}


def test_baggage_that_somebody_copied_onto_spans_is_dropped(running):
    carried = otel_context.Context()
    for name, value in {
        "audit.actor.id": "root",
        "audit.action": "LOGIN",
        "audit.outcome": "denied",
        "audit.x": "1",
    }.items():
        carried = baggage.set_baggage(name, value, carried)
    token = otel_context.attach(carried)
    try:
        copied = dict(baggage.get_all(carried))
        with running.serve(**copied), running.tracer.start_as_current_span("inner", attributes=copied):
            pass
    finally:
        otel_context.detach(token)
    (record,) = running.sink.records
    ours = {name: record[name] for name in ("actor.id", "action", "outcome", "x")}
    assert ours == {"actor.id": "unknown", "action": "CREATE", "outcome": "success", "x": None}
    for span in running.exported.get_finished_spans():  # the ordinary copies count as no records either
        assert span.attributes["audit.delivery"] == "spool"


def test_copied_baggage_counts_for_nothing_though_it_was_changed_and_is_no_longer_current(running):
    carried = baggage.set_baggage("audit.outcome", "success", otel_context.Context())
    carried = baggage.set_baggage("audit.reason", "approved by everybody", carried)
    span = running.tracer.start_span(
        "POST /pay", context=carried, kind=SpanKind.SERVER, attributes=DENIED_POST
    )
    span.set_attributes({"audit.outcome": "success", "audit.reason": "approved by"})  # copied, and cut
    span.end()
    (record,) = running.sink.records
    assert (record["outcome"], record["reason"]) == ("denied", "403 Forbidden")


def test_two_threads_with_the_first_records_of_a_process_get_different_numbers(running):
    def pay():
        started.wait()
        running.tracer.start_span("POST /pay", kind=SpanKind.SERVER, attributes=DENIED_POST).end()

    started = threading.Barrier(8)
    threads = [threading.Thread(target=pay) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record["sequence.number"] for record in running.sink.records) == list(range(1, 9))


def test_a_span_that_the_application_tagged_at_its_start_is_a_record(running):
    with running.serve():
        auditspan.set_actor("alice")
        with running.tracer.start_as_current_span(
            "pay", attributes={"audit.action": "PAY", "audit.actor.id": "root", "audit.target.id": "7"}
        ):
            pass
    by_action = {record["action"]: record for record in running.sink.records}
    assert by_action["PAY"]["actor.id"] == "alice"
    assert by_action["PAY"]["target.id"] == "7"


# -- ordinary spans


def test_the_ordinary_copy_is_marked_and_complete_when_the_response_starts(running):
    with running.serve() as span:
        begin(span, Source(ALICE))
        respond(span)
    (record,) = running.sink.records
    for ordinary in running.exported.get_finished_spans():
        assert ordinary.attributes["audit.delivery"] == "spool"
        assert ordinary.attributes["audit.actor.id"] == "alice"
        assert ordinary.attributes["audit.record.id"] == record["record.id"]
    assert len(running.exported.get_finished_spans()) == (record.span.flags & 1)


def test_a_record_that_is_finished_early_is_written_once(running):
    with running.serve() as span:
        begin(span, Source(ALICE))
        respond(span)
        finish(span)
        (record,) = running.sink.records
        assert record.span.end_time_unix_nano >= record.span.start_time_unix_nano
    assert len(running.sink.records) == 1


def test_numbers_have_no_gap_and_begin_anew_in_another_stream(running):
    for stream in ("s1", "s1", "s2"):
        running.sink.stream_id = stream
        with running.serve():
            pass
    found = [(record["sequence.stream_id"], record["sequence.number"]) for record in running.sink.records]
    assert found == [("s1", 1), ("s1", 2), ("s2", 1)]


def test_a_record_that_the_spool_refuses_leaves_a_gap(running):
    for full in (False, True, False):
        running.sink.full = full
        with running.serve():
            pass
    assert [record["sequence.number"] for record in running.sink.records] == [1, 3]


def test_a_defect_of_ours_or_of_an_extractor_never_reaches_the_application(running, caplog, monkeypatch):
    with running.serve() as span:
        begin(span, Source(ALICE, RuntimeError("broken extractor")))
        respond(span)
    assert running.sink.records[0]["action"] == "CREATE"  # from the span's own attributes
    monkeypatch.setattr(running.sink, "append", lambda _: 1 / 0)
    for _ in range(3):
        with running.serve():
            pass
    assert len([record for record in caplog.records if record.name == "auditspan.processor"]) == 1


def test_record_ids_are_uuids_of_version_7_in_order_of_time():
    ids = [uuid7().decode() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(i[14], i[19] in "89ab") for i in ids} == {("7", True)}
    stamps = [i[:13] for i in ids]
    assert stamps == sorted(stamps)


# -- sampling


@pytest.mark.parametrize(
    "wrapped",
    [ALWAYS_OFF, ParentBased(ALWAYS_OFF), TraceIdRatioBased(0)],
    ids=["always off", "parent based", "ratio 0"],
)
@pytest.mark.parametrize(
    ("kind", "attributes", "decision"),
    [
        (SpanKind.SERVER, None, Decision.RECORD_ONLY),
        (SpanKind.CONSUMER, None, Decision.RECORD_ONLY),
        (SpanKind.CLIENT, {"url.full": "http://x"}, Decision.RECORD_ONLY),
        (SpanKind.PRODUCER, None, Decision.RECORD_ONLY),
        (SpanKind.INTERNAL, {"audit.action": "X"}, Decision.RECORD_ONLY),
        (SpanKind.INTERNAL, {"action": "X"}, Decision.DROP),
        (SpanKind.INTERNAL, None, Decision.DROP),
    ],
)
def test_what_a_record_needs_is_recorded_where_sampling_drops_it(wrapped, kind, attributes, decision):
    result = AuditSampler(wrapped).should_sample(None, 2**128 - 1, "x", kind, attributes)
    assert result.decision is decision
    assert not result.decision.is_sampled()
    if decision is Decision.RECORD_ONLY:
        assert dict(result.attributes) == (attributes or {})


def test_a_sampled_span_and_the_trace_state_are_left_alone():
    parent = SpanContext(
        1, 2, is_remote=True, trace_flags=TraceFlags(0), trace_state=TraceState([("v", "1")])
    )
    sampler = AuditSampler(ParentBased(ALWAYS_ON))
    result = sampler.should_sample(set_span_in_context(NonRecordingSpan(parent)), 1, "x", SpanKind.SERVER)
    assert (result.decision, result.trace_state) == (Decision.RECORD_ONLY, parent.trace_state)
    assert (
        AuditSampler(ALWAYS_ON).should_sample(None, 1, "x", SpanKind.SERVER).decision
        is Decision.RECORD_AND_SAMPLE
    )
    assert "ParentBased" in sampler.get_description()


@pytest.mark.parametrize("kind", [SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL])
@pytest.mark.parametrize("remote_parent", [True, False], ids=["remote", "local"])
@pytest.mark.parametrize("flag", [None, 0, 1], ids=["no-parent", "parent-dropped", "parent-sampled"])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF], ids=["on", "off"])
def test_a_parent_based_sampler_taken_apart_judges_as_the_whole(root, flag, remote_parent, kind):
    around = None
    if flag is not None:
        parent = SpanContext(1, 2, is_remote=remote_parent, trace_flags=TraceFlags(flag))
        around = set_span_in_context(NonRecordingSpan(parent))
    whole, apart = AuditSampler(ParentBased(root)), audit(ParentBased(root))
    results = [sampler.should_sample(around, 1, "x", kind, {"a": 1}) for sampler in (whole, apart)]
    assert results[0].decision is results[1].decision
    assert dict(results[0].attributes) == dict(results[1].attributes)


def test_a_parent_based_sampler_of_somebody_else_is_wrapped_as_it_is():
    class Theirs(ParentBased):
        def should_sample(self, *args, **kwargs):
            return ALWAYS_OFF.should_sample(*args, **kwargs)

    sampler = audit(Theirs(ALWAYS_ON))
    assert sampler.should_sample(None, 1, "x", SpanKind.SERVER).decision is Decision.RECORD_ONLY


def test_outgoing_spans_are_kept_only_where_a_signed_context_goes_out():
    for exits, decision in ((True, Decision.RECORD_ONLY), (False, Decision.DROP)):
        sampler = audit(ALWAYS_OFF, exits=exits)
        assert sampler.should_sample(None, 1, "x", SpanKind.CLIENT).decision is decision
        assert sampler.should_sample(None, 1, "x", SpanKind.SERVER).decision is Decision.RECORD_ONLY


def test_a_child_that_a_rule_dropped_leads_to_its_own_request_though_another_of_the_trace_is_open(harness):
    class DropsInner(Sampler):
        def should_sample(self, parent_context, trace_id, name, kind=None, *args, **kwargs):
            chosen = ALWAYS_OFF if name == "inner" else ALWAYS_ON
            return chosen.should_sample(parent_context, trace_id, name, kind, *args, **kwargs)

        def get_description(self):
            return "DropsInner"

    sink = harness.Sink()
    provider = TracerProvider(sampler=DropsInner(), shutdown_on_exit=False)
    install(provider, Settings(), sink)
    tracer = provider.get_tracer("t")
    post = {"http.request.method": "POST", "http.route": "/orders", "url.path": "/orders"}
    another = tracer.start_span("a", context=remote(), kind=SpanKind.SERVER, attributes=post)
    entry = tracer.start_as_current_span("b", context=remote(), kind=SpanKind.SERVER, attributes=post)
    with entry, tracer.start_as_current_span("inner") as inner:
        assert not inner.is_recording()
        auditspan.set_actor("alice")
    another.end()
    assert [record["actor.id"] for record in sink.records] == ["alice", "unknown"]


def test_a_record_under_a_dropped_child_in_another_thread_belongs_to_its_request(running):
    def work():
        with trace.use_span(child), auditspan.record("EXPORT"):
            pass

    with running.serve(), running.tracer.start_as_current_span("child") as child:
        auditspan.set_actor("alice")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    by_action = {record["action"]: record for record in running.sink.records}
    assert by_action["EXPORT"]["actor.id"] == "alice"
    assert by_action["EXPORT"]["parent.span_id"] == by_action["CREATE"].span.span_id.hex()


def get(tracer, **attributes):
    known = {"http.request.method": "GET", "http.route": "/orders/{id}", "url.path": "/orders/7"}
    return tracer.start_as_current_span("GET", kind=SpanKind.SERVER, attributes=known | attributes)


@pytest.mark.parametrize("status", [200, 204, 299])
def test_a_read_that_went_well_is_passed_over_until_the_application_speaks_of_it(harness, status):
    sink, provider = harness.Sink(), TracerProvider(shutdown_on_exit=False)
    processor = install(provider, Settings(), sink)
    with get(provider.get_tracer("t")) as span:
        assert processor.passes(span, context.of_span(span), "GET", status)
        auditspan.describe(action="REVIEW")
        span.set_attribute("http.response.status_code", status)
    (record,) = sink.records
    assert (record["action"], record["target.id"]) == ("REVIEW", "7")


@pytest.mark.parametrize(
    ("settings", "method", "status", "attributes"),
    [
        (Settings(), "POST", 200, {}),
        (Settings(), "GET", 302, {}),
        (Settings(), "GET", 403, {}),
        (Settings(), "GET", 500, {}),
        (Settings(), "GET", 0, {}),
        (Settings(), "GET", 200, {"audit.reason": "carried by baggage"}),
        (Settings(reads=("/reports/*",)), "GET", 200, {}),
    ],
    ids=["a-change", "redirected", "denied", "failed", "unanswered", "tagged", "reads-are-asked-for"],
)
def test_no_other_request_is_passed_over(harness, settings, method, status, attributes):
    provider = TracerProvider(shutdown_on_exit=False)
    processor = install(provider, settings, harness.Sink())
    with get(provider.get_tracer("t"), **attributes) as span:
        assert not processor.passes(span, context.of_span(span), method, status)


def test_a_token_for_a_queue_is_counted_also_of_a_request_that_is_passed_over(harness):
    sink, provider = harness.Sink(), TracerProvider(shutdown_on_exit=False)
    processor = install(provider, Settings(), sink)
    came_with = remote(upstream=Upstream(ALICE, "00000000000000aa", "gateway", queued=True))
    known = {"http.request.method": "GET", "http.route": "/orders", "http.response.status_code": 200}
    provider.get_tracer("t").start_span("GET", came_with, SpanKind.SERVER, known).end()
    assert sink.records == []
    assert processor.context_counts.rejected == {"wrong_purpose": 1}


def test_a_read_whose_response_outlives_its_span_is_not_passed_over(harness):
    provider = TracerProvider(shutdown_on_exit=False)
    processor = install(provider, Settings(), harness.Sink())
    with get(provider.get_tracer("t")) as span:
        assert hold(span)
        assert not processor.passes(span, context.of_span(span), "GET", 200)


def test_of_two_processors_each_ends_what_it_began(harness):
    sinks = harness.Sink(), harness.Sink()
    providers = TracerProvider(shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    processors = [install(*pair) for pair in zip(providers, (Settings(), Settings()), sinks, strict=True)]
    post = {"http.request.method": "POST", "http.route": "/orders"}
    span = providers[0].get_tracer("t").start_span("POST", kind=SpanKind.SERVER, attributes=post)
    processors[1].on_end(span)
    assert (sinks[0].records, sinks[1].records) == ([], [])
    span.end()
    assert (len(sinks[0].records), len(sinks[1].records)) == (1, 0)


def test_a_response_known_as_a_whole_is_written_and_shown_at_once(running):
    with running.serve() as span:
        state = begin(span, Source(ALICE))
        state.emitter.concluding(span, state)
        (record,) = running.sink.records
    assert len(running.sink.records) == 1
    for ordinary in running.exported.get_finished_spans():
        shown = {key: value for key, value in ordinary.attributes.items() if key.startswith("audit.")}
        assert shown.pop("audit.delivery") == "spool"
        assert shown["audit.actor.roles"] == ("admin",)
        assert {key: record[key.removeprefix("audit.")] for key in shown} == shown | {
            "audit.actor.roles": ["admin"]
        }


def test_tracers_that_were_there_before_us_are_sampled_by_us_too(harness):
    sink = harness.Sink()
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    early = provider.get_tracer("early")
    install(provider, Settings(), sink)
    links = [Link(SpanContext(1, 2, is_remote=True))]
    early.start_span("x", kind=SpanKind.SERVER, attributes={"http.method": "POST"}, links=links).end()
    assert len(sink.records) == 1


def test_a_forked_child_has_a_working_registry(running):
    with running.serve():
        child = os.fork()
        if child == 0:
            try:
                with running.serve():
                    pass
                os._exit(0)
            except BaseException:  # noqa: BLE001 - the child must not go on as a second pytest
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert status == 0
