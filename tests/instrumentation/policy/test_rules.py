"""Which rule a request falls under, and what becomes of its record."""

from __future__ import annotations

import subprocess
import sys

import auditspan
import pytest
from auditspan.rules import AUDIT, SKIP, Rule, Rules
from auditspan.settings import Settings
from opentelemetry.trace import SpanKind

GET = {"http.request.method": "GET"}
POST = {"http.method": "POST"}
RPC = {"rpc.system": "grpc"}
TASK = {"celery.task_name": "billing.charge"}


def places(*rules: Rule, attributes: dict[str, str], route: str) -> str:
    return Rules(rules).of(attributes, route).place


@pytest.mark.parametrize(
    ("rule", "attributes", "route", "fits"),
    [
        (Rule(routes=("/orders/{id}",)), GET, "/orders/{id}", True),
        (Rule(routes=("/orders/<int:id>",)), GET, "/orders/{id}", True),
        (Rule(routes=("/orders/{other}",)), GET, "/orders/{id}", False),
        (Rule(routes=("/orders/*",)), GET, "/orders/{id}/items/{item}", True),
        (Rule(routes=("/orders",)), GET, "/orders/{id}", False),
        (Rule(routes=("/a", "/orders/{id}")), POST, "/orders/{id}", True),
        (Rule(routes=("/orders/{id}",), methods=frozenset({"GET"})), POST, "/orders/{id}", False),
        (Rule(methods=frozenset({"POST", "PUT"})), POST, "/anything", True),
        (Rule(routes=("*",)), RPC, "/shop.Billing/Charge", False),
        (Rule(rpcs=("/shop.Billing/*",)), RPC, "/shop.Billing/Charge", True),
        (Rule(rpcs=("/shop.Billing/Get*",)), RPC, "/shop.Billing/Charge", False),
        (Rule(rpcs=("*",)), GET, "/shop.Billing/Charge", False),
        (Rule(tasks=("billing.*",)), TASK, "", True),
        (Rule(tasks=("mail.*",)), TASK, "", False),
        (Rule(tasks=("*",)), GET, "/orders/{id}", False),
        (Rule(routes=("*",)), TASK, "", False),
    ],
)
def test_what_a_rule_fits(rule, attributes, route, fits):
    rule = Rule(
        place="it", routes=rule.routes, methods=rule.methods, rpcs=rule.rpcs, tasks=rule.tasks, do=AUDIT
    )
    assert places(rule, attributes=attributes, route=route) == ("it" if fits else "")


def test_the_first_rule_that_fits_counts():
    rules = (Rule(place="first", routes=("/orders/*",)), Rule(place="second", routes=("*",)))
    assert places(*rules, attributes=GET, route="/orders/7") == "first"
    assert places(*rules, attributes=GET, route="/other") == "second"


def test_paths_that_clients_choose_do_not_fill_the_memory():
    rules = Rules((Rule(place="it", routes=("/orders/*",)),))
    for number in range(10_000):
        rules.of(GET, f"/scan/{number}")
        rules.of(GET, f"/orders/{'x' * 300}{number}")
    assert len(rules._known) <= 4096
    assert max(len(route) for _, route in rules._known) <= 256
    assert rules.of(GET, "/orders/7").place == "it"


# -- what becomes of the record


@pytest.fixture
def ruled(installed):
    def with_rules(*rules: Rule):
        return installed(Settings(), rules=Rules(rules))

    return with_rules


def test_a_read_is_a_record_when_a_rule_says_so(ruled):
    running = ruled(Rule(place="p", routes=("/orders/{id}",), methods=frozenset({"GET"}), do=AUDIT))
    with running.serve("GET"):
        pass
    with running.serve("GET", "/other"):
        pass
    (record,) = running.sink.records
    assert (record["action"], record["target.id"]) == ("READ", "7")


@pytest.mark.parametrize("status", [200, 403, 500])
def test_a_skipped_route_leaves_no_record_however_it_ends(ruled, status):
    running = ruled(Rule(place="p", routes=("/orders/*",), do=SKIP))
    with running.serve("POST") as span:
        span.set_attribute("http.response.status_code", status)
    assert running.sink.records == []


def test_what_the_application_asks_for_on_a_skipped_route_stays(ruled):
    running = ruled(Rule(place="p", routes=("/orders/*",), do=SKIP))
    with running.serve("POST"):
        auditspan.describe(action="SHIP")
    with running.serve("POST"), auditspan.record("PACK"):
        pass
    assert [record["action"] for record in running.sink.records] == ["SHIP", "PACK"]


def test_a_rule_names_action_target_and_reason(ruled):
    running = ruled(
        Rule(
            place="p",
            routes=("/shops/{shop}/orders/{order}",),
            action="CANCEL",
            target_type="order",
            target_id=("shop", "order"),
            reason="by policy 7",
        )
    )
    with running.serve("PUT", "/shops/{shop}/orders/{order}", **{"url.path": "/shops/north/orders/9"}):
        pass
    (record,) = running.sink.records
    expected = {"action": "CANCEL", "target.type": "order", "target.id": "north/9", "reason": "by policy 7"}
    assert {name: record[name] for name in expected} == expected


def test_why_it_was_denied_goes_before_a_rules_reason_and_the_applications_word_before_both(ruled):
    running = ruled(Rule(place="p", routes=("*",), action="CANCEL", reason="by policy 7"))
    with running.serve("PUT") as span:
        span.set_attribute("http.response.status_code", 403)
    with running.serve("PUT"):
        auditspan.describe(action="REVERT", reason="a typing error")
    denied, said = running.sink.records
    assert (denied["action"], denied["reason"]) == ("CANCEL", "403 Forbidden")
    assert (said["action"], said["reason"]) == ("REVERT", "a typing error")


def test_a_rule_that_only_describes_makes_no_record_of_a_read(ruled):
    running = ruled(Rule(place="p", routes=("*",), action="LOOK"))
    with running.serve("GET"):
        pass
    with running.serve("POST"):
        pass
    (record,) = running.sink.records
    assert record["action"] == "LOOK"


def test_a_parameter_that_is_not_there_gives_no_target_id(ruled):
    running = ruled(Rule(place="p", routes=("*",), target_type="thing", target_id=("nothing",)))
    with running.serve("POST"):
        pass
    (record,) = running.sink.records
    assert (record["target.type"], record["target.id"]) == ("thing", None)


@pytest.mark.parametrize(("do", "kept"), [(AUDIT, True), (SKIP, False)])
def test_a_celery_task_follows_its_rule(ruled, do, kept):
    running = ruled(Rule(place="p", tasks=("billing.*",), do=do, action="CHARGE", target_type="invoice"))
    with running.tracer.start_as_current_span("run/billing.charge", kind=SpanKind.CONSUMER) as span:
        span.set_attribute("celery.task_name", "billing.charge")
    with running.tracer.start_as_current_span("run/mail.send", kind=SpanKind.CONSUMER) as span:
        span.set_attribute("celery.task_name", "mail.send")
    found = [(record["action"], record["target.type"]) for record in running.sink.records]
    assert found == ([("CHARGE", "invoice")] if kept else [])


def test_services_downstream_are_told_only_of_records_that_will_be(ruled):
    running = ruled(
        Rule(place="1", routes=("/skipped/*",), do=SKIP), Rule(place="2", routes=("/read/*",), do=AUDIT)
    )
    promised = {}
    for method, route in (("POST", "/skipped/{id}"), ("GET", "/read/{id}"), ("POST", "/other"), ("POST", "")):
        with running.serve(method, route) as span:
            promised[route] = running.state(span).nearest_record() != ""
    assert promised == {"/skipped/{id}": False, "/read/{id}": True, "/other": True, "": False}


def test_yaml_is_imported_only_where_there_are_rules():
    code = (
        "import sys; from auditspan.policy import Policy; from auditspan.settings import read;"
        "import auditspan.bootstrap; Policy.of(read({})); print('yaml' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
