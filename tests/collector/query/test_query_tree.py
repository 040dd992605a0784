import random
import time

import pytest
from auditspan_collector.query.trace import Trace, build_tree

MILLISECOND = 1_000_000
NONE = bytes(8)


def span(number):
    return number.to_bytes(8, "big") if number else NONE


@pytest.fixture
def rows(make_stored):
    """Rows of one trace from (span, audit parent, parent, start in ms)."""

    def build(*spans, **changes):
        return [
            make_stored(
                index,
                span_id=span(own),
                audit_parent_span_id=span(audited),
                parent_span_id=span(ordinary),
                start_time_unix_ns=start_ms * MILLISECOND,
                **changes,
            )
            for index, (own, audited, ordinary, start_ms) in enumerate(spans)
        ]

    return build


def shape(roots):
    """The tree as nested lists of (span number, place, children)."""
    return [
        (int.from_bytes(node.stored.record.span_id, "big"), node.place, shape(node.children))
        for node in roots
    ]


def test_a_record_hangs_below_the_nearest_audited_span_upstream(rows):
    # 7 and 8 are ordinary spans that nobody stored.
    tree = build_tree(rows((1, 0, 0, 0), (2, 1, 7, 5), (3, 2, 8, 9)))
    assert shape(tree) == [(1, "root", [(2, "child", [(3, "child", [])])])]


def test_without_an_audited_parent_the_ordinary_parent_counts_when_it_is_a_record(rows):
    tree = build_tree(rows((1, 0, 0, 0), (2, 0, 1, 5), (3, 0, 9, 6)))
    assert shape(tree) == [(1, "root", [(2, "child", [])]), (3, "root", [])]


def test_a_record_whose_audited_parent_is_missing_stands_at_the_top_and_says_so(rows):
    tree = build_tree(rows((1, 0, 0, 0), (2, 77, 0, 5)))
    assert shape(tree) == [(1, "root", []), (2, "orphan", [])]


def test_a_missing_audited_parent_falls_back_to_the_ordinary_one(rows):
    assert shape(build_tree(rows((1, 0, 0, 0), (2, 77, 1, 5)))) == [(1, "root", [(2, "child", [])])]


def test_children_come_by_start_time_whatever_order_they_were_stored_in(rows):
    spans = [(1, 0, 0, 0), *((number, 1, 0, 100 - number) for number in range(2, 20))]
    random.Random(7).shuffle(spans)
    (root,) = build_tree(rows(*spans))
    assert [int.from_bytes(child.stored.record.span_id, "big") for child in root.children] == list(
        range(19, 1, -1)
    )


def test_a_child_whose_clock_is_behind_its_parents_is_still_a_child(rows):
    found = Trace(b"", build_tree(rows((1, 0, 0, 10), (2, 1, 0, 7))))
    assert shape(found.roots) == [(1, "root", [(2, "child", [])])]
    assert found.start_ns == 7 * MILLISECOND


def test_a_circle_is_cut_at_its_earliest_record_and_loses_none(rows):
    tree = build_tree(rows((1, 3, 0, 5), (2, 1, 0, 3), (3, 2, 0, 9), (4, 3, 0, 1)))
    assert shape(tree) == [(2, "cycle", [(3, "child", [(4, "child", []), (1, "child", [])])])]


def test_a_record_that_names_itself_is_a_root(rows):
    assert shape(build_tree(rows((1, 0, 1, 0)))) == [(1, "root", [])]


def test_two_records_of_one_span_are_both_kept(rows):
    tree = build_tree(rows((1, 0, 0, 0), (1, 0, 0, 1), (2, 1, 0, 2)))
    assert shape(tree) == [(1, "root", [(2, "child", [])]), (1, "root", [])]


def test_another_tenants_record_with_the_same_span_id_takes_no_child(rows):
    theirs = rows((1, 0, 0, 0), tenant="theirs")
    ours = rows((1, 0, 0, 1), (2, 1, 0, 2), tenant="ours")
    tree = build_tree([*theirs, *ours])
    assert [(node.stored.record.tenant, len(node.children)) for node in tree] == [("theirs", 0), ("ours", 1)]


def test_a_parent_of_another_tenant_is_better_than_none(rows):
    tree = build_tree([*rows((1, 0, 0, 0), tenant="platform"), *rows((2, 1, 0, 2), tenant="ours")])
    assert shape(tree) == [(1, "root", [(2, "child", [])])]


@pytest.mark.parametrize("seed", range(20))
def test_no_record_is_ever_dropped_and_depth_is_the_distance_from_the_top(rows, seed):
    chance = random.Random(seed)
    spans = [
        (chance.randrange(1, 60), chance.randrange(80), chance.randrange(80), chance.randrange(50))
        for _ in range(80)
    ]
    found = Trace(b"", build_tree(rows(*spans)))
    assert sorted(node.stored.ledger_index for node in found.walk()) == list(range(80))
    for node in found.walk():
        assert all(child.depth == node.depth + 1 for child in node.children)


@pytest.mark.parametrize(
    "spans",
    [
        [(number, number - 1, 0, number) for number in range(1, 10_001)],
        [(number, number % 10_000 + 1, 0, number) for number in range(1, 10_001)],
        [(1, 1, 0, number) for number in range(10_000)],
    ],
    ids=["a chain", "a circle", "one span id"],
)
def test_ten_thousand_hostile_records_make_a_tree_in_a_moment(rows, spans):
    hostile = rows(*spans)
    began = time.process_time()
    found = Trace(b"", build_tree(hostile))
    assert sum(1 for _ in found.walk()) == 10_000
    assert time.process_time() - began < 2
