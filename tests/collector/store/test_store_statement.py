"""Where an INSERT's data starts, and which format a statement asks for: ClickHouse's own rules."""

from __future__ import annotations

import time

import pytest
from auditspan_collector.store.statement import InsertWithData, Statement, outside_strings, read
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b"INSERT INTO t FORMAT RowBinary\n", "RowBinary"),
        (b"INSERT INTO t FORMAT RowBinary \t\r\n", "RowBinary"),
        (b'insert into table d.t (a, `format`, "values") format Native\n', "Native"),
        (b"INSERT INTO t SETTINGS async_insert = 0, x = 'FORMAT' FORMAT CSV\n", "CSV"),
        (b"INSERT INTO t VALUES", "Values"),
        (b"INSERT INTO values VALUES", "Values"),
        (b"INSERT INTO format.values (a) VALUES", "Values"),
        (b"INSERT INTO FUNCTION f('FORMAT x', 1) FORMAT CSV\n", "CSV"),
        (b"/* FORMAT */ INSERT INTO t -- VALUES\n FORMAT CSV\n", "CSV"),
        (b"INSERT INTO t FORMAT CSV", "CSV"),
    ],
)
@given(data=st.binary(max_size=40))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_data_starts_right_behind_the_head(head, form, data):
    if not head.endswith(b"\n"):
        data = b"," + data  # blanks and letters would be read as part of the head
    found = read(head + data)
    assert isinstance(found, InsertWithData)
    assert found.format == form
    assert (head + data)[found.data_start :] == data
    assert head.startswith(found.target + found.settings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"INSERT INTO t VALUES (1)", b"INSERT INTO t \nHERE\nFORMAT Values"),
        (
            b"INSERT INTO settings (settings) SETTINGS x = 'SETTINGS' FORMAT CSV",
            b"INSERT INTO settings (settings) \nHERE\nSETTINGS x = 'SETTINGS' FORMAT CSV",
        ),
        (b"INSERT INTO t -- SETTINGS\n(a)FORMAT CSV", b"INSERT INTO t -- SETTINGS\n(a)\nHERE\nFORMAT CSV"),
    ],
)
def test_where_the_data_is_can_be_told_before_the_settings(text, told):
    found = read(text)
    assert isinstance(found, InsertWithData)
    assert found.taking_data(b"HERE") == told


def test_only_one_line_end_belongs_to_the_head():
    found = read(b"INSERT INTO t FORMAT RowBinary\n\n\n")
    assert isinstance(found, InsertWithData)
    assert found.data_start == len(b"INSERT INTO t FORMAT RowBinary\n")


@pytest.mark.parametrize(
    ("text", "keyword", "form", "streamable"),
    [
        (b"SELECT 1", "SELECT", "", True),
        (b"select 1 format JSON", "SELECT", "JSON", True),
        (b"SELECT 1 FORMAT JSON SETTINGS max_threads = 1", "SELECT", "JSON", True),
        (b"SELECT 1 SETTINGS x = 1 FORMAT CSV;", "SELECT", "CSV", True),
        (b"SELECT 1 FORMAT CSV -- done\n", "SELECT", "CSV", True),
        (b"SELECT 1 -- FORMAT JSON", "SELECT", "", True),
        (b"SELECT ' FORMAT JSON'", "SELECT", "", True),
        (b"SELECT format FROM t", "SELECT", "", True),
        (b"SELECT format FORMAT FORMAT CSV", "SELECT", "CSV", True),
        (b"SELECT (SELECT 1 FORMAT JSON)", "SELECT", "", True),
        (b"WITH 1 AS x SELECT x", "WITH", "", True),
        (b"(SELECT 1)", "SELECT", "", True),
        (b"EXPLAIN SELECT 1", "EXPLAIN", "", False),
        (b"SHOW TABLES FORMAT CSV", "SHOW", "CSV", False),
        (b"INSERT INTO t SELECT 1", "INSERT", "", False),
        (b"INSERT INTO t (a) WITH 1 AS x SELECT x", "INSERT", "", False),
        (b"INSERT INTO t (SELECT 1)", "INSERT", "", False),
        (b"INSERT INTO values SELECT 'VALUES'", "INSERT", "", False),
        (b"", "", "", False),
        (b"'x", "", "", False),
    ],
)
def test_other_statements_are_looked_at_only_as_far_as_needed(text, keyword, form, streamable):
    found = read(text)
    assert isinstance(found, Statement)
    assert (found.keyword, found.format, found.streamable) == (keyword, form, streamable)


MIB = 1 << 20
HOSTILE = {
    "a quote that is not closed, with escapes": (b"SELECT '", b"\\'"),
    "a quote that is not closed, with doubled ones": (b"SELECT ' ", b"''"),
    "a quoted name that is not closed": (b'SELECT "', b'\\"'),
    "a name in backticks that is not closed": (b"SELECT `", b"\\`"),
    "tags that are not closed": (b"SELECT ", b"$a$ $b$c$d "),
    "one tag that is not closed": (b"SELECT ", b"$a "),
    "dollar signs": (b"SELECT $", b"$$"),
    "a comment that is not closed": (b"SELECT /*", b"/* "),
    "blanks": (b"SELECT 1", b" \n"),
    "parentheses that are not closed": (b"SELECT ", b"("),
    "an INSERT that never gets to its data": (b"INSERT INTO t ", b"a SETTINGS "),
    "formats": (b"SELECT 1 ", b"FORMAT "),
}


@pytest.mark.parametrize(("start", "repeated"), HOSTILE.values(), ids=HOSTILE)
def test_the_time_to_look_at_a_statement_grows_with_its_length_only(start, repeated):
    """Quadratic, a hostile megabyte would take hours; a benign one of short tokens takes about a second."""

    def cpu_s(text):
        began = time.thread_time()
        read(text)
        list(outside_strings(text))
        return time.thread_time() - began

    benign = cpu_s(b"SELECT " + b"1, " * (MIB // 12)) * 4
    assert cpu_s(start + repeated * (MIB // len(repeated))) < 20 * benign


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (b"SELECT $a$ FORMAT JSON $a$", ""),
        (b"SELECT $a$ ' $a$ FORMAT CSV", "CSV"),
        (b"SELECT $$ FORMAT JSON $$ FORMAT CSV", "CSV"),
        (b"SELECT 1 AS $a$ FORMAT JSON", "JSON"),
        (b"SELECT 1 AS a$b$c, $a$b FORMAT JSON", "JSON"),
        (b"SELECT 'it''s \\' FORMAT JSON' FORMAT CSV", "CSV"),
    ],
)
def test_what_tags_and_quotes_enclose_is_no_part_of_the_statement(text, form):
    assert read(text).format == form


@given(st.binary(max_size=200) | st.text("INSERTFOMA VLUE'`\"\\()/*-#\n$;,", max_size=80).map(str.encode))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_anything_can_be_read(text):
    found = read(text)
    if isinstance(found, InsertWithData):
        assert text.startswith(found.target + found.settings)
        assert len(found.target + found.settings) < found.data_start <= len(text)
    else:
        assert found.text == text
