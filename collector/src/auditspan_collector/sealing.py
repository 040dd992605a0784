"""HOT PATH: what each record costs between its encoding and the disk, its row and its place in the Merkle tree.

This source runs in two forms with one result: as it stands, and compiled by Cython with the types that sealing.pxd
gives its variables; functions called auditspan_... are those of native.h, known to the compiled form only. What a row is, is said in schema; what the tree is, in ledger.merkle.
"""

from __future__ import annotations

import _hashlib
from array import array
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan_collector.record import Leaves

_COMPILED: Final = not __file__.endswith(".py")
# Whether OpenSSL is called directly (native.h); an object for each digest costs more than the digest.
_DIRECT: Final = _COMPILED and auditspan_sha256_load(getattr(_hashlib, "__file__", "").encode())  # type: ignore[name-defined] # noqa: F821

_HASH_BYTES: Final = 32
_INDEX_BYTES: Final = 8
_DEEPEST: Final = 66  # roots of a tree of 2**64 leaves, and the leaf that is being added


def rows(prefix: bytes, first: int, blocks: Sequence[Leaves]) -> tuple[bytes, array[int]]:
    """The rows of all leaves of *blocks*, and how long each is.

    A row is *prefix*, the index of the record (8 bytes, little endian, from *first* on) and the leaf's content.
    """
    head = len(prefix) + _INDEX_BYTES
    count = sum([len(block.ends) for block in blocks])
    size = count * head + sum([len(block.contents) for block in blocks])
    written = auditspan_bytes(size) if _COMPILED else bytearray(size)  # type: ignore[name-defined] # noqa: F821
    lengths = array("I", bytes(4 * count))
    each = lengths
    index = first
    at = place = 0
    for block in blocks:
        contents = block.contents
        ends = block.ends
        begin = 0
        for i in range(len(ends)):
            end = ends[i]
            if end < begin or end > len(contents):
                raise ValueError(f"leaf {i} ends at {end}, not from {begin} to {len(contents)}")
            _put(written, at, prefix, 0, head - _INDEX_BYTES)
            if _COMPILED:
                auditspan_put_index(written, at + head - _INDEX_BYTES, index)  # type: ignore[name-defined] # noqa: F821
            else:
                written[at + head - _INDEX_BYTES : at + head] = index.to_bytes(_INDEX_BYTES, "little")
            _put(written, at + head, contents, begin, end - begin)
            each[place] = head + end - begin
            at += head + end - begin
            begin = end
            place += 1
            index += 1
    return bytes(written), lengths


def grow(size: int, roots: bytes, hashes: bytes) -> bytes:
    """The roots of a tree of *size* leaves (Frontier.roots, one behind the other) when leaf *hashes* are added to it."""
    tree = bytearray(_DEEPEST * _HASH_BYTES)
    top = len(roots)
    tree[:top] = roots
    for at in range(0, len(hashes), _HASH_BYTES):
        _put(tree, top, hashes, at, _HASH_BYTES)
        # Each trailing 1 bit of the size is a perfect tree as large as the one that is now the last.
        carry = size
        while carry & 1:
            top -= _HASH_BYTES
            if _DIRECT:
                if not auditspan_sha256_node(tree, top):  # type: ignore[name-defined] # noqa: F821
                    raise MemoryError("OpenSSL can't compute a digest")
            else:
                tree[top : top + _HASH_BYTES] = sha256(b"\x01" + tree[top : top + 2 * _HASH_BYTES]).digest()
            carry >>= 1
        top += _HASH_BYTES
        size += 1
    return bytes(tree[:top])


def pieces(data: bytes, size: int) -> list[bytes]:
    """*data* cut into pieces of *size* bytes, which its length must be a multiple of."""
    cut = []
    for at in range(0, len(data), size):
        cut.append(data[at : at + size])  # noqa: PERF401 - compiled, as fast as a comprehension
    return cut


def _put(to: bytearray, at: int, source: bytes, begin: int, count: int) -> None:
    if _COMPILED:
        auditspan_copy(to, at, source, begin, count)  # type: ignore[name-defined] # noqa: F821
    else:
        to[at : at + count] = source[begin : begin + count]
