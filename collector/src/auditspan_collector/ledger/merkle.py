"""Name a whole sequence of records by one 32-byte hash: the Merkle tree of RFC 6962, section 2.1.

    leaf = SHA-256(0x00 || content)        given; this module never sees content
    node = SHA-256(0x01 || left || right)
    the empty tree's root = SHA-256("")

A tree of n leaves is made of one perfect tree per set bit of n, the largest first. Their roots, the *frontier*,
are all that appending needs: a new leaf is a perfect tree of one leaf, and two neighbours of equal size join into
one of twice the size, like a carry in binary addition. So the state of a ledger of 2^40 records is 40 hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from auditspan_collector import sealing

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node over its two children, 32 bytes each."""
    return sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Frontier:
    """A Merkle tree of *size* leaves, as the *roots* of its perfect subtrees, largest first.

    Raises ValueError when the roots can't belong to a tree of that size.
    """

    size: int = 0
    roots: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a state that no sequence of appends leads to."""
        if self.size < 0 or len(self.roots) != self.size.bit_count():
            raise ValueError(f"a tree of {self.size} leaves does not have {len(self.roots)} subtree roots")
        if any(len(root) != HASH_BYTES for root in self.roots):
            raise ValueError(f"each subtree root is {HASH_BYTES} bytes")

    def append(self, hashes: bytes) -> Frontier:
        """The tree with the leaf *hashes*, 32 bytes each, added at its end, in their order."""
        if len(hashes) % HASH_BYTES:
            raise ValueError(f"each leaf hash is {HASH_BYTES} bytes")
        roots = sealing.grow(self.size, b"".join(self.roots), hashes)
        return Frontier(
            self.size + len(hashes) // HASH_BYTES,
            tuple([roots[at : at + HASH_BYTES] for at in range(0, len(roots), HASH_BYTES)]),
        )

    def root(self) -> bytes:
        """The tree's hash, 32 bytes."""
        if not self.roots:
            return EMPTY_ROOT
        # RFC 6962 splits at the largest power of two below n: the left part is the largest perfect tree.
        *larger, node = self.roots
        for left in reversed(larger):
            node = node_hash(left, node)
        return node


EMPTY_TREE = Frontier()
