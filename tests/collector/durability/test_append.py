"""The append: indexes, rows and the ledger's next state."""

from __future__ import annotations

from hashlib import sha256

import pytest
from auditspan_collector.ledger.log import LedgerState, append
from auditspan_collector.ledger.merkle import Frontier
from auditspan_collector.record import Leaf, Leaves


def make_leaf(content: bytes) -> Leaf:
    return Leaf(content, sha256(b"\x00" + content).digest(), sha256(content).digest()[:16])


def seal(state, leaves):
    return append(state, [Leaves.of(leaves)])


def test_a_row_is_stream_index_and_content():
    batch, _ = seal(LedgerState("d/c/1"), [make_leaf(b"one"), make_leaf(b"three")])
    assert batch.rows == (
        b"\x05d/c/1"
        + (0).to_bytes(8, "little")
        + b"one"
        + b"\x05d/c/1"
        + (1).to_bytes(8, "little")
        + b"three"
    )
    assert list(batch.row_bytes) == [6 + 8 + 3, 6 + 8 + 5]


def test_a_long_stream_name_has_a_two_byte_length():
    name = "d" * 300
    batch, _ = seal(LedgerState(name), [make_leaf(b"")])
    assert batch.rows == b"\xac\x02" + name.encode() + bytes(8)


def test_indexes_go_on_where_the_ledger_stands():
    first, state = seal(LedgerState("s"), [make_leaf(b"a"), make_leaf(b"b")])
    second, state = seal(state, [make_leaf(b"c")])
    assert (first.first_index, first.last_index) == (0, 1)
    assert (second.first_index, second.last_index, second.count) == (2, 2, 1)
    assert state.next_index == 3


def test_the_batchs_root_covers_the_whole_stream():
    leaves = [make_leaf(bytes([n])) for n in range(5)]
    _, state = seal(LedgerState("s"), leaves[:2])
    batch, state = seal(state, leaves[2:])
    assert batch.root == Frontier().append(b"".join(leaf.hash for leaf in leaves)).root()
    assert state.frontier.root() == batch.root


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_ledger_does_not_depend_on_how_records_were_batched(split):
    leaves = [make_leaf(bytes([n])) for n in range(4)]
    _, at_once = seal(LedgerState("s"), leaves)
    _, state = seal(LedgerState("s"), leaves[:split])
    _, in_steps = seal(state, leaves[split:])
    assert at_once == in_steps
