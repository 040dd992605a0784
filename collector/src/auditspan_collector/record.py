"""The types that travel through the collector, one per hop. All are frozen; none does I/O.

Those of which each request makes some are msgspec's, as a dataclass takes five times as long to make.

bytes -> OtlpRequest -> AuditRecord -> Leaf -> Leaves -> (sealed) SealedBatch -> ClickHouse
                                                    and Receipt -> the client
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Encoding = Literal["protobuf", "json"]


@dataclass(frozen=True, slots=True)
class Sender:
    """Whom a credential belongs to, and what it may say.

    *services* holds glob patterns of ``service.name``; None allows every service. *instrumented* means that the
    credential may speak for an instrumented service, so its ``audit.actor.origin`` counts.
    """

    name: str
    tenant: str
    services: tuple[str, ...] | None
    instrumented: bool


class OtlpRequest(msgspec.Struct, frozen=True):
    """One ExportTraceServiceRequest as it arrived, decompressed. *peer* is the connection's address."""

    body: bytes
    encoding: Encoding
    sender: Sender
    peer: str
    received_unix_ns: int


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """An event of a span; *attributes* and *attribute_types* as in AuditRecord."""

    time_unix_ns: int
    name: str
    attributes: tuple[tuple[str, str], ...]
    attribute_types: tuple[tuple[str, str], ...]
    dropped_attributes_count: int


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link of a span; *trace_id* and *span_id* are 16 and 8 bytes."""

    trace_id: bytes
    span_id: bytes
    trace_state: str
    flags: int
    attributes: tuple[tuple[str, str], ...]
    attribute_types: tuple[tuple[str, str], ...]
    dropped_attributes_count: int


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One audited action: the leaf columns of ``audit.records`` in their order (schema.py gives their types).

    Attribute maps are tuples of (key, text) in wire order, duplicates kept. The matching ``*_types`` name the
    type of each value that is not a string: bool, int, double, bytes (base64), array and kvlist (plain JSON),
    anyvalue (the OTLP JSON mapping, where plain JSON would lose a type) and empty; where a key repeats, all its
    occurrences are named, strings too.
    """

    leaf_version: int
    start_time_unix_ns: int
    duration_ns: int
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    audit_parent_span_id: bytes
    trace_state: str
    span_name: str
    span_kind: str
    status_code: str
    status_message: str
    service_name: str
    tenant: str
    record_id: bytes  # UUID, 16 bytes big endian
    actor_id: str
    actor_type: str
    actor_origin: str
    actor_roles: tuple[str, ...]
    actor_session: str
    actor_auth_method: str
    actor_delegate: str
    reason: str
    action: str
    outcome: str
    target_type: str
    target_id: str
    client_address: str
    sequence_stream: str
    sequence_number: int
    scope_name: str
    scope_version: str
    flags: int
    dropped_attributes_count: int
    dropped_events_count: int
    dropped_links_count: int
    resource_dropped_attributes_count: int
    scope_dropped_attributes_count: int
    resource_schema_url: str
    scope_schema_url: str
    attributes: tuple[tuple[str, str], ...]
    attribute_types: tuple[tuple[str, str], ...]
    resource_attributes: tuple[tuple[str, str], ...]
    resource_attribute_types: tuple[tuple[str, str], ...]
    resource_entity_refs: str  # JSON; OTLP's Resource.entity_refs, empty when there are none
    scope_attributes: tuple[tuple[str, str], ...]
    scope_attribute_types: tuple[tuple[str, str], ...]
    events: tuple[SpanEvent, ...]
    links: tuple[SpanLink, ...]
    received_time_unix_ms: int


class Leaf(msgspec.Struct, frozen=True):
    """A record, encoded and not yet sealed.

    *content* is RowBinary of the leaf columns; *hash* is SHA-256(0x00 || content), 32 bytes. *identity* is the
    same on every retry of the same record: SHA-256(0x00 || content without received_time), first 16 bytes.

    *key* and *number* say which record this claims to be, 16 bytes and an integer below 2**64: *sequence_key* and the
    column sequence_number where sequence_stream is not empty and the number not 0; else record_id and 0.
    Neither is sealed. Without a key the identity stands for it.
    """

    content: bytes
    hash: bytes
    identity: bytes
    key: bytes = b""
    number: int = 0


class Leaves(msgspec.Struct, frozen=True):
    """The leaves of one request, side by side: a busy collector can't afford an object for each.

    *contents* are one behind the other, *ends* says where each ends. *hashes* are 32 bytes a leaf, *identities* and
    *keys* 16; *numbers* are as in Leaf. A Leaf without a key stands here with its identity as the key.
    """

    contents: bytes = b""
    ends: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    hashes: bytes = b""
    identities: bytes = b""
    keys: bytes = b""
    numbers: array[int] = msgspec.field(default_factory=lambda: array("Q"))

    @classmethod
    def of(cls, leaves: Iterable[Leaf]) -> Leaves:
        """*leaves* in their order."""
        given = list(leaves)
        end = 0
        ends = array("Q", [end := end + len(leaf.content) for leaf in given])
        return cls(
            b"".join([leaf.content for leaf in given]),
            ends,
            b"".join([leaf.hash for leaf in given]),
            b"".join([leaf.identity for leaf in given]),
            b"".join([leaf.key or leaf.identity for leaf in given]),
            array("Q", [leaf.number for leaf in given]),
        )

    def __len__(self) -> int:
        """How many."""
        return len(self.ends)

    def __iter__(self) -> Iterator[Leaf]:
        """Each as an object."""
        begin = 0
        for place, (end, number) in enumerate(zip(self.ends, self.numbers, strict=True)):
            yield Leaf(
                self.contents[begin:end],
                self.hashes[32 * place : 32 * place + 32],
                self.identities[16 * place : 16 * place + 16],
                self.keys[16 * place : 16 * place + 16],
                number,
            )
            begin = end


def sequence_key(sender: str, service: bytes, stream: bytes) -> bytes:
    """The name, 16 bytes, of the numbers that *sender* (Sender.name) gives out for *service* in *stream*, both UTF-8.

    SHA-256 over the three, the first two behind their lengths in bytes (4 bytes, big endian), cut. By sender, so
    that nobody uses up the numbers of a service that another credential speaks for.
    """
    name = sender.encode()
    parts = (len(name).to_bytes(4, "big"), name, len(service).to_bytes(4, "big"), service, stream)
    return sha256(b"".join(parts)).digest()[:16]


class Selection(msgspec.Struct, frozen=True):
    """What one request comes to: its leaves, and what was left out and why.

    *spans* counts the spans in the request; *tagged* those that were audit-tagged; *invalid* those tagged spans
    that were refused, with *problems* naming the first few ("span 00ab..: trace_id is all zeroes").
    """

    leaves: Leaves
    spans: int
    tagged: int
    copies: int = 0  # ordinary copies of records that come by the spool; ignored
    invalid: int = 0
    problems: tuple[str, ...] = ()


class IndexRange(msgspec.Struct, frozen=True):
    """Indexes *first* to *last* of a stream, both inside."""

    first: int
    last: int


class Receipt(msgspec.Struct, frozen=True):
    """Where a request's records were sealed. *duplicates* counts those that were already there.

    *conflicts* counts those that were sealed although another record with other content has their key.
    """

    stream: str
    ranges: tuple[IndexRange, ...]
    duplicates: int
    conflicts: int = 0


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a request that was taken: durable when the client reads it.

    *receipt* is None when the request had no record to keep; *rejected* and *problem* become OTLP's
    ``partial_success``.
    """

    receipt: Receipt | None
    rejected: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SealedBatch:
    """Consecutive sealed records: RowBinary *rows* of ledger_stream, ledger_index and the leaf columns.

    *root* is the Merkle tree hash of the stream up to and including the last record. *row_bytes* holds the
    length of each row within *rows*, 4 bytes each in memory, so that some can be sent without the others.
    """

    stream: str
    first_index: int
    count: int
    rows: bytes = field(repr=False)
    root: bytes = field(repr=False)
    row_bytes: array[int] = field(default_factory=lambda: array("I"), repr=False)

    @property
    def last_index(self) -> int:
        """Index of the last record."""
        return self.first_index + self.count - 1
