"""The tree is RFC 6962's: checked against published vectors and against the RFC's own recursive definition."""

from __future__ import annotations

from hashlib import sha256

import pytest
from auditspan_collector.ledger.merkle import EMPTY_ROOT, Frontier
from hypothesis import given, settings
from hypothesis import strategies as st

# The inputs and roots of certificate-transparency's reference test (merkle_tree_test / transparency-dev/merkle
# testonly/constants.go): the root over the first n inputs, for n = 0 to 8.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]

LEAVES = st.lists(st.binary(min_size=32, max_size=32), max_size=70)


def leaf(content: bytes) -> bytes:
    return sha256(b"\x00" + content).digest()


def mth(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word, over leaf hashes."""
    if not hashes:
        return sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    return sha256(b"\x01" + mth(hashes[:k]) + mth(hashes[k:])).digest()


@pytest.mark.parametrize("size", range(len(ROOTS)))
def test_the_root_is_the_reference_implementations(size):
    assert Frontier().append(b"".join(leaf(data) for data in INPUTS[:size])).root() == ROOTS[size]


def test_the_empty_tree_is_the_hash_of_nothing():
    assert Frontier().root() == EMPTY_ROOT == sha256(b"").digest()


@given(LEAVES)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_the_root_is_what_the_rfc_defines(hashes):
    assert Frontier().append(b"".join(hashes)).root() == mth(hashes)


@given(LEAVES, st.integers(0, 70))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_appending_in_two_steps_is_appending_at_once(hashes, cut):
    assert Frontier().append(b"".join(hashes[:cut])).append(b"".join(hashes[cut:])) == Frontier().append(
        b"".join(hashes)
    )


@given(LEAVES)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_the_frontier_holds_one_perfect_tree_per_set_bit_largest_first(hashes):
    frontier = Frontier().append(b"".join(hashes))
    rest = list(hashes)
    for root, power in zip(
        frontier.roots,
        [1 << bit for bit in reversed(range(len(hashes).bit_length())) if len(hashes) >> bit & 1],
        strict=True,
    ):
        assert root == mth(rest[:power])
        rest = rest[power:]
    assert rest == []


def test_appending_leaves_the_old_frontier_alone():
    before = Frontier().append(leaf(b"a"))
    before.append(leaf(b"b"))
    assert before == Frontier().append(leaf(b"a"))


@pytest.mark.parametrize(
    ("size", "roots"),
    [(1, ()), (0, (b"\0" * 32,)), (3, (b"\0" * 32,)), (1, (b"short",)), (-1, ())],
    ids=["too few", "too many", "one missing", "not a hash", "negative"],
)
def test_a_frontier_that_no_tree_has_is_refused(size, roots):
    with pytest.raises(ValueError, match="root"):
        Frontier(size, roots)
