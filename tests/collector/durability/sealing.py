"""Records for the durability tests: small, each of its own content, and what a sealed batch holds of them."""

from __future__ import annotations

import dataclasses
from hashlib import sha256
from typing import TYPE_CHECKING

from auditspan_collector.record import AuditRecord, Leaf, Leaves, sequence_key
from auditspan_collector.schema import encode_leaf

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from auditspan_collector.record import SealedBatch
    from auditspan_collector.spool import Spool

CHILD_DEADLINE_S = 30


def make_leaf(
    content: bytes | int, *, received: int = 0, record_id: bytes = b"", sequence: bytes = b"", number: int = 0
) -> Leaf:
    """A leaf; *received* is what may differ between a record and its retry, *sequence* and *number* its key."""
    body = content if isinstance(content, bytes) else b"record %d" % content
    whole = body + received.to_bytes(8, "little")
    identity = sha256(body).digest()[:16]
    key = sequence_key("sender", b"service", sequence) if number else record_id or identity
    return Leaf(whole, sha256(b"\x00" + whole).digest(), identity, key, number)


def make_numbered(sequence: bytes, first: int, count: int, *, received: int = 0) -> list[Leaf]:
    """Records *first* and those after it of *sequence*, each of its own content."""
    return [
        make_leaf(b"%s %d" % (sequence, n), received=received, sequence=sequence, number=n)
        for n in range(first, first + count)
    ]


def make_leaves(first: int, count: int, size: int = 0) -> list[Leaf]:
    return [make_leaf(b"record %d " % n + bytes([n % 251]) * size) for n in range(first, first + count)]


def make_records(first: int, count: int, size: int = 0) -> list[Leaf]:
    """Leaves of whole records, for what looks into them; each is about *size* bytes longer than it must be."""
    return [
        encode_leaf(make_record(n, reason=chr(ord("a") + n % 26) * size)) for n in range(first, first + count)
    ]


def one_request(leaves: Iterable[Leaf]) -> list[Leaves]:
    """*leaves* as the only request of a commit."""
    return [Leaves.of(leaves)]


_EMPTY = {"int": 0, "str": "", "bytes": b""}
_IDS = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "audit_parent_span_id": 8, "record_id": 16}


def make_record(number: int, **given: object) -> AuditRecord:
    """A whole record that can be stored, told from others by *number*, which is its sequence number."""
    values: dict[str, object] = {
        field.name: _EMPTY.get(str(field.type), ()) for field in dataclasses.fields(AuditRecord)
    }
    values |= {name: number.to_bytes(size, "big") for name, size in _IDS.items()}
    values |= {"leaf_version": 1, "received_time_unix_ms": 1_795_516_200_000, "sequence_number": number}
    return AuditRecord(**(values | given))


def rows_of(batch: SealedBatch) -> Iterator[tuple[int, bytes]]:
    """Index and content (without its received time) of each row of *batch*."""
    stream = batch.stream.encode()
    prefix = bytes([len(stream)]) + stream
    at = 0
    for length in batch.row_bytes:
        row = batch.rows[at : at + length]
        assert row.startswith(prefix)
        index = int.from_bytes(row[len(prefix) : len(prefix) + 8], "little")
        yield index, row[len(prefix) + 8 : -8]
        at += length
    assert at == len(batch.rows)


def empty(spool: Spool, max_rows: int = 10_000, max_bytes: int = 1 << 24) -> list[tuple[int, bytes]]:
    """Take everything out, as the drain does."""
    rows: list[tuple[int, bytes]] = []
    while (batch := spool.read(max_rows, max_bytes)) is not None:
        spool.begin_insert(batch)
        rows += rows_of(batch)
        spool.release(batch.last_index)
    return rows


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
