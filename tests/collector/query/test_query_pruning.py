"""The searches that people run read a small part of a large table; ClickHouse's own plan says so."""

import re

import pytest
from auditspan_collector.query.filter import Filter, Match
from auditspan_collector.query.search import page_query
from auditspan_collector.query.times import Window
from auditspan_collector.query.trace import trace_query

ROWS = 400_000
START_NS = 1_795_516_200_000_000_000
SPACING_NS = 1_500_000_000  # seven days in all

# ClickHouse uses a projection as an index only in larger tables; here it shall show what it would do there.
LARGE = {"min_table_rows_to_use_projection_index": 0}

FILL = """
INSERT INTO records (ledger_stream, ledger_index, leaf_version, start_time, received_time, trace_id, span_id, span_name,
    service_name, tenant, actor_id, actor_origin, action, outcome, target_type, target_id)
SELECT 'default/collector/00', number, 1,
    fromUnixTimestamp64Nano(toInt64({start:Int64} + number * {spacing:Int64}), 'UTC') AS began, began,
    MD5(toString(intDiv(number, 3))), substring(MD5(toString(number)), 1, 8), 'POST /orders',
    ['gateway', 'orders', 'billing'][number % 3 + 1], 'default',
    concat('user', toString(cityHash64(intDiv(number, 3)) % 5000)), 'authenticated',
    ['CREATE', 'UPDATE', 'DELETE', 'EXECUTE'][number % 4 + 1], 'success', 'order',
    toString(cityHash64(number) % 1000000)
FROM numbers({rows:UInt64})
"""


@pytest.fixture(scope="module")
def large(module_shelf):
    module_shelf.client.execute(
        FILL, {"start": START_NS, "spacing": SPACING_NS, "rows": ROWS}, in_database=True
    )
    return module_shelf


def plan(shelf, query):
    sql, parameters = query
    lines = shelf.client.rows(f"EXPLAIN indexes = 1, projections = 1 {sql}", parameters, LARGE)
    return "\n".join(str(line) for (line,) in lines)


def granules(text):
    """Of how many granules how many are read in the end, over all parts."""
    read = int(re.search(r"Parts: \d+ \| Granules: (\d+)", text)[1])
    whole = int(re.search(r"Granules: \d+/(\d+)", text)[1])
    return read, whole


def test_one_trace_is_found_by_projection_and_bloom_filter(large):
    ((trace_id,),) = large.client.rows("SELECT trace_id_hex FROM records WHERE ledger_index = 200000")
    text = plan(large, trace_query(trace_id, most=100))
    read, whole = granules(text)
    assert whole > 40
    assert read <= 4
    assert "trace_id_hex_bloom" in text
    assert "by_trace" in text


def test_a_beginning_of_a_trace_id_is_found_by_the_projection(large):
    assert "by_trace" in plan(large, trace_query("abcdef12", most=100))


def test_an_actor_is_found_by_the_projection(large):
    text = plan(large, page_query(Filter(actor=(Match.exact("user42"),)), size=100))
    assert "by_actor" in text


def test_an_actor_in_a_window_is_found_by_both(large):
    end = START_NS + ROWS * SPACING_NS
    wanted = Filter(actor=(Match.exact("user42"),), window=Window(end - 24 * 3600 * 10**9))
    text = plan(large, page_query(wanted, size=100))
    read, whole = granules(text)
    assert "by_actor" in text
    assert read < whole / 3


def test_the_beginning_of_an_actors_name_is_found_by_the_projection(large):
    assert "by_actor" in plan(large, page_query(Filter(actor=(Match.parse("user42*"),)), size=100))


def test_one_of_several_actors_is_found_by_the_projection(large):
    wanted = Filter(actor=(Match.exact("user42"), Match.exact("user43"), Match.parse("user44*")))
    assert "by_actor" in plan(large, page_query(wanted, size=100))


@pytest.mark.parametrize("target", ["order:123456", "123456"])
def test_a_target_is_found_by_its_words(large, target):
    read, whole = granules(plan(large, page_query(Filter(target=(Match.parse(target),)), size=100)))
    assert read < whole / 4


def test_a_window_reads_only_its_hours(large):
    wanted = Filter(window=Window(START_NS + 48 * 3600 * 10**9, START_NS + 50 * 3600 * 10**9))
    read, whole = granules(plan(large, page_query(wanted, size=100)))
    assert read < whole / 20


@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_without_an_actor_the_table_is_walked_from_the_asked_end(large, order):
    wanted = Filter(outcome=(Match.exact("success"),))
    text = plan(large, page_query(wanted, size=100, order=order))
    assert f"Read type: {'InReverseOrder' if order == 'newest' else 'InOrder'}" in text


def test_most_columns_are_read_only_of_the_rows_that_are_kept(large):
    text = plan(large, page_query(Filter(actor=(Match.exact("user42"),)), size=100))
    eagerly = re.search(r"Output: (start_time.*)", text)[1]
    assert "attributes" in re.search(r"Lazily read columns: (.*)", text)[1]
    assert "attributes" not in eagerly
