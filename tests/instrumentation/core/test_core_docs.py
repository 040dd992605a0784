"""The service owner's guide keeps up with the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import auditspan
import pytest
from auditspan import settings
from auditspan.facts import grpc_facts, http_facts

GUIDE = (Path(__file__).parents[3] / "docs/instrumentation.md").read_text()


@pytest.mark.parametrize("variable", settings.VARIABLES)
def test_every_variable_has_a_row(variable):
    assert f"\n| `{variable}` |" in GUIDE


def test_no_variable_is_documented_that_is_not_read():
    known = {*settings.VARIABLES, settings.PREFIX.rstrip("_")}
    assert set(re.findall(r"OTEL_AUDITSPAN\w*", GUIDE)) <= known


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (settings.SPOOL_MAX_BYTES, settings.DEFAULT_SPOOL_MAX_BYTES),
        (settings.FLOOD_FULL, settings.DEFAULT_FLOOD_FULL),
        (settings.FLOOD_INTERVAL_S, f"{settings.DEFAULT_FLOOD_INTERVAL_S:g}"),
        (settings.CONTEXT_TTL_S, f"{settings.DEFAULT_CONTEXT_TTL_S:g}"),
        (settings.CONTEXT_QUEUE_TTL_S, f"{settings.DEFAULT_CONTEXT_QUEUE_TTL_S:g}"),
    ],
)
def test_defaults_are_those_of_the_code(variable, value):
    assert f"| `{variable}` | `{value}` |" in GUIDE


@pytest.mark.parametrize("name", auditspan.__all__)
def test_every_function_is_documented_with_its_parameters(name):
    signature = re.search(rf"- `{name}\(([^`]*)\)`", GUIDE, re.DOTALL)
    assert signature, f"{name} has no entry"
    documented = re.findall(r"(\w+)(?:=[^,]+)?(?:,|$)", signature[1].replace("\n", " "))
    assert [p for p in documented if p != "user"] == list(
        inspect.signature(getattr(auditspan, name)).parameters
    )


@pytest.mark.parametrize(
    ("request_line", "action", "kind", "ident"),
    re.findall(r"^\| (?:gRPC )?`([^`]+)` \| ([A-Z]+) \| (\w*) *\| (\w*) *\|$", GUIDE, re.MULTILINE),
)
def test_the_examples_of_actions_are_true(request_line, action, kind, ident):
    method, _, route = request_line.partition(" ")
    if route:
        path = route.replace("{order_id}", "7").replace("{name}", "bob")
        found = http_facts(method, route, path)
    else:
        found = grpc_facts(request_line, status=0)
    assert (found.action, found.target_type, found.target_id) == (action, kind, ident)


def test_there_are_examples():
    assert len(re.findall(r"^\| (?:gRPC )?`[^`]+` \| [A-Z]+ \|", GUIDE, re.MULTILINE)) == 9
