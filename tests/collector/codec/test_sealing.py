"""sealing: rows and the tree's growth, compiled and interpreted, are what schema and ledger.merkle say."""

from __future__ import annotations

from array import array

import pytest
from auditspan_collector import sealing
from auditspan_collector.ledger.merkle import node_hash
from auditspan_collector.record import Leaves
from auditspan_collector.schema import row_prefix, seal_row
from collector.codec import both_paths
from collector.durability.sealing import make_leaf
from hypothesis import given, settings
from hypothesis import strategies as st

FORMS = {"compiled": sealing, "interpreted": both_paths.interpreted("sealing")}
both_forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
property_test = settings(max_examples=100, deadline=None, derandomize=True)
contents = st.lists(st.lists(st.binary(max_size=300), max_size=6), max_size=4)
hashes = st.lists(st.binary(min_size=32, max_size=32), max_size=40)


def test_both_forms_are_compared():
    assert not sealing.__file__.endswith(".py"), "`make setup` compiles it"
    assert FORMS["interpreted"].__file__.endswith(".py")


@both_forms
@property_test
@given(contents=contents, first=st.integers(0, (1 << 64) - 100), stream=st.text(max_size=200))
def test_rows_are_the_leaves_behind_stream_and_index(form, contents, first, stream):
    blocks = [[make_leaf(content) for content in block] for block in contents]
    rows, lengths = form.rows(row_prefix(stream), first, [Leaves.of(block) for block in blocks])
    expected = [
        seal_row(stream, first + place, leaf)
        for place, leaf in enumerate(leaf for block in blocks for leaf in block)
    ]
    assert rows == b"".join(expected)
    assert list(lengths) == [len(row) for row in expected]


@both_forms
@property_test
@given(before=hashes, added=hashes)
def test_the_tree_grows_as_a_carry_runs_through_a_binary_counter(form, before, added):
    def grown(leaves):
        roots: list[bytes] = []
        for size, leaf in enumerate(leaves):
            node, carry = leaf, size
            while carry & 1:
                node, carry = node_hash(roots.pop(), node), carry >> 1
            roots.append(node)
        return b"".join(roots)

    assert form.grow(len(before), grown(before), b"".join(added)) == grown(before + added)


@both_forms
def test_a_string_is_cut_into_pieces(form):
    assert form.pieces(bytes(range(48)), 16) == [bytes(range(at, at + 16)) for at in (0, 16, 32)]
    assert form.pieces(b"", 16) == []


@both_forms
@pytest.mark.parametrize("ends", [(5, 3), (3, 99), (2**63, 5)], ids=["back", "beyond", "far beyond"])
def test_leaves_that_do_not_lie_in_their_contents_are_refused(form, ends):
    wrong = Leaves(b"12345", array("Q", ends), bytes(64), bytes(32), bytes(32), array("Q", (0, 0)))
    with pytest.raises(ValueError, match=r"leaf . ends at"):
        form.rows(b"s", 0, [wrong])
