"""Rules for changes of data, by table."""

from __future__ import annotations

import pytest
from auditspan.changes.statements import Head, heads
from auditspan.rules_file import RulesError, parse


def test_a_rule_fits_a_table_with_or_without_its_schema_and_no_request():
    rules = parse("rules: [{table: 'ord*', do: skip}]", "r.yaml")
    assert [rules.of_table(name).do for name in ("orders", "Shop.Orders", "users")] == ["skip", "skip", ""]
    assert rules.of({"http.request.method": "POST"}, "orders").do == ""


@pytest.mark.parametrize(
    "text",
    [
        "{table: a, route: /b}",
        "{table: a, keep: {headers: [x]}}",
        "{route: /a, columns: [b]}",
        "{table: a, columns: [Password]}",
        "{table: a, target: {id: [id, Token]}}",
    ],
)
def test_a_rule_that_can_not_be_meant_is_told_with_its_line(text):
    with pytest.raises(RulesError, match=r"r\.yaml:2: "):
        parse(f"rules:\n  - {text}\n", "r.yaml")


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1", ()),
        ('-- c\nINSERT INTO "a""b".c VALUES (\'DELETE FROM x\')', (Head("INSERT", 'a"b.c'),)),
        (
            "WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x",
            (Head("DELETE", "a", inner=True), Head("INSERT", "b")),
        ),
        ("ROLLBACK TO SAVEPOINT s", (Head("ROLLBACK TO", "s"),)),
        ("/*" * 20_000, ()),
    ],
    ids=["read", "quoted", "with", "savepoint", "hostile"],
)
def test_the_head_of_a_statement_says_verb_and_table(sql, expected):
    assert heads(sql) == expected
