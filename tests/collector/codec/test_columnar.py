"""columnar: a block of columns holds the values of its rows, and rows that are none are refused, not read."""

from __future__ import annotations

import pytest
from auditspan_collector import columnar
from auditspan_collector.migrations import migrate
from auditspan_collector.schema import INSERT_COLUMNS, LEAF_COLUMNS, NATIVE_COLUMNS, leaf_sql, seal_row
from collector.codec import both_paths
from golden import regenerate as golden
from hypothesis import given, settings
from hypothesis import strategies as st

from collector import native_block

FORMS = {"compiled": columnar, "interpreted": both_paths.interpreted("columnar")}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
property_test = settings(max_examples=150, deadline=None, derandomize=True)

TEXT = st.binary(max_size=200).map(lambda text: native_block.leb128(len(text)) + text)
KINDS = {
    ("String", (0,)): TEXT,
    ("UInt8", (1,)): st.binary(min_size=1, max_size=1),
    ("UUID", (16,)): st.binary(min_size=16, max_size=16),
    ("FixedString(3)", (3,)): st.binary(min_size=3, max_size=3),
}


def lists(*parts):
    """Values of an array whose elements have *parts*, as RowBinary."""
    return st.lists(st.tuples(*parts), max_size=4).map(
        lambda elements: native_block.leb128(len(elements)) + b"".join(map(b"".join, elements))
    )


KINDS |= {
    ("Array(UInt32)", (-1, 4)): lists(st.binary(min_size=4, max_size=4)),
    ("Map(String, String)", (-2, 0, 0)): lists(TEXT, TEXT),
    ("Array(Map(String, String))", (-1, -2, 0, 0)): lists(lists(TEXT, TEXT)),
    ("Array(Array(String))", (-1, -1, 0)): lists(lists(TEXT)),
}


@st.composite
def tables(draw):
    """Columns of any types, and rows of them."""
    kinds = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=6))
    columns = [(f"c{at}", name, layout) for at, (name, layout) in enumerate(kinds)]
    # Of few values a column, so that some come again, with others and empty ones between.
    pools = [draw(st.lists(KINDS[kind], min_size=1, max_size=3)) for kind in kinds]
    row = st.tuples(*[st.sampled_from(pool) for pool in pools]).map(b"".join)
    return columns, draw(st.lists(row, max_size=12))


def golden_rows(stream: str) -> list[bytes]:
    leaves = [leaf for path in golden.requests() for leaf in golden.encoded(path).leaves]
    return [seal_row(stream, index, leaf) for index, leaf in enumerate(leaves)]


def test_both_forms_are_compared():
    assert columnar.COMPILED, "`make setup` compiles it"
    assert not FORMS["interpreted"].COMPILED


@both_forms
@property_test
@given(table=tables())
def test_a_block_has_the_names_the_types_and_the_values_of_its_rows(form, table):
    columns, rows = table
    names, values = native_block.read(form.Columns(columns).block(b"".join(rows), len(rows)))
    assert names == [name for name, _, _ in columns]
    assert values == rows


@both_forms
def test_one_object_makes_one_block_after_another(form):
    columns = form.Columns([("a", "Array(String)", (-1, 0))])
    first = columns.block(b"\x01\x01x\x00", 2)
    assert columns.block(b"\x01\x01x\x00", 2) == first
    assert native_block.read(first)[1] == [b"\x01\x01x", b"\x00"]


@both_forms
def test_a_list_that_comes_again_later_or_in_part_is_told_from_the_one_before(form):
    columns = form.Columns([("a", "Map(String, String)", (-2, 0, 0)), ("b", "Array(UInt8)", (-1, 1))])
    maps = [b"\x01\x01k\x01v", b"\x00", b"\x01\x01k\x01v", b"\x02\x01k\x01v\x00\x00", b"\x01\x01k\x01w"]
    numbers = [b"\x02\x01\x02", b"\x02\x01\x02", b"\x02\x01\x03", b"\x01\x01", b"\x01\x01"]
    rows = [*map(bytes.__add__, maps, numbers)] * 3
    for _ in range(2):
        assert native_block.read(columns.block(b"".join(rows), len(rows)))[1] == rows


@both_forms
def test_the_last_row_may_begin_as_the_one_before_and_end_too_soon(form):
    columns = form.Columns([("a", "Array(String)", (-1, 0))])
    with pytest.raises(ValueError, match="byte 6: 3 bytes, where 2 are left"):
        columns.block(b"\x01\x03abc\x01\x03ab", 2)


@both_forms
def test_a_block_of_any_size_fits_also_after_a_smaller_one(form):
    columns = form.Columns([("a", "String", (0,)), ("b", "Array(String)", (-1, 0)), ("c", "UInt8", (1,))])
    for size in (0, 31, 32, 33, 63, 64, 65, 127, 200, 5_000, 70_000, 64):
        text = native_block.leb128(size) + bytes([size % 256]) * size
        rows = [text + b"\x02" + text + b"\x01x" + b"\x07", b"\x00\x00\x08"] * 40
        assert native_block.read(columns.block(b"".join(rows), len(rows)))[1] == rows


@both_forms
def test_a_block_stands_behind_what_is_to_be_in_front_of_it(form):
    columns = form.Columns([("a", "UInt8", (1,))])
    assert columns.block(b"\x07", 1, b"head\n") == b"head\n" + columns.block(b"\x07", 1)


@both_forms
def test_the_golden_records_are_the_same_as_columns_and_as_rows(form):
    rows = golden_rows("d/c/1")
    names, values = native_block.read(form.Columns(NATIVE_COLUMNS).block(b"".join(rows), len(rows)))
    assert tuple(names) == INSERT_COLUMNS
    assert values == rows


@both_forms
@pytest.mark.parametrize(
    ("rows", "count", "problem"),
    [
        (b"\x02ab\x05abc", 2, "byte 3: 5 bytes, where 3 are left"),
        (b"\x02ab", 2, "byte 3: no length"),
        (b"\x02ab\x00", 1, "1 rows end at byte 3 of 4"),
        (b"\x80" * 12, 1, "byte 0: no length"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff\x7fa", 1, "byte 0: 9223372036854775807 bytes, where 1 are left"),
        (b"\x02ab", 0, "0 rows end at byte 0 of 3"),
    ],
)  # fmt: skip
def test_rows_that_are_none_of_these_columns_are_refused_with_their_place(form, rows, count, problem):
    with pytest.raises(ValueError, match=problem):
        form.Columns([("a", "String", (0,))]).block(rows, count)


@both_forms
def test_an_array_that_claims_more_elements_than_there_are_bytes_is_refused_before_any_work(form):
    with pytest.raises(ValueError, match="elements, where 8 bytes are left"):
        form.Columns([("a", "Array(UInt64)", (-1, 8))]).block(b"\xff\xff\xff\xff\xff\x0f" + bytes(8), 1)
    with pytest.raises(ValueError, match="byte 9: the rows end within 8 bytes"):
        form.Columns([("a", "Array(UInt64)", (-1, 8))]).block(b"\x02" + bytes(12), 1)


@both_forms
@property_test
@given(data=st.data())
def test_damaged_rows_are_refused_or_read_as_what_they_say(form, data):
    """Whatever the bytes: an error or a block whose rows are these very bytes."""
    rows = b"".join(golden_rows("s")[:3])
    at = data.draw(st.integers(0, len(rows) - 1))
    damaged = rows[:at] + data.draw(st.binary(min_size=1, max_size=3)) + rows[at + 1 :]
    try:
        block = form.Columns(NATIVE_COLUMNS).block(damaged, 3)
    except ValueError:
        return
    assert b"".join(native_block.read(block)[1]) == damaged


def test_the_engine_takes_the_columns_and_recomputes_the_leaves(engine):
    migrate(engine, "columnar")
    rows = golden_rows("d/c/1")
    names = ", ".join(f"`{name}`" for name in INSERT_COLUMNS)
    block = columnar.Columns(NATIVE_COLUMNS).block(b"".join(rows), len(rows))
    engine.insert(f"INSERT INTO columnar.records ({names})", block, "Native")
    content = ", ".join(f"`{column.name}`" for column in LEAF_COLUMNS)
    stored = engine.raw(
        f"SELECT formatRow('RowBinary', `ledger_stream`, `ledger_index`, {content}) FROM columnar.records "
        "ORDER BY ledger_index",
        "RowBinary",
    )
    assert stored == b"".join(native_block.leb128(len(row)) + row for row in rows)
    hashes = engine.raw(f"SELECT {leaf_sql()} FROM columnar.records ORDER BY ledger_index", "RowBinary")
    assert hashes == b"".join(leaf.hash for path in golden.requests() for leaf in golden.encoded(path).leaves)
