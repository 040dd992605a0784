"""The table `audit.records`, defined once: columns, types, order, what fills them, and a row's bytes.

DDL (ddl.py) and docs/schema.md (document.py) derive from COLUMNS. The leaf columns in their order are what the
ledger seals: leaf = SHA-256(0x00 || RowBinary(leaf columns)), the very bytes that ClickHouse's
``formatRow('RowBinary', ...)`` gives back, so the database can recompute every leaf (`leaf_sql`). A column added
later gets a new leaf version; leaves that were sealed keep theirs.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from auditspan import attributes as names

from auditspan_collector.record import Leaf, sequence_key
from auditspan_collector.schema import rowbinary as rb

if TYPE_CHECKING:
    from auditspan_collector.record import AuditRecord

LEAF_VERSION: Final = 1
TABLE: Final = "records"

# Attributes that the collector adds to a record where a column can't say it all.
TRUNCATED: Final = "auditspan.truncated"
START_TIME: Final = "auditspan.start_time_unix_nano"
END_TIME: Final = "auditspan.end_time_unix_nano"
EVENT_TIME: Final = "auditspan.time_unix_nano"
LINK_TRACE_ID: Final = "auditspan.trace_id"
LINK_SPAN_ID: Final = "auditspan.span_id"
RESERVED_ATTRIBUTES: Final = {
    TRUNCATED: "JSON list of what a limit cut: `in` names the column or map (`span_name`, `attributes`, "
    "`resource_attributes`, `events`, `events[2].name`, `links[0].attributes`); `bytes` the length that the text had, "
    "with `key` that of the key's value; `key_bytes` the length that the key had; `dropped` how many attributes, "
    "events or links were left out, which the dropped count contains",
    START_TIME: "the start as it came, when it is past the year 2262 and the column holds the last moment it can",
    END_TIME: "the end as it came, when it lies before the start and `duration_ns` is 0",
    EVENT_TIME: "in an event: its time as it came, when it is past the year 2262",
    LINK_TRACE_ID: "in a link: its trace id in hex, when it is not 16 bytes and the column holds zeroes",
    LINK_SPAN_ID: "in a link: its span id in hex, when it is not 8 bytes and the column holds zeroes",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name and type in ClickHouse, what it means, and where its value comes from.

    *source* is the field of AuditRecord, ``events.name`` for a field of each of its events. *filled_from* are the
    span's attributes that fill it, the first one present wins.
    """

    name: str
    type: rb.Type
    comment: str
    source: str = ""
    filled_from: tuple[str, ...] = ()

    @property
    def field(self) -> str:
        """Where the value stands in an AuditRecord."""
        return self.source or self.name


# The seal: where the record stands in its ledger. Not part of the leaf, which has no place before it is sealed.
SEAL_COLUMNS: Final = (
    Column("ledger_stream", rb.WORD, "the ledger: deployment/collector/epoch"),
    Column("ledger_index", rb.UINT64, "position in the ledger, from 0, without a gap"),
)

LEAF_COLUMNS: Final = (
    Column("leaf_version", rb.UINT8, "which columns the leaf hash covers; 1 for this list"),
    Column(
        "start_time", rb.NANOSECONDS, "when the action began, by the service's clock", "start_time_unix_ns"
    ),
    Column("duration_ns", rb.UINT64, "how long it took, nanoseconds"),
    Column("trace_id", rb.TRACE_ID, "16 bytes; trace_id_hex is the text"),
    Column("span_id", rb.SPAN_ID, "8 bytes; span_id_hex is the text"),
    Column("parent_span_id", rb.SPAN_ID, "8 bytes, zeroes at the root; parent_span_id_hex is the text"),
    Column(
        "audit_parent_span_id",
        rb.SPAN_ID,
        "nearest audited span upstream, also across services; zeroes when there is none",
        filled_from=(names.PARENT_SPAN_ID,),
    ),
    Column("trace_state", rb.STRING, "W3C tracestate"),
    Column("span_name", rb.WORD, "name of the span"),
    Column(
        "span_kind",
        rb.WORD,
        "Internal, Server, Client, Producer, Consumer, Unspecified, or an unknown number",
    ),
    Column("status_code", rb.WORD, "Unset, Ok, Error, or an unknown number"),
    Column("status_message", rb.STRING, "what the span says of its error"),
    Column("service_name", rb.WORD, "the resource's service.name, empty when it has none"),
    Column("tenant", rb.WORD, "whose credential sent it"),
    Column(
        "record_id",
        rb.UUID,
        "the same on every retry; when the sender gave none, derived from tenant, trace id and span id",
        filled_from=(names.RECORD_ID,),
    ),
    Column(
        "actor_id",
        rb.STRING,
        "who; anonymous: the framework says nobody; unknown: nobody can say",
        filled_from=(names.ACTOR_ID, "audit.actor", "user.id", "enduser.id", "user.name", "user.email"),
    ),
    Column("actor_type", rb.WORD, "user, service, system or unknown", filled_from=(names.ACTOR_TYPE,)),
    Column(
        "actor_origin",
        rb.WORD,
        "how we know the actor: authenticated, asserted or unverified; counts only from an instrumented sender",
        filled_from=(names.ACTOR_ORIGIN,),
    ),
    Column(
        "actor_roles",
        rb.WORDS,
        "roles or scopes held at that moment",
        filled_from=(names.ACTOR_ROLES, "audit.roles", "audit.role", "user.roles", "enduser.role"),
    ),
    Column(
        "actor_session", rb.STRING, "the session, hashed by the service", filled_from=(names.ACTOR_SESSION,)
    ),
    Column("actor_auth_method", rb.WORD, "how they authenticated", filled_from=(names.ACTOR_AUTH_METHOD,)),
    Column("actor_delegate", rb.STRING, "who acts for them", filled_from=(names.ACTOR_DELEGATE,)),
    Column("reason", rb.STRING, "the stated reason, or why it was denied", filled_from=(names.REASON,)),
    Column(
        "action",
        rb.WORD,
        "did what, in upper case; empty when nobody said",
        filled_from=(names.ACTION, "audit.operation"),
    ),
    Column(
        "outcome",
        rb.WORD,
        "success, failure, denied or unknown; when the sender did not say, from the HTTP or gRPC status code, else "
        "from the span's status (Ok, Error)",
        filled_from=(names.OUTCOME,),
    ),
    Column(
        "target_type",
        rb.WORD,
        "what kind of thing was acted on",
        filled_from=(names.TARGET_TYPE, "audit.resource.type"),
    ),
    Column(
        "target_id",
        rb.STRING,
        "which one",
        filled_from=(names.TARGET_ID, "audit.target", "audit.resource.id", "audit.resource"),
    ),
    Column(
        "client_address",
        rb.STRING,
        "the other end of the connection (Server and Consumer spans), else what the span calls its client",
        filled_from=(
            "network.peer.address",
            "net.sock.peer.addr",
            "net.peer.ip",
            "client.address",
            "http.client_ip",
        ),
    ),
    Column(
        "sequence_stream",
        rb.STRING,
        "the emitter in the service's process",
        filled_from=(names.SEQUENCE_STREAM,),
    ),
    Column(
        "sequence_number",
        rb.UINT64,
        "that emitter's counter, from 1; a gap is a lost record; 0 when there is none",
        filled_from=(names.SEQUENCE_NUMBER,),
    ),
    Column("scope_name", rb.WORD, "instrumentation scope"),
    Column("scope_version", rb.WORD, "its version"),
    Column("flags", rb.UINT32, "OTLP's span flags"),
    Column("dropped_attributes_count", rb.UINT32, "attributes dropped by the sender or by a limit here"),
    Column("dropped_events_count", rb.UINT32, "events dropped by the sender"),
    Column("dropped_links_count", rb.UINT32, "links dropped by the sender"),
    Column("resource_dropped_attributes_count", rb.UINT32, "the same of the resource's attributes"),
    Column("scope_dropped_attributes_count", rb.UINT32, "the same of the scope's attributes"),
    Column("resource_schema_url", rb.WORD, "schema URL of the resource"),
    Column("scope_schema_url", rb.WORD, "schema URL of the scope"),
    Column("attributes", rb.TEXTS, "every attribute of the span, as text, in the order they came"),
    Column("attribute_types", rb.TYPES, "the type of each value that is not a string"),
    Column("resource_attributes", rb.TEXTS, "the resource's attributes"),
    Column("resource_attribute_types", rb.TYPES, "and their types"),
    Column(
        "resource_entity_refs", rb.STRING, "the resource's entity references, JSON; empty when there are none"
    ),
    Column("scope_attributes", rb.TEXTS, "the scope's attributes"),
    Column("scope_attribute_types", rb.TYPES, "and their types"),
    Column(
        "events.time", rb.array(rb.NANOSECONDS), "when each event of the span happened", "events.time_unix_ns"
    ),
    Column("events.name", rb.WORDS, "its name"),
    Column("events.attributes", rb.array(rb.TEXTS), "its attributes"),
    Column("events.attribute_types", rb.array(rb.TYPES), "and their types"),
    Column("events.dropped_attributes_count", rb.array(rb.UINT32), "how many it dropped"),
    Column("links.trace_id", rb.array(rb.TRACE_ID), "the trace that each link points to"),
    Column("links.span_id", rb.array(rb.SPAN_ID), "the span"),
    Column("links.trace_state", rb.array(rb.STRING), "its tracestate"),
    Column("links.flags", rb.array(rb.UINT32), "its flags"),
    Column("links.attributes", rb.array(rb.TEXTS), "the link's attributes"),
    Column("links.attribute_types", rb.array(rb.TYPES), "and their types"),
    Column("links.dropped_attributes_count", rb.array(rb.UINT32), "how many it dropped"),
    # The last one, so that what stands before it is the record whenever it comes, and is hashed once (leaf_of).
    Column("received_time", rb.MILLISECONDS, "when the collector took it", "received_time_unix_ms"),
)

COLUMNS: Final = SEAL_COLUMNS + LEAF_COLUMNS

# In the order of RowBinary's values; give them to the insert, so that a column added later breaks nothing.
INSERT_COLUMNS: Final = tuple(column.name for column in COLUMNS)

# The same for a block of columns (columnar.Columns): name, type, layout.
NATIVE_COLUMNS: Final = tuple((column.name, column.type.native, column.type.layout) for column in COLUMNS)

FILLED_FROM: Final = {column.name: column.filled_from for column in LEAF_COLUMNS if column.filled_from}

_RECEIVED = LEAF_COLUMNS[-1]
_FLAT = tuple(column for column in LEAF_COLUMNS[:-1] if "." not in column.field)
_NESTED = tuple(column for column in LEAF_COLUMNS if "." in column.field)
assert (*_FLAT, *_NESTED, _RECEIVED) == LEAF_COLUMNS  # noqa: S101 - encode_leaf writes them in this order
_flat_values = attrgetter(*[column.field for column in _FLAT])
_FLAT_ENCODERS = tuple(column.type.encode for column in _FLAT)
_NESTED_ENCODERS = tuple(
    (column.field.split(".")[0], attrgetter(column.field.split(".")[1]), column.type.encode)
    for column in _NESTED
)


def encode_leaf(record: AuditRecord, sender: str = "") -> Leaf:
    """*record* as the bytes that are sealed and inserted, with their hash and identity, and the key under *sender*."""
    parts = [encode(value) for encode, value in zip(_FLAT_ENCODERS, _flat_values(record), strict=True)]
    for group, field_of, encode in _NESTED_ENCODERS:
        elements = getattr(record, group)
        parts.append(encode([field_of(element) for element in elements]) if elements else b"\x00")
    key, number = record.record_id, 0
    if record.sequence_stream and record.sequence_number:
        key = sequence_key(sender, record.service_name.encode(), record.sequence_stream.encode())
        number = record.sequence_number
    return leaf_of(b"".join(parts), received_column(record.received_time_unix_ms), key, number)


def received_column(unix_ms: int) -> bytes:
    """The last leaf column, received_time."""
    return _RECEIVED.type.encode(unix_ms)


def leaf_of(columns: bytes, received: bytes, key: bytes, number: int) -> Leaf:
    """The leaf of a record: RowBinary of its leaf columns but for the last one, and of that (received_column).

    *key* and *number* as in Leaf. One pass over the bytes gives both hashes: the identity is taken before the time is
    added.
    """
    digest = hashlib.sha256(b"\x00" + columns)
    identity = digest.digest()[:16]
    digest.update(received)
    return Leaf(columns + received, digest.digest(), identity, key, number)


def seal_row(stream: str, index: int, leaf: Leaf) -> bytes:
    """A row for the insert: *leaf* at *index* of *stream*, in RowBinary of INSERT_COLUMNS."""
    return row_prefix(stream) + struct.pack("<Q", index) + leaf.content


def row_prefix(stream: str) -> bytes:
    """What stands in each row of *stream* before the index of the record and the leaf's content (sealing.rows)."""
    return rb.string(stream)


def received_unix_ms(row: bytes | memoryview) -> int:
    """When the record of *row*, a sealed one, was received."""
    return int.from_bytes(row[-8:], "little", signed=True)


def leaf_sql() -> str:
    """The SQL expression that gives a row's leaf hash, 32 bytes, from the leaf columns of TABLE."""
    columns = ", ".join(f"`{column.name}`" for column in LEAF_COLUMNS)
    return f"SHA256(concat(char(0), formatRow('RowBinary', {columns})))"
