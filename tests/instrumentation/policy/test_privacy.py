"""What a record holds of a request: nothing that a client sent in confidence, but for what a rule names."""

from __future__ import annotations

import contextlib

import auditspan
import pytest
from auditspan.context import Facts
from auditspan.rules import Keep, Rule, Rules
from auditspan.settings import Settings
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

SECRET = "hunter2"
QUOTING = {
    "http.url": f"http://shop/orders/7?token={SECRET}",
    "http.target": f"/orders/7?token={SECRET}#{SECRET}",
    "url.full": f"http://shop/orders/7?token={SECRET}",
    "url.query": f"token={SECRET}",
    "http.request.header.x_ticket": (SECRET,),
    "http.request.header.authorization": (SECRET,),
    "http.response.header.set-cookie": (SECRET,),
    "http.user_agent": SECRET,
    "user_agent.original": SECRET,
    "http.request.body": SECRET,
    "db.statement": f"SELECT '{SECRET}'",
    "db.query.text": f"SELECT '{SECRET}'",
    "db.query.parameter.0": SECRET,
    "graphql.document": SECRET,
    "exception.message": SECRET,
}


class Source:
    """A request with a header, a query and a parameter."""

    def actor(self):
        return None

    def facts(self, span):
        del span
        return Facts(action="UPDATE", outcome="failure", changes=True, route="/orders/{id}")

    def header(self, name):
        return {"x-ticket": ["t-1", "t-2"], "user-agent": ["curl"]}.get(name, [])

    def query(self):
        return f"page=2&q=a%20b&token={SECRET}&page=3"

    def parameter(self, name):
        return {"id": "7"}.get(name)


def kept(installed, keep: Keep, **attributes):
    running = installed(Settings(), rules=Rules((Rule(place="p", routes=("*",), keep=keep),)))
    with running.serve(**(QUOTING | attributes)) as span:
        running.state(span).source = Source()
    (record,) = running.sink.records
    return record


def test_without_a_rule_nothing_of_it_is_recorded(installed):
    running = installed(Settings())
    with running.serve(**QUOTING, **{"http.request.body.size": 7, "server.address": "shop"}):
        pass
    (record,) = running.sink.records
    assert SECRET not in str(record.span)
    expected = {
        "http.url": "http://shop/orders/7",
        "http.target": "/orders/7",
        "url.full": "http://shop/orders/7",
        "url.path": "/orders/7",
        "http.request.body.size": 7,
        "server.address": "shop",
    }
    assert {name: record.attributes.get(name) for name in expected} == expected


def test_the_ordinary_span_is_left_as_it_was(installed):
    running = installed(Settings())
    with running.serve(**QUOTING):
        pass
    (exported,) = running.exported.get_finished_spans()
    assert {name: exported.attributes[name] for name in QUOTING} == QUOTING


def test_a_rule_lets_a_header_through(installed):
    record = kept(installed, Keep(headers=frozenset({"x-ticket", "x-missing"})))
    assert record.attributes["http.request.header.x-ticket"] == ["t-1", "t-2"]
    assert SECRET not in str(record.span)
    assert "user_agent" not in str(record.span)


def test_the_user_agent_is_a_header(installed):
    record = kept(installed, Keep(headers=frozenset({"user-agent"})), **{"user_agent.original": "curl"})
    assert record.attributes["user_agent.original"] == "curl"


def test_a_header_that_an_instrumentation_captured_is_let_through_without_a_source(installed):
    keep = Keep(headers=frozenset({"x-ticket"}))
    running = installed(Settings(), rules=Rules((Rule(place="p", routes=("*",), keep=keep),)))
    with running.serve(
        **{"http.request.header.x_ticket": ("t-1",), "http.request.header.other.x_ticket": ("o",)}
    ):
        pass
    (record,) = running.sink.records
    assert record.attributes["http.request.header.x_ticket"] == ["t-1"]
    assert "http.request.header.other.x_ticket" not in record.attributes


def test_a_rule_lets_a_query_parameter_through(installed):
    record = kept(installed, Keep(query=frozenset({"page", "q"})))
    assert record.attributes["url.query"] == "page=2&q=a%20b&page=3"
    assert SECRET not in str(record.span)


@pytest.mark.parametrize(
    "attributes",
    [
        {"url.query": f"page=2&token={SECRET}"},
        {"http.target": f"/orders/7?page=2&token={SECRET}"},
        {"url.full": f"http://shop/orders/7?page=2&token={SECRET}"},
        {"http.target": "/orders/7", "http.url": f"http://shop/orders/7?page=2&token={SECRET}"},
    ],
    ids=["url.query", "http.target", "url.full", "http.url"],
)
def test_the_query_is_read_off_the_span_where_there_is_no_source(installed, attributes):
    rules = Rules((Rule(place="p", routes=("*",), keep=Keep(query=frozenset({"page"}))),))
    running = installed(Settings(), rules=rules)
    with running.serve(**attributes):
        pass
    (record,) = running.sink.records
    assert record.attributes["url.query"] == "page=2"
    assert SECRET not in str(record.span)


def crash(running) -> None:
    with contextlib.suppress(ValueError), running.serve() as span:
        span.add_event("checked", {"count": 3})
        raise ValueError(f"invalid input {SECRET}")


def test_an_exception_leaves_its_type(installed):
    running = installed(Settings())
    crash(running)
    (record,) = running.sink.records
    assert SECRET not in str(record.span)
    assert record.span.status.message == "ValueError"
    checked, exception = record.span.events
    assert checked.name == "checked"
    assert [(pair.key, pair.value.string_value) for pair in exception.attributes] == [
        ("exception.type", "ValueError"),
        ("exception.escaped", "False"),
    ]
    assert record["outcome"] == "failure"


def test_a_rule_lets_exceptions_through(installed):
    running = installed(Settings(), rules=Rules((), Keep(exceptions=True)))
    crash(running)
    (record,) = running.sink.records
    assert record.span.status.message == f"ValueError: invalid input {SECRET}"
    assert f"invalid input {SECRET}" in str(record.span.events)


def test_what_a_link_quotes_stays_out_and_the_rest_of_it_stays(installed):
    running = installed(Settings())
    other = running.tracer.start_span("other").get_span_context()
    with running.serve() as span:
        span.add_link(other, QUOTING | {"batch": "7"})
        span.add_link(other, {f"a{n}": n for n in range(200)} | {"db.statement": SECRET})
        span.add_link(other, {"batch": "8"})
    (record,) = running.sink.records
    assert SECRET not in str(record.span)
    quoting, full, plain = record.span.links
    assert {pair.key: pair.value.string_value for pair in quoting.attributes} == {
        "batch": "7",
        "http.url": "http://shop/orders/7",
        "http.target": "/orders/7",
        "url.full": "http://shop/orders/7",
    }
    assert quoting.span_id == other.span_id.to_bytes(8, "big")
    assert full.dropped_attributes_count == 201 - 128
    assert [(pair.key, pair.value.string_value) for pair in plain.attributes] == [("batch", "8")]


def test_what_the_span_dropped_is_still_counted(installed):
    running = installed(Settings())
    with contextlib.suppress(ValueError), running.serve() as span:
        for number in range(200):
            span.add_event("e", {f"a{n}": number for n in range(200)})
            span.add_link(running.tracer.start_span("other").get_span_context())
        raise ValueError("x")
    (record,) = running.sink.records
    assert record.span.dropped_events_count == 201 - 128
    assert record.span.dropped_links_count == 200 - 128
    assert record.span.events[0].dropped_attributes_count == 200 - 128


def test_a_record_inside_a_request_keeps_no_exception_either(installed):
    running = installed(Settings())
    with pytest.raises(ValueError, match=SECRET), auditspan.record("EXPORT"):
        raise ValueError(SECRET)
    (record,) = running.sink.records
    assert SECRET not in str(record.span)


def test_a_rules_request_that_raises_when_it_is_asked_costs_no_record(installed):
    class Raising(Source):
        def header(self, name):
            raise RuntimeError(name)

        query = parameter = header

    rules = Rules(
        (
            Rule(
                place="p",
                routes=("*",),
                target_id=("id",),
                keep=Keep(frozenset({"x"}), frozenset({"page"})),
            ),
        )
    )
    running = installed(Settings(trusted_proxies=("10.0.0.0/8",)), rules=rules)
    with running.serve(**QUOTING, **{"network.peer.address": "10.0.0.1"}) as span:
        running.state(span).source = Raising()
    (record,) = running.sink.records
    assert record["action"] == "UPDATE"
    assert SECRET not in str(record.span)


# -- the switch


def test_switched_off_no_ordinary_span_has_an_audit_attribute(installed):
    running = installed(Settings(span_attributes=False))
    with running.serve() as span:
        auditspan.set_actor("alice")
        running.state(span).emitter.responding(span, running.state(span))
        with auditspan.record("EXPORT", target_type="report"):
            pass
    assert [record["action"] for record in running.sink.records] == ["EXPORT", "CREATE"]
    assert all(record["actor.id"] == "alice" for record in running.sink.records)
    for exported in running.exported.get_finished_spans():
        assert not [key for key in exported.attributes if key.startswith("audit.")]


def test_switched_off_a_record_inside_is_kept_where_sampling_drops_it(installed):
    running = installed(Settings(span_attributes=False), sampler=ALWAYS_OFF)
    with auditspan.record("EXPORT"):
        pass
    with running.tracer.start_as_current_span("ordinary"):
        assert not running.tracer.start_span("inner").is_recording()
    (record,) = running.sink.records
    assert record["action"] == "EXPORT"
    assert running.exported.get_finished_spans() == ()
