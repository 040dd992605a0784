"""docs/rules.md and docs/privacy.md keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from auditspan import privacy, pseudonyms, rules_file
from auditspan.rules_file import parse

DOCS = Path(__file__).parents[3] / "docs"
RULES = (DOCS / "rules.md").read_text()
PRIVACY = (DOCS / "privacy.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", RULES, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_can_be_used(block):
    parse(block, "rules.yaml")


def test_the_first_example_says_what_the_text_says():
    rules = parse(BLOCKS[0], "rules.yaml")
    refund = rules.of({"http.request.method": "POST"}, "/orders/{order_id}/refund")
    assert (refund.do, refund.action, refund.target_id) == ("", "REFUND_ORDER", ("order_id",))
    assert rules.of({"http.request.method": "GET"}, "/health").do == "skip"
    assert rules.of({"rpc.system": "grpc"}, "/shop.v1.Billing/GetInvoice").target_id == ("invoice.number",)


@pytest.mark.parametrize(
    "key", ["route", "method", "grpc", "task", "table", "action", "target", "reason", "keep", "columns"]
)
def test_every_key_is_documented(key):
    assert re.search(rf"^\| `{key}` \|", RULES, re.MULTILINE)


def test_the_limits_are_those_of_the_code():
    assert f"At most {rules_file.MAX_RULES} rules and {rules_file.MAX_BYTES // 1024} KB" in RULES


@pytest.mark.parametrize("name", [*privacy.LEFT_OUT, *privacy.LEFT_OUT_WITH_PREFIX, *pseudonyms.NAMING])
def test_what_is_left_out_or_taken_for_a_name_is_documented(name):
    assert f"`{name}*`" in PRIVACY if name.endswith(".") else f"`{name}`" in PRIVACY
