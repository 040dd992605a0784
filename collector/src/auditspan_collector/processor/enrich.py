"""Make a record of a span: fill the columns, keep everything, cut what is over a limit.

Pure: the same span, sender, time and limits give the same record. The columns that say who did what are read from
the attributes that schema.FILLED_FROM names, the audit.* attribute first and then what other instrumentations
call the same thing. Reading an attribute takes nothing away: every attribute stays in its map. Of an attribute
that comes twice, the first one fills the column, as ``attributes['key']`` in SQL gives the first.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
from auditspan import attributes as names

from auditspan_collector.decode.wire import SPANS_LIMIT
from auditspan_collector.processor import values
from auditspan_collector.record import AuditRecord, SpanEvent, SpanLink
from auditspan_collector.schema import (
    END_TIME,
    EVENT_TIME,
    FILLED_FROM,
    LEAF_VERSION,
    LINK_SPAN_ID,
    LINK_TRACE_ID,
    START_TIME,
    TRUNCATED,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from auditspan_collector.decode import DecodedSpan
    from auditspan_collector.record import Sender


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one span may hold, and one request.

    More in a span is not refused: it is cut, and the record says what was cut. A request over a limit is refused for
    good; its sender sends fewer spans at once.

    Attributes:
        attributes_per_span: Counts each map by itself (span, resource, scope, each event, each link), and the roles;
            audit.* attributes are kept before others.
        events_per_span: The first ones are kept.
        links_per_span: The first ones are kept.
        value_bytes: The longest text of one value, key, name or message, in UTF-8.
        spans_per_request: Counts all spans, audited or not; and the resources and scopes that they come in.
        request_bytes: What the records of one request may come to. Each carries its resource, so that a small
            request can come to a thousand times its size.

    """

    attributes_per_span: Annotated[int, msgspec.Meta(ge=16, le=65536)] = 1024
    events_per_span: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    links_per_span: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 1024
    value_bytes: Annotated[int, msgspec.Meta(ge=64, le=16 * 1024 * 1024)] = 64 * 1024
    spans_per_request: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = SPANS_LIMIT
    request_bytes: Annotated[int, msgspec.Meta(ge=1024 * 1024)] = 128 * 1024 * 1024


_Pairs = tuple[tuple[str, str], ...]
_One = TypeVar("_One")
_Cuts = list[dict[str, Any]]  # entries of the attribute auditspan.truncated


class _Texts(NamedTuple):
    """Attributes as key, text and type in their order, and how many a limit left out."""

    found: list[tuple[str, str, str]]
    dropped: int

    def first(self) -> dict[str, str]:
        """The text of each key; of a key that repeats, the first."""
        return {key: text for key, text, _ in reversed(self.found)}

    def columns(self) -> tuple[_Pairs, _Pairs]:
        """The map of texts and the map of types. Where a key repeats, all its types are named, in order."""
        keys = [key for key, _, _ in self.found]
        repeated = (
            {key for key, count in Counter(keys).items() if count > 1} if len(set(keys)) != len(keys) else ()
        )
        return (
            tuple([(key, text) for key, text, _ in self.found]),
            tuple([(key, kind) for key, _, kind in self.found if kind != values.STRING or key in repeated]),
        )


_SERVICE_NAME: Final = "service.name"
_MAX_NANOSECONDS: Final = (1 << 63) - 1  # 2262-04-11, the last moment of DateTime64(9)
_MAX_UINT32: Final = (1 << 32) - 1
_ZERO_TRACE_ID: Final = bytes(16)
_ZERO_SPAN_ID: Final = bytes(8)
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_SPAN_ID_HEX: Final = re.compile("[0-9a-f]{16}", re.IGNORECASE)

# The OpenTelemetry Collector's ClickHouse exporter spells them so.
KINDS: Final = ("Unspecified", "Internal", "Server", "Client", "Producer", "Consumer")
STATUS_CODES: Final = ("Unset", "Ok", "Error")
_SERVER, _CONSUMER = 2, 5
_OK, _ERROR = 1, 2

PEER_ATTRIBUTES: Final = frozenset({"network.peer.address", "net.sock.peer.addr", "net.peer.ip"})
HTTP_STATUS: Final = ("http.response.status_code", "http.status_code")
GRPC_STATUS: Final = ("rpc.grpc.status_code", "rpc.response.status_code")
GRPC_DENIED: Final = frozenset({"7", "16", "PERMISSION_DENIED", "UNAUTHENTICATED"})
GRPC_OK: Final = frozenset({"0", "OK"})


def enrich(decoded: DecodedSpan, sender: Sender, received_unix_ns: int, limits: Limits) -> AuditRecord:
    """The record of a span whose ids are valid, sent by *sender*, received at *received_unix_ns*."""
    span, resource, scope = decoded.span, decoded.resource, decoded.scope
    cuts: _Cuts = []
    attributes = _texts(span.attributes, "attributes", limits, cuts)
    resource_attributes = _texts(resource.attributes, "resource_attributes", limits, cuts)
    scope_attributes = _texts(scope.attributes, "scope_attributes", limits, cuts)
    kept_events, dropped_events = _first(span.events, "events", limits.events_per_span, cuts)
    kept_links, dropped_links = _first(span.links, "links", limits.links_per_span, cuts)
    events = tuple(_event(event, f"events[{i}]", limits, cuts) for i, event in enumerate(kept_events))
    links = tuple(_link(link, f"links[{i}]", limits, cuts) for i, link in enumerate(kept_links))
    start, end = span.start_time_unix_nano, span.end_time_unix_nano
    texts = _texts_of_columns(decoded, limits, cuts)
    who_did_what = _who_did_what(span, attributes.first(), sender, limits, cuts)
    attributes.found.extend(_marks(start, end, cuts))
    attribute_texts, attribute_types = attributes.columns()
    resource_attribute_texts, resource_attribute_types = resource_attributes.columns()
    scope_attribute_texts, scope_attribute_types = scope_attributes.columns()
    return AuditRecord(
        leaf_version=LEAF_VERSION,
        start_time_unix_ns=min(start, _MAX_NANOSECONDS),
        received_time_unix_ms=received_unix_ns // 1_000_000,
        duration_ns=max(end - start, 0),
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_span_id or _ZERO_SPAN_ID,
        **texts,
        span_kind=_name_of(KINDS, span.kind),
        status_code=_name_of(STATUS_CODES, span.status.code),
        service_name=resource_attributes.first().get(_SERVICE_NAME, ""),
        tenant=sender.tenant,
        **who_did_what,
        flags=span.flags,
        dropped_attributes_count=_sum(span.dropped_attributes_count, attributes.dropped),
        dropped_events_count=_sum(span.dropped_events_count, dropped_events),
        dropped_links_count=_sum(span.dropped_links_count, dropped_links),
        resource_dropped_attributes_count=_sum(
            resource.dropped_attributes_count, resource_attributes.dropped
        ),
        scope_dropped_attributes_count=_sum(scope.dropped_attributes_count, scope_attributes.dropped),
        attributes=attribute_texts,
        attribute_types=attribute_types,
        resource_attributes=resource_attribute_texts,
        resource_attribute_types=resource_attribute_types,
        scope_attributes=scope_attribute_texts,
        scope_attribute_types=scope_attribute_types,
        events=events,
        links=links,
    )


def _texts_of_columns(decoded: DecodedSpan, limits: Limits, cuts: _Cuts) -> dict[str, Any]:
    """The columns that hold a text of the span, its resource or its scope as it is."""
    span, scope = decoded.span, decoded.scope
    texts = {
        "trace_state": span.trace_state,
        "span_name": span.name,
        "status_message": span.status.message,
        "scope_name": scope.name,
        "scope_version": scope.version,
        "resource_schema_url": decoded.resource_schema_url,
        "scope_schema_url": decoded.scope_schema_url,
        "resource_entity_refs": values.entity_refs_text(decoded.resource.entity_refs),
    }
    return {column: _within(text, column, limits, cuts) for column, text in texts.items()}


def _who_did_what(
    span: Span, said: dict[str, str], sender: Sender, limits: Limits, cuts: _Cuts
) -> dict[str, Any]:
    """The columns that attributes fill."""

    def text(column: str, default: str = "") -> str:
        for name in FILLED_FROM[column]:
            found = said.get(name)
            if found:
                return found
        return default

    def one_of(column: str, allowed: tuple[str, ...], default: str) -> str:
        word = text(column).lower()
        return word if word in allowed else default

    return {
        "audit_parent_span_id": _span_id(text("audit_parent_span_id")),
        "record_id": _record_id(text("record_id"), sender.tenant, span),
        "actor_id": text("actor_id", names.UNKNOWN),
        "actor_type": one_of("actor_type", names.ACTOR_TYPES, names.UNKNOWN),
        "actor_origin": one_of("actor_origin", names.ORIGINS, names.UNVERIFIED)
        if sender.instrumented
        else names.UNVERIFIED,
        "actor_roles": _roles(span, said, limits, cuts),
        "actor_session": text("actor_session"),
        "actor_auth_method": text("actor_auth_method"),
        "actor_delegate": text("actor_delegate"),
        "reason": text("reason"),
        "action": text("action").upper(),
        "outcome": one_of("outcome", names.OUTCOMES, names.UNKNOWN)
        if text("outcome")
        else _outcome(span, said),
        "target_type": text("target_type"),
        "target_id": text("target_id"),
        "client_address": _client_address(span, said),
        "sequence_stream": text("sequence_stream"),
        "sequence_number": _sequence_number(text("sequence_number")),
    }


def _outcome(span: Span, said: dict[str, str]) -> str:
    """The outcome when nobody named it. A refusal is known by its code only; a span's status can't tell it."""
    http = next((said[name] for name in HTTP_STATUS if name in said), "")
    grpc = next((said[name] for name in GRPC_STATUS if name in said), "")
    if http in {"401", "403"} or grpc in GRPC_DENIED:
        return names.DENIED
    if span.status.code == _ERROR:
        return names.FAILURE
    if http.isdecimal() and len(http) == 3:
        return names.FAILURE if http >= "400" else names.SUCCESS
    if grpc:
        return names.SUCCESS if grpc in GRPC_OK else names.FAILURE
    return names.SUCCESS if span.status.code == _OK else names.UNKNOWN


def _client_address(span: Span, said: dict[str, str]) -> str:
    """Who called. The peer of a span that calls others is the server that it called, not its client."""
    called = span.kind in {_SERVER, _CONSUMER}
    for name in FILLED_FROM["client_address"]:
        if said.get(name) and (called or name not in PEER_ATTRIBUTES):
            return said[name]
    return ""


def _roles(span: Span, said: dict[str, str], limits: Limits, cuts: _Cuts) -> tuple[str, ...]:
    name = next((name for name in FILLED_FROM["actor_roles"] if said.get(name, "[]") not in {"", "[]"}), None)
    if name is None:
        return ()
    roles = values.strings_of(next(one.value for one in span.attributes if one.key == name))
    if len(roles) > limits.attributes_per_span:
        cuts.append({"in": "actor_roles", "dropped": len(roles) - limits.attributes_per_span})
        roles = roles[: limits.attributes_per_span]
    return tuple(_cut(role, limits.value_bytes)[0] for role in roles)


def _record_id(text: str, tenant: str, span: Span) -> bytes:
    """The sender's record id, or one that every copy of the same span gets: a UUIDv8 (RFC 9562, section 5.8)."""
    if _UUID.fullmatch(text):
        return bytes.fromhex(text.replace("-", ""))
    digest = hashlib.sha256(
        b"auditspan record id\x00" + tenant.encode() + b"\x00" + span.trace_id + span.span_id
    )
    made = bytearray(digest.digest()[:16])
    made[6] = made[6] & 0x0F | 0x80  # version 8
    made[8] = made[8] & 0x3F | 0x80  # variant 10
    return bytes(made)


def _span_id(text: str) -> bytes:
    return bytes.fromhex(text) if _SPAN_ID_HEX.fullmatch(text) else _ZERO_SPAN_ID


def _sequence_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20):
        return 0
    number = int(text)
    return number if number < 1 << 64 else 0


def _event(event: Span.Event, where: str, limits: Limits, cuts: _Cuts) -> SpanEvent:
    texts = _texts(event.attributes, f"{where}.attributes", limits, cuts)
    time = event.time_unix_nano
    if time > _MAX_NANOSECONDS:
        texts.found.append((EVENT_TIME, str(time), values.STRING))
    attributes, attribute_types = texts.columns()
    return SpanEvent(
        time_unix_ns=min(time, _MAX_NANOSECONDS),
        name=_within(event.name, f"{where}.name", limits, cuts),
        attributes=attributes,
        attribute_types=attribute_types,
        dropped_attributes_count=_sum(event.dropped_attributes_count, texts.dropped),
    )


def _link(link: Span.Link, where: str, limits: Limits, cuts: _Cuts) -> SpanLink:
    texts = _texts(link.attributes, f"{where}.attributes", limits, cuts)
    trace_id, span_id = link.trace_id or _ZERO_TRACE_ID, link.span_id or _ZERO_SPAN_ID
    if len(trace_id) != 16:
        texts.found.append(
            (LINK_TRACE_ID, _within(trace_id.hex(), f"{where}.trace_id", limits, cuts), values.STRING)
        )
        trace_id = _ZERO_TRACE_ID
    if len(span_id) != 8:
        texts.found.append(
            (LINK_SPAN_ID, _within(span_id.hex(), f"{where}.span_id", limits, cuts), values.STRING)
        )
        span_id = _ZERO_SPAN_ID
    attributes, attribute_types = texts.columns()
    return SpanLink(
        trace_id=trace_id,
        span_id=span_id,
        trace_state=_within(link.trace_state, f"{where}.trace_state", limits, cuts),
        flags=link.flags,
        attributes=attributes,
        attribute_types=attribute_types,
        dropped_attributes_count=_sum(link.dropped_attributes_count, texts.dropped),
    )


def _marks(start: int, end: int, cuts: _Cuts) -> list[tuple[str, str, str]]:
    """What the columns can't say: key, text and type of the attributes that the collector adds.

    Times are strings: OTLP's are unsigned and its attribute values are not.
    """
    marks = []
    if start > _MAX_NANOSECONDS:
        marks.append((START_TIME, str(start), values.STRING))
    if end < start:
        marks.append((END_TIME, str(end), values.STRING))
    if cuts:
        marks.append((TRUNCATED, values.compact_json(cuts), "array"))
    return marks


def _texts(attributes: Sequence[KeyValue], where: str, limits: Limits, cuts: _Cuts) -> _Texts:
    """*attributes* as they are stored; what a limit cut is noted in *cuts*."""
    dropped = max(len(attributes) - limits.attributes_per_span, 0)
    if dropped:
        attributes = _most_wanted(attributes, limits.attributes_per_span)
        cuts.append({"in": where, "dropped": dropped})
    found = []
    for attribute in attributes:
        key, key_was_bytes = _cut(attribute.key, limits.value_bytes)
        if key_was_bytes:
            cuts.append({"in": where, "key": key, "key_bytes": key_was_bytes})
        text, kind = values.text_of(attribute.value)
        text, was_bytes = _cut(text, limits.value_bytes)
        if was_bytes:
            cuts.append({"in": where, "key": key, "bytes": was_bytes})
        found.append((key, text, kind))
    return _Texts(found, dropped)


def _first(each: Sequence[_One], where: str, limit: int, cuts: _Cuts) -> tuple[Sequence[_One], int]:
    """The first *limit* of *each*, and how many more there are; those are never built."""
    dropped = len(each) - limit
    if dropped <= 0:
        return each, 0
    cuts.append({"in": where, "dropped": dropped})
    return each[:limit], dropped


def _most_wanted(attributes: Sequence[KeyValue], limit: int) -> list[KeyValue]:
    """The *limit* attributes that are kept, in their order: who did what and where before all else."""

    def rank(index: int) -> bool:
        key = attributes[index].key
        return not (key.startswith(names.PREFIX) or key == _SERVICE_NAME)

    ranked = sorted(range(len(attributes)), key=rank)
    return [attributes[index] for index in sorted(ranked[:limit])]


def _within(text: str, where: str, limits: Limits, cuts: _Cuts) -> str:
    """*text* within the limit; a cut is noted in *cuts* as of *where*."""
    text, was_bytes = _cut(text, limits.value_bytes)
    if was_bytes:
        cuts.append({"in": where, "bytes": was_bytes})
    return text


def _cut(text: str, limit_bytes: int) -> tuple[str, int]:
    """*text* within the limit, whole characters only, and the length in bytes that it had, 0 when it fitted."""
    if len(text) * 4 <= limit_bytes:
        return text, 0
    data = text.encode()
    if len(data) <= limit_bytes:
        return text, 0
    return data[:limit_bytes].decode(errors="ignore"), len(data)


def _name_of(spelled: tuple[str, ...], number: int) -> str:
    return spelled[number] if 0 <= number < len(spelled) else str(number)


def _sum(sent: int, dropped_here: int) -> int:
    return min(sent + dropped_here, _MAX_UINT32)
