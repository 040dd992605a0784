"""The rules file: what it may say, and where it says what it may not."""

from __future__ import annotations

import os
import textwrap

import pytest
from auditspan.rules import Keep, Rule
from auditspan.rules_file import MAX_BYTES, RulesError, parse, read

EVERYTHING = """
keep:
  headers: [X-Request-Id]
rules:
  - route: /orders/{order_id}/refund
    method: post
    action: REFUND_ORDER
    target: {type: order, id: order_id}
    reason: goodwill
    keep:
      headers: [X-Ticket]
      query: [page]
      exceptions: true
  - route: [/health, /metrics]
    do: skip
  - grpc: [shop.v1.Billing/Get*, shop.v1.Ledger]
    do: audit
    target: {type: invoice, id: [customer.id, number]}
  - task: billing.*
    do: audit
"""


def rules_of(text: str):
    return parse(text, "rules.yaml")


def mistakes(text: str) -> tuple[str, ...]:
    with pytest.raises(RulesError) as found:
        rules_of(textwrap.dedent(text))
    return found.value.mistakes


def http(route: str, method: str = "GET") -> tuple[dict[str, str], str]:
    return {"http.request.method": method}, route


def test_everything_that_a_rule_can_say():
    rules = rules_of(EVERYTHING)
    assert rules.of(*http("/orders/{order_id}/refund", "POST")) == Rule(
        place="rules.yaml:5",
        routes=("/orders/{order_id}/refund",),
        methods=frozenset({"POST"}),
        action="REFUND_ORDER",
        target_type="order",
        target_id=("order_id",),
        reason="goodwill",
        keep=Keep(frozenset({"x-request-id", "x-ticket"}), frozenset({"page"}), exceptions=True),
    )
    assert rules.of(*http("/metrics")).do == "skip"
    invoice = rules.of({"rpc.system": "grpc"}, "/shop.v1.Billing/GetInvoice")
    assert (invoice.do, invoice.target_id) == ("audit", ("customer.id", "number"))
    assert rules.of({"rpc.system": "grpc"}, "/shop.v1.Ledger/Anything").place == "rules.yaml:16"
    assert rules.of({"celery.task_name": "billing.charge"}, "").place == "rules.yaml:19"


def test_what_all_records_keep_needs_no_rule():
    rules = rules_of("keep: {exceptions: yes}")
    assert rules.of(*http("/anything")) == Rule(keep=Keep(exceptions=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "rules.yaml:1: is empty"),
        ("# nothing\n", "rules.yaml:1: is empty"),
        ("rules: [", "rules.yaml:1: expected the node content"),
        ("rules:\n  - route: /a\n   do: skip\n", "rules.yaml:3: "),
        ("rules:\n\t- route: /a\n", "rules.yaml:2: found character '\\t' that cannot start any token"),
        ("- route: /a\n", "rules.yaml:1: the file is a mapping with rules, keep"),
        ("other: 1\n", "rules.yaml:1: the file has no 'other'; it has rules, keep"),
        ("rules: {}\n", "rules.yaml:1: `rules` is a list: one `- ` for each rule"),
        ("rules:\n  - /health\n", "rules.yaml:2: a rule is a mapping with route, method, grpc, task, do"),
        ("rules:\n  - do: skip\n", "rules.yaml:2: a rule says which requests it fits"),
        ("rules:\n  - route: /a\n", "rules.yaml:2: a rule says what to do"),
        ("rules:\n  - route: /a\n    audit: yes\n", "rules.yaml:3: a rule has no 'audit'"),
        ("rules:\n  - route: /a\n    do: omit\n", "rules.yaml:3: 'omit' is not known; allowed is audit or skip"),
        ("rules:\n  - route: /a\n    do: no\n", "rules.yaml:3: 'no' is a bool in YAML; write it in quotes"),
        ("rules:\n  - route: /a\n    do: skip\n    do: audit\n", "rules.yaml:4: 'do' occurs twice"),
        ("rules:\n  - route: a\n    do: skip\n", "rules.yaml:2: route 'a': begins with /"),
        ("rules:\n  - route: []\n    do: skip\n", "rules.yaml:2: the list is empty"),
        ("rules:\n  - route: {a: b}\n    do: skip\n", "rules.yaml:2: expected a text"),
        ("rules:\n  - route: 7\n    do: skip\n", "rules.yaml:2: '7' is a int in YAML"),
        ("rules:\n  - route: ''\n    do: skip\n", "rules.yaml:2: the text is empty"),
        ("rules:\n  - route: /a\n    method: GET /\n    do: skip\n", "rules.yaml:3: method 'GET /'"),
        ("rules:\n  - grpc: a b\n    do: skip\n", "rules.yaml:2: grpc 'a b': is package.Service"),
        ("rules:\n  - grpc: a.B\n    method: GET\n    do: skip\n", "rules.yaml:2: no request fits all of it"),
        ("rules:\n  - route: /a\n    action: refund\n", "rules.yaml:3: action 'refund': is a verb in upper case"),
        (
            "rules:\n  - route: /a\n    do: skip\n    action: REFUND\n",
            "rules.yaml:2: `do: skip` leaves nothing to describe",
        ),
        ("rules:\n  - route: /a\n    target: order\n", "rules.yaml:3: `target` is a mapping with type, id"),
        ("rules:\n  - route: /a\n    target: {}\n", "rules.yaml:3: `target` has type, id or both"),
        (
            "rules:\n  - route: /a/{b}\n    target: {id: {b}}\n",
            "rules.yaml:3: `id` is the name of a parameter, without braces",
        ),
        (
            "rules:\n  - task: a\n    target: {id: b}\n",
            "rules.yaml:2: a task's arguments are on no span",
        ),
        (
            "rules:\n  - route: /a\n    keep: {headers: [Cookie]}\n",
            "rules.yaml:3: header 'cookie': holds a credential",
        ),
        (
            "rules:\n  - route: /a\n    keep: {headers: [x_api_key]}\n",
            "rules.yaml:3: header 'x_api_key': holds a credential",
        ),
        ("rules:\n  - route: /a\n    keep: {headers: ['a b']}\n", "rules.yaml:3: header 'a b': is no header's name"),
        ("rules:\n  - route: /a\n    keep: {body: yes}\n", "rules.yaml:3: `keep` has no 'body'"),
        ("rules:\n  - route: /a\n    keep: {exceptions: 1}\n", "rules.yaml:3: expected true or false"),
        (
            "rules:\n  - {route: /a, do: skip}\n  - {route: /a, do: audit}\n",
            "rules.yaml:3: fits the same requests as the rule at rules.yaml:2",
        ),
        ("rules: !!python/object/apply:os.system ['true']\n", "rules.yaml:1: "),
        ("rules: &a [*a]\n", "rules.yaml:1: "),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(text, expected):
    assert mistakes(text)[0].startswith(expected)


def test_all_mistakes_are_told_at_once():
    found = mistakes("""\
        rules:
          - route: a
            do: omit
          - do: audit
        """)
    assert [mistake.split(":")[1] for mistake in found] == ["2", "3", "4"]


def test_a_file_full_of_mistakes_does_not_fill_the_log():
    found = mistakes("rules:\n" + "  - nothing\n" * 100)
    assert len(found) == 21
    assert found[-1] == "and 80 more mistakes"


@pytest.mark.parametrize(
    "content",
    [b"rules:\n  - route: /\xff\n", b"[\n" * 2000, b"\x00"],
    ids=["not-utf-8", "deep", "nul"],
)
def test_what_is_no_yaml_is_a_mistake_like_others(content, tmp_path):
    (tmp_path / "rules.yaml").write_bytes(content)
    with pytest.raises(RulesError, match=r"rules\.yaml:"):
        read(tmp_path / "rules.yaml")


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path):
    with pytest.raises(RulesError, match=r"none\.yaml: No such file"):
        read(tmp_path / "none.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RulesError, match=r"large\.yaml: is larger than"):
        read(tmp_path / "large.yaml")


def test_a_file_that_nobody_writes_does_not_stop_the_service(tmp_path):
    os.mkfifo(tmp_path / "rules.yaml")
    with pytest.raises(RulesError, match="is no regular file"):
        read(tmp_path / "rules.yaml")
