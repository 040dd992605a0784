"""What a text of SQL binds to which column; and that nothing is said where it isn't plain."""

from __future__ import annotations

import time

import pytest
from auditspan.changes.bindings import FORMAT, QMARK, Bound, Written, shape_of
from auditspan.changes.statements import Head, heads
from hypothesis import given, settings
from hypothesis import strategies as st

PIECES = [
    *("INSERT INTO", "UPDATE", "DELETE FROM", "WITH x AS (", "VALUES", "SET", "WHERE", "AND", "OR", "IN", "=", "ANY"),
    *("t", "a.b", '"q"', "`q`", "[q]", "'text", "'", '"', "$tag$", "$1", "?", "?2", ":n", "%s", "%(n)s", "%", "1.5"),
    *("(", ")", ",", ";", "--", "/*", "*/", "::int", "RETURNING", "NULL", "BEGIN", "END", "CREATE TRIGGER", "\\", "\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("sql", "style", "columns", "where"),
    [
        ("INSERT INTO t (a, b) VALUES (?, 'x')", QMARK, {"a": Bound(0), "b": Written("x")}, {}),
        ("INSERT INTO t (a) VALUES (lower(?))", QMARK, {"a": None}, {}),
        ("INSERT INTO t VALUES (?)", QMARK, {}, {}),
        ("INSERT INTO t (a) SELECT ? WHERE b = ?", QMARK, {}, {}),
        ("INSERT INTO t (a) VALUES (?) ON CONFLICT (b) DO UPDATE SET a = 1", QMARK, {}, {}),
        ("INSERT INTO t (a) VALUES (%s) ON DUPLICATE KEY UPDATE a = 1", FORMAT, {}, {}),
        ('UPDATE "s"."t" SET "a" = ? WHERE "t"."id" = ?', QMARK, {"a": Bound(0)}, {"id": (Bound(1),)}),
        ("UPDATE t SET a = ?2, b = NULL WHERE id = ?1", QMARK, {"a": Bound(1), "b": Written(None)}, {"id": (Bound(0),)}),
        ("UPDATE t SET a = :a WHERE id == :id", QMARK, {"a": Bound("a")}, {"id": (Bound("id"),)}),
        ("UPDATE t SET a = (SELECT 1 WHERE b = ?) WHERE id = ?", QMARK, {"a": None}, {}),
        ("UPDATE t, u SET a = %s WHERE id = %s", FORMAT, {}, {}),
        ("UPDATE t SET a = %s FROM u WHERE id = %s", FORMAT, {"a": Bound(0)}, {}),
        ("DELETE FROM t WHERE id = %(id)s::uuid", FORMAT, {}, {"id": (Bound("id"),)}),
        ("DELETE FROM t WHERE id = ANY(%s)", FORMAT, {}, {"id": (Bound(0),)}),
        ("DELETE FROM t WHERE ((id IN (?, 2)) AND b > ?)", QMARK, {}, {"id": (Bound(0), Written("2"))}),
        ("DELETE FROM t WHERE id = ? AND f(id = ?)", QMARK, {}, {"id": (Bound(0),)}),
        ("DELETE FROM t WHERE id = ? + 1", QMARK, {}, {}),
        ("DELETE FROM t WHERE id >= ?", QMARK, {}, {}),
        ("DELETE FROM t WHERE NOT id = ?", QMARK, {}, {}),
        ("DELETE FROM t WHERE id = ? OR 1 = 1", QMARK, {}, {}),
        ("DELETE FROM t USING u WHERE id = %s", FORMAT, {}, {}),
        ("DELETE FROM t WHERE name = 'it\\'s' AND id = %s", FORMAT, {}, {}),
        ("UPDATE t SET a = ? WHERE id = ?", "unheard of", {}, {}),
        ("UPDATE t SET a = '" + "x" * 5_000 + "' WHERE id = 1", QMARK, {}, {}),
    ],
)  # fmt: skip
def test_a_column_is_bound_where_the_text_plainly_says_so(sql, style, columns, where):
    shape = shape_of(sql, style)
    assert (shape.columns, shape.where) == (columns, where)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1; DELETE FROM t", (Head("DELETE", "t"),)),
        ("\n  select 1", ()),
        (
            "CREATE TRIGGER x AFTER INSERT ON t BEGIN DELETE FROM u; END; DELETE FROM v",
            (Head("DELETE", "v"),),
        ),
        (
            "CREATE PROCEDURE p() BEGIN IF a THEN DELETE FROM u; END IF; END; INSERT INTO v VALUES (1)",
            (Head("INSERT", "v"),),
        ),
        ("CREATE TABLE t (begin int); DELETE FROM t", (Head("DELETE", "t"),)),
        ("INSERT INTO t VALUES " + "(1)," * 20_000 + "(1)", (Head("INSERT", "t"),)),
        ("COPY t (a) FROM STDIN", (Head("COPY", "t"),)),
        ("COPY t TO STDOUT", ()),
        ("MERGE INTO s.t USING u ON 1", (Head("MERGE", "s.t"),)),
    ],
)
def test_the_head_of_a_statement_says_verb_and_table(sql, expected):
    assert heads(sql) == expected


@settings(max_examples=50)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map(" ".join) | st.text(max_size=200))
def test_no_text_is_too_odd_to_be_read(sql):
    heads(sql)
    for style in (QMARK, FORMAT):
        shape_of(sql, style)


@pytest.mark.parametrize(
    "piece",
    ["(", "'", "/*", "$a$", "::", "DELETE FROM t WHERE ", "a.", "(?,", "-- ", "BEGIN ", "CASE ", "CONFLICT "],
)
def test_a_hostile_text_takes_no_time_to_speak_of(piece):
    started = time.process_time()
    for start in ("INSERT INTO t (a) VALUES ", "UPDATE t SET a = 1 WHERE ", "CREATE TRIGGER x BEGIN "):
        sql = start + piece * (200_000 // len(piece))
        heads(sql)
        for length in (4_096, len(sql)):
            shape_of(sql[:length], QMARK)
    assert time.process_time() - started < 2  # s, of a thousandth of that
