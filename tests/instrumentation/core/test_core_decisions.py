"""What is said about a route before a request is what happens to the request."""

from __future__ import annotations

import pytest
from auditspan.decisions import Decisions
from auditspan.facts import plain_route
from auditspan.rules import Rule, Rules
from auditspan.settings import Settings
from opentelemetry.trace import SpanKind

DECISIONS = Decisions(Settings(reads=("/reports/*",)))
HTTP = [
    (method, route)
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "PURGE")
    for route in ("/orders/{id}", "/reports/{id:int}", "/")
]
RPC = ["GetInvoice", "GetOrCreate", "ListInvoices", "ChargeCard", "Getaway", "Ping"]


@pytest.mark.parametrize(("method", "route"), HTTP)
def test_an_http_request_is_a_record_when_the_decision_says_so(running, method, route):
    with running.serve(method, route) as span:
        span.set_attribute("http.response.status_code", 200)
    assert len(running.sink.records) == DECISIONS.decide(plain_route(route), method).audited


@pytest.mark.parametrize("method", RPC)
def test_an_rpc_is_a_record_when_the_decision_says_so(running, method):
    known = {"rpc.service": "shop.Billing", "rpc.method": method, "rpc.grpc.status_code": 0}
    with running.tracer.start_as_current_span("rpc", kind=SpanKind.SERVER, attributes=known):
        pass
    assert len(running.sink.records) == DECISIONS.decide(f"/shop.Billing/{method}", "").audited


@pytest.mark.parametrize(
    ("route", "method", "audited", "changes", "reason"),
    [
        ("/orders", "POST", True, True, "POST may change something"),
        ("/orders", "GET", False, False, "GET reads"),
        ("/reports/{id}", "GET", True, False, "OTEL_AUDITSPAN_READS: /reports/*"),
        ("/shop.Billing/ChargeCard", "", True, True, "the method is on no read-only list"),
        ("/shop.Billing/GetInvoice", "", False, False, "read-only by Get*"),
    ],
)
def test_a_decision_says_why(route, method, audited, changes, reason):
    decision = DECISIONS.decide(route, method)
    assert (decision.audited, decision.changes, decision.reason) == (audited, changes, reason)


def test_a_rule_goes_before_the_default_and_is_named_by_its_line():
    rules = Rules(
        (
            Rule(place="rules.yaml:2", routes=("/jobs/{id}",), do="skip"),
            Rule(place="rules.yaml:4", rpcs=("/shop.Billing/Get*",), do="audit"),
        )
    )
    decisions = Decisions(Settings(), rules)
    skipped, rpc = decisions.decide("/jobs/{id}", "POST"), decisions.decide("/shop.Billing/GetInvoice", "")
    assert (skipped.audited, skipped.chosen, skipped.reason) == (False, True, "rules.yaml:2 says skip")
    assert (rpc.audited, rpc.chosen, rpc.reason) == (True, True, "rules.yaml:4 says audit")
    assert decisions.decide("/orders", "POST").audited is True


@pytest.mark.parametrize("status", [0, 100, 200, 204, 302, 401, 500])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_what_is_passed_over_is_a_read_that_went_well_where_nothing_else_is_asked_for(method, status):
    nothing_asked = Decisions(Settings())
    passes = nothing_asked.passes(method, status)
    assert passes == (method in {"GET", "HEAD", "OPTIONS"} and 200 <= status < 300)
    assert not (passes and nothing_asked.decide("/orders/{id}", method).audited)
    assert not DECISIONS.passes(method, status)
    assert not Decisions(Settings(), Rules((Rule(place="rules: rule 1", do="audit"),))).passes(method, status)
