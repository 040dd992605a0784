"""One ended span as the bytes of an OTLP ExportTraceServiceRequest, nothing of it left out.

The message is written directly, field by field, from opentelemetry/proto/trace/v1/trace.proto: about 20 microseconds
for a request's span with 28 attributes, where building the same message from protobuf objects takes 110. What is the
same for every span (resource, scope, attribute keys) is encoded once.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.trace import SpanKind

from auditspan.attributes import FOLDED_COUNT
from auditspan.spans import has_more

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import Link, SpanContext
    from opentelemetry.util.types import AnyValue

_MAX_CACHED_KEYS: Final = 4096
_MAX_CACHED_NAMES: Final = 1024
_MAX_CACHED_VALUES: Final = 64  # of one key: what has more is no property but a name or a number of something
_MAX_CACHED_PAIRS: Final = 16_384
_MAX_CACHED_BYTES: Final = 256  # of one pair
_MAX_CACHED_SCOPES: Final = 1024
_MAX_CACHED_RESOURCES: Final = 16

# SpanFlags: bits 0-7 are the W3C trace flags; then whether the parent's remoteness is known, and whether it is.
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200

# A field's tag is number << 3 | wire type (0 varint, 1 fixed64, 2 length-delimited, 5 fixed32).
_ATTRIBUTES_OF_SPAN: Final = b"\x4a"  # 9
_ATTRIBUTES_OF_EVENT: Final = b"\x1a"  # 3, in InstrumentationScope too
_ATTRIBUTES_OF_LINK: Final = b"\x22"  # 4
_ATTRIBUTES_OF_RESOURCE: Final = b"\x0a"  # 1

_UNKNOWN_END: Final = 0xFF41_75D1_75FA_7E0F  # stands for a span's end until it is known; no clock says it

_double = struct.Struct("<d").pack
_fixed64 = struct.Struct("<Q").pack
_fixed32 = struct.Struct("<I").pack
_times = struct.Struct("<cQcQ").pack


class Pieces(NamedTuple):
    """A request with one span, in pieces: its end is still unknown."""

    resource: bytes
    scope: bytes
    span: bytes
    scope_schema_url: bytes
    resource_schema_url: bytes

    def with_count(self, count: int, end_time_ns: int) -> bytes:
        """The ExportTraceServiceRequest, of *count* requests the last of which ended then."""
        key = _field(b"\x0a", FOLDED_COUNT.encode())
        attribute = _field(_ATTRIBUTES_OF_SPAN, key + _field(b"\x12", b"\x18" + varint(count)))
        span = (
            self.span.replace(b"\x41" + _fixed64(_UNKNOWN_END), b"\x41" + _fixed64(end_time_ns), 1)
            + attribute
        )
        body = self.scope + _field(b"\x12", span) + self.scope_schema_url
        return _field(b"\x0a", self.resource + _field(b"\x12", body) + self.resource_schema_url)


class Around(NamedTuple):
    """What stands around the spans of one *scope* of one *resource*, and the objects it was made of."""

    resource: Resource
    scope: InstrumentationScope | None
    parts: tuple[
        bytes, bytes, bytes, bytes
    ]  # resource, scope, and the schema URLs of both, the scope's first


class SpanEncoder:
    """Encodes spans; keeps what repeats. Thread-safe: the caches only ever gain equal values."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}
        self._pairs: dict[tuple[str, AnyValue], bytes] = {}  # whole attributes of spans
        self._values: dict[str, int] = {}  # how many of these a key has
        self._names: dict[str, bytes] = {}
        self._resources: dict[int, tuple[Resource, bytes, bytes]] = {}
        self._scopes: dict[int, tuple[InstrumentationScope | None, bytes, bytes]] = {}

    def encode(
        self, span: ReadableSpan, attributes: Mapping[str, AnyValue], end_time_ns: int, more: bytes = b""
    ) -> bytes:
        """An ExportTraceServiceRequest with *span*, its attributes replaced by *attributes* and *more* behind them.

        *span* may still be open; *end_time_ns* says when it ended. *more* is what ``attribute`` gave.
        """
        body = self._span(span, attributes, end_time_ns, more)
        scope, scope_schema_url = self._scope(span.instrumentation_scope)
        resource, resource_schema_url = self._resource(span.resource)
        length = varint(len(body))
        in_scope = len(scope) + 1 + len(length) + len(body) + len(scope_schema_url)
        scope_length = varint(in_scope)
        in_resource = len(resource) + 1 + len(scope_length) + in_scope + len(resource_schema_url)
        return b"".join(
            (
                b"\x0a",
                varint(in_resource),
                resource,
                b"\x12",
                scope_length,
                scope,
                b"\x12",
                length,
                body,
                scope_schema_url,
                resource_schema_url,
            )
        )

    def pieces(self, span: ReadableSpan, attributes: Mapping[str, AnyValue], more: bytes = b"") -> Pieces:
        """The same request before it is known how many it stands for and when the last one ended."""
        scope, scope_schema_url = self._scope(span.instrumentation_scope)
        resource, resource_schema_url = self._resource(span.resource)
        body = self._span(span, attributes, _UNKNOWN_END, more)
        return Pieces(resource, scope, body, scope_schema_url, resource_schema_url)

    def _span(
        self, span: ReadableSpan, attributes: Mapping[str, AnyValue], end_time_ns: int, more: bytes
    ) -> bytes:
        context, parent, name = span.context, span.parent, span.name
        parts = [
            b"\x0a\x10",
            context.trace_id.to_bytes(16),
            b"\x12\x08",
            context.span_id.to_bytes(8),
            _text(b"\x1a", context.trace_state.to_header()) if context.trace_state else b"",
            b"\x22\x08" + parent.span_id.to_bytes(8) if parent is not None else b"",
            self._names.get(name) or self._name(name),
            KINDS[span.kind],
            _times(b"\x39", span.start_time or 0, b"\x41", end_time_ns),
            *self._attributes_of_span(attributes),
            more,
            self._rest(span) if has_more(span) else b"\x7a\x00",  # an empty status
            b"\x85\x01",
            _fixed32(context.trace_flags | remoteness(parent)),
        ]
        return b"".join(parts)

    def around(self, span: ReadableSpan) -> Around:
        """What stands around *span*."""
        scope, scope_schema_url = self._scope(span.instrumentation_scope)
        resource, resource_schema_url = self._resource(span.resource)
        parts = (resource, scope, scope_schema_url, resource_schema_url)
        return Around(span.resource, span.instrumentation_scope, parts)

    def name(self, name: str) -> bytes:
        """A span's *name*, as its field."""
        return self._names.get(name) or self._name(name)

    def key(self, key: str) -> bytes:
        """An attribute's *key*, as its field."""
        return self._keys.get(key) or self._key(key)

    def attribute(self, key: str, value: AnyValue) -> bytes:
        """One attribute of a span."""
        return self._attribute(_ATTRIBUTES_OF_SPAN, key, value)

    def _rest(self, span: ReadableSpan) -> bytes:
        """What most spans have nothing in: counts of what was dropped, events, links, status."""
        status = span.status
        description = _text(b"\x12", status.description or "")
        return b"".join(
            (
                _count(b"\x50", span.dropped_attributes),
                *[_field(b"\x5a", self._event(event)) for event in span.events],
                _count(b"\x60", span.dropped_events),
                *[_field(b"\x6a", self._link(link)) for link in span.links],
                _count(b"\x70", span.dropped_links),
                _field(b"\x7a", description + _count(b"\x18", status.status_code.value)),
            )
        )

    def _name(self, name: str) -> bytes:
        found = _text(b"\x2a", name)
        if len(self._names) < _MAX_CACHED_NAMES and len(found) < _SHORT:
            self._names[name] = found
        return found

    def _attributes_of_span(self, attributes: Mapping[str, AnyValue]) -> list[bytes]:
        if not _SIMPLE.issuperset(map(type, attributes.values())):
            return [self._attribute(_ATTRIBUTES_OF_SPAN, key, value) for key, value in attributes.items()]
        # Most are as in an earlier span. Looking them up without a line of Python for each takes a fifth.
        try:
            found: list[Any] = list(map(self._pairs.get, attributes.items()))
        except TypeError:  # a mapping inside a tuple has no hash
            return [self._attribute(_ATTRIBUTES_OF_SPAN, key, value) for key, value in attributes.items()]
        if None in found:
            items = list(attributes.items())
            keys, values, at = self._keys, self._values, -1
            for _ in range(found.count(None)):
                at = found.index(None, at + 1)
                key, value = items[at]
                known = keys.get(key)
                if known and type(value) is str and len(raw := value.encode("utf-8", "replace")) < _SHORT:
                    head = _SHORT_TEXTS[len(raw)]
                    length = _LENGTHS[len(known) + len(head) + len(raw)]
                    found[at] = encoded = b"".join((_ATTRIBUTES_OF_SPAN, length, known, head, raw))
                else:
                    found[at] = encoded = self._attribute(_ATTRIBUTES_OF_SPAN, key, value)
                if values.get(key, 0) < _MAX_CACHED_VALUES:
                    self._remember(key, value, encoded)
        return found

    def _remember(self, key: str, value: AnyValue, encoded: bytes) -> None:
        if (
            len(encoded) < _MAX_CACHED_BYTES
            and len(self._pairs) < _MAX_CACHED_PAIRS
            and (type(value) is not tuple or all(type(item) is str for item in value))
        ):
            self._values[key] = self._values.get(key, 0) + 1
            self._pairs[key, value] = encoded

    def _attribute(self, tag: bytes, key: str, value: AnyValue) -> bytes:
        known = self._keys.get(key) or self._key(key)
        if type(value) is str and len(raw := value.encode("utf-8", "replace")) < _SHORT:
            # Most attributes are short texts: without a call for each of their fields.
            head = _SHORT_TEXTS[len(raw)]
            return tag + varint(len(known) + len(head) + len(raw)) + known + head + raw
        encoded = known + _field(b"\x12", self._value(value))
        return tag + _length(encoded) + encoded

    def _event(self, event: Event) -> bytes:
        return (
            b"\x09"
            + _fixed64(event.timestamp)
            + _text(b"\x12", event.name)
            + self._attributes(_ATTRIBUTES_OF_EVENT, event.attributes or {})
            + _count(b"\x20", event.dropped_attributes)
        )

    def _link(self, link: Link) -> bytes:
        context = link.context
        return (
            b"\x0a\x10"
            + context.trace_id.to_bytes(16)
            + b"\x12\x08"
            + context.span_id.to_bytes(8)
            + (_text(b"\x1a", context.trace_state.to_header()) if context.trace_state else b"")
            + self._attributes(_ATTRIBUTES_OF_LINK, link.attributes or {})
            + _count(b"\x28", link.dropped_attributes)
            + b"\x35"
            + _fixed32(int(context.trace_flags) | remoteness(context))
        )

    def _resource(self, resource: Resource) -> tuple[bytes, bytes]:
        # Kept by identity, which costs no hash; the pair keeps the object alive, so that its id can't come to mean
        # another. A fork gives the provider a new resource.
        found = self._resources.get(id(resource))
        if found is None:
            encoded = _field(b"\x0a", self._attributes(_ATTRIBUTES_OF_RESOURCE, resource.attributes))
            if len(self._resources) >= _MAX_CACHED_RESOURCES:
                self._resources = {}
            schema_url = _text(b"\x1a", resource.schema_url)
            found = self._resources[id(resource)] = (resource, encoded, schema_url)
        return found[1:]

    def _scope(self, scope: InstrumentationScope | None) -> tuple[bytes, bytes]:
        found = self._scopes.get(id(scope))
        if found is None:
            encoded = schema_url = b""
            if scope is not None:
                body = _text(b"\x0a", scope.name) + _text(b"\x12", scope.version or "")
                body += self._attributes(_ATTRIBUTES_OF_EVENT, scope.attributes or {})
                encoded, schema_url = _field(b"\x0a", body), _text(b"\x1a", scope.schema_url or "")
            if len(self._scopes) >= _MAX_CACHED_SCOPES:
                self._scopes = {}
            found = self._scopes[id(scope)] = (scope, encoded, schema_url)
        return found[1:]

    def _attributes(self, tag: bytes, attributes: Mapping[str, AnyValue]) -> bytes:
        return b"".join([self._attribute(tag, key, value) for key, value in attributes.items()])

    def _key(self, key: str) -> bytes:
        found = _field(b"\x0a", key.encode("utf-8", "replace"))
        if len(self._keys) < _MAX_CACHED_KEYS and len(found) < _SHORT:
            self._keys[key] = found
        return found

    def _value(self, value: AnyValue) -> bytes:  # noqa: PLR0911 - one return a type
        """An AnyValue (opentelemetry/proto/common/v1/common.proto); None is one without a value."""
        if isinstance(value, str):
            return _field(b"\x0a", value.encode("utf-8", "replace"))
        if value is None:
            return b""
        if isinstance(value, bool):
            return b"\x10\x01" if value else b"\x10\x00"
        if isinstance(value, int):
            if -(1 << 63) <= value < 1 << 63:
                return b"\x18" + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
            return _field(
                b"\x0a", str(value).encode()
            )  # OTLP has no wider integer; the digits are kept as text
        if isinstance(value, float):
            return b"\x21" + _double(value)
        if isinstance(value, bytes):
            return _field(b"\x3a", value)
        if isinstance(value, Mapping):
            return _field(b"\x32", self._attributes(b"\x0a", value))
        if isinstance(value, Sequence):
            return _field(b"\x2a", b"".join([_field(b"\x0a", self._value(item)) for item in value]))
        return _field(b"\x0a", str(value).encode("utf-8", "replace"))


# The SDK counts kinds from 0, OTLP from 1.
KINDS: Final = {kind: b"\x30" + bytes((kind.value + 1,)) for kind in SpanKind}


def remoteness(parent: SpanContext | None) -> int:
    """The SpanFlags that say whether *parent* is in another process."""
    return _HAS_IS_REMOTE | (_IS_REMOTE if parent is not None and parent.is_remote else 0)


def varint(number: int) -> bytes:
    """*number*, not negative, in seven bits a byte."""
    if number < 0x4000:
        return _LENGTHS[number] if number < 2048 else bytes((number & 0x7F | 0x80, number >> 7))
    return _any_varint(number)


def _any_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_LENGTHS: Final = tuple(_any_varint(number) for number in range(2048))


# The value of a KeyValue up to the text itself: value = 2 of an AnyValue, string_value = 1 of a text.
# By exact type, for a subclass may be equal to anything, as 1 is to True and to 1.0.
_SIMPLE: Final = frozenset({str, int, tuple})
_SHORT: Final = 126  # bytes; the value's length then fits one byte
_SHORT_TEXTS: Final = tuple(b"\x12" + _LENGTHS[size + 2] + b"\x0a" + _LENGTHS[size] for size in range(_SHORT))


def _length(body: bytes) -> bytes:
    return varint(len(body))


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + _length(body) + body


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "replace")) if text else b""


def _count(tag: bytes, number: int) -> bytes:
    return tag + varint(number) if number else b""
