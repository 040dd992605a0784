"""HOT PATH: from the bytes of an OTLP request to the leaves of its audit-tagged spans, without building objects.

This source runs in two forms with one result: as it stands, and compiled by Cython with the types that transcode.pxd
gives its variables; functions called auditspan_... are those of native.h, known to the compiled form only. It says
nothing of its own about what is right: whatever is malformed or rare it gives back, the whole request (*run* returns
None) or one span (as a request that holds only that span), to the readable path, which is the oracle. So the errors
that a sender sees are always those of the readable path, and what is here can be short.

Theory. OTLP is lengths all the way down, and a string's bytes and its length stand on ClickHouse's wire as they
stand on OTLP's. One pass over a span's fields judges what the readable path judges of every span: framing, and UTF-8
of the attribute keys. It notes where keys and values lie. Only when a key starts with ``audit.`` is the rest looked
at, and copied column by column; its hashes are taken while it is in the cache. What spans share, their resource and
scope, comes ready encoded from *heads*, once for each resource or scope of a request.

What is given back: groups, a field that is not repeated and comes twice, an enum number without a name, bytes and
nested values, numbers that are not finite, keys that repeat, texts and counts over a limit, times that are out of
range or in the wrong order, invalid ids, and letters outside ASCII where case matters.

Bounds. *pos* never passes *end*: every read of input is behind a comparison with the end of the message that it lies
in, and every message ends inside the one around it (`_open`). Every write goes through `_Buffer.need`.

Reference: https://protobuf.dev/programming-guides/encoding/, opentelemetry/proto/trace/v1/trace.proto,
https://clickhouse.com/docs/interfaces/formats/RowBinary
"""

from __future__ import annotations

import _hashlib
import hashlib
import struct
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from auditspan import attributes as names

from auditspan_collector.record import Leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

COMPILED: Final = not __file__.endswith(".py")
_COMPILED: Final = COMPILED  # known to C
# Whether OpenSSL is called directly (native.h); an object for each digest costs more than the digest.
_DIRECT: Final = COMPILED and auditspan_sha256_load(getattr(_hashlib, "__file__", "").encode())  # type: ignore[name-defined] # noqa: F821

# What a step of the walk answers where it does not answer a position or a count.
_GIVE_UP, _ODD, _COPY = -1, -2, -3

# The columns that attributes fill, in the order of Plan.filled_from's use here.
_COLUMNS: Final = (
    "audit_parent_span_id",
    "record_id",
    "actor_id",
    "actor_type",
    "actor_origin",
    "actor_roles",
    "actor_session",
    "actor_auth_method",
    "actor_delegate",
    "reason",
    "action",
    "outcome",
    "target_type",
    "target_id",
    "client_address",
    "sequence_stream",
    "sequence_number",
)
(
    _PARENT,
    _RECORD_ID,
    _ACTOR_ID,
    _ACTOR_TYPE,
    _ACTOR_ORIGIN,
    _ACTOR_ROLES,
    _ACTOR_SESSION,
    _ACTOR_AUTH_METHOD,
    _ACTOR_DELEGATE,
    _REASON,
    _ACTION,
    _OUTCOME,
    _TARGET_TYPE,
    _TARGET_ID,
    _CLIENT_ADDRESS,
    _SEQUENCE_STREAM,
    _SEQUENCE_NUMBER,
    _HTTP_STATUS,
    _GRPC_STATUS,
    _GROUPS,
) = range(20)

# The known fields of each message by number: the wire type, plus 8 for text and 16 for what repeats. A message's
# fields are noted at its base plus their number.
_SPAN, _EVENT, _LINK, _STATUS = 0, 20, 28, 36
_SHAPES: Final = bytearray(44)
_SHAPES[1:17] = bytes([2, 2, 10, 2, 10, 0, 1, 1, 18, 0, 18, 0, 18, 0, 2, 5])
_SHAPES[21:25] = bytes([1, 10, 18, 0])
_SHAPES[29:35] = bytes([2, 2, 10, 18, 0, 5])
_SHAPES[37:40] = bytes([7, 10, 0])  # Status has no field 1

_STRING, _BOOL, _INT, _DOUBLE, _ARRAY, _EMPTY = range(6)
_TYPE_NAMES: Final = (b"\x06string", b"\x04bool", b"\x03int", b"\x06double", b"\x05array", b"\x05empty")

_MAX_ATTRIBUTES: Final = 1024  # of a span and all in it
_MAX_CHILDREN: Final = 128  # events and links of a span
_BUCKETS: Final = 256
_PLACES: Final = 64
_KEPT_BYTES: Final = 2 << 20  # of the room that a request's leaves took; what was larger is given back

# The value of each hex digit, 255 for anything else. A table, because the digits of an id can't be predicted.
_NIBBLES: Final = bytes(
    int(chr(byte), 16) if chr(byte) in "0123456789abcdefABCDEF" else 255 for byte in range(256)
)


_Bytes = bytes | bytearray


class Head(NamedTuple):
    """What the spans of one resource or scope share: their columns in RowBinary, in the pieces a leaf has them in.

    *first* is service_name, or scope_name and scope_version; *rest* the attribute maps and what follows them.
    *service* is service.name as text, for a resource.
    """

    service: str
    first: bytes
    dropped: bytes
    url: bytes
    rest: bytes


class Plan(NamedTuple):
    """What the walk has to know of the columns, the limits and the words.

    *heads* takes the bytes of a ResourceSpans (True) or ScopeSpans (False) without what is below it, and gives its
    Head, or None when its spans are for the readable path.
    """

    leaf_version: int
    filled_from: Mapping[str, tuple[str, ...]]
    peer_attributes: frozenset[str]
    http_status: tuple[str, ...]
    grpc_status: tuple[str, ...]
    grpc_denied: frozenset[str]
    grpc_ok: frozenset[str]
    kinds: tuple[str, ...]
    status_codes: tuple[str, ...]
    attributes_per_span: int
    events_per_span: int
    links_per_span: int
    value_bytes: int
    request_bytes: int
    spans_per_request: int
    min_messages: int
    min_bytes_a_message: int
    heads: Callable[[bool, bytes], Head | None]


class Transcoded(NamedTuple):
    """What a request comes to.

    *leaves* are in the order of their spans. Missing among them are those of the *odd* spans: for each, how many leaves
    stand before it, and a request with that span alone, for the readable path. *services* names the services of the
    others, *tagged* counts them.
    """

    leaves: Leaves
    odd: list[tuple[int, bytes]]
    services: list[str]
    spans: int
    tagged: int
    copies: int


class _Buffer:
    """Bytes that grow. Written through a pointer when compiled."""

    def __init__(self, capacity: int) -> None:
        self.data = bytearray(capacity)
        self.p = self.data
        self.capacity = capacity
        self.size = 0

    def need(self, count: int) -> None:
        """Make room for *count* more bytes."""
        if self.size + count > self.capacity:
            self.grow(count)

    def grow(self, count: int) -> None:
        """Another place, at least twice as large."""
        data = bytearray(2 * self.capacity + count)
        data[: self.size] = self.data[: self.size]
        self.data = data
        self.p = self.data
        self.capacity = len(data)

    def byte(self, value: int) -> None:
        self.need(1)
        self.p[self.size] = value
        self.size += 1

    def put(self, source: _Bytes, begin: int, count: int) -> None:
        """Append *count* bytes of *source*."""
        self.need(count)
        _copy(self.p, self.size, source, begin, count)
        self.size += count

    def append(self, content: bytes) -> None:
        """Append all of *content*."""
        self.put(content, 0, len(content))

    def text(self, source: _Bytes, begin: int, count: int) -> None:
        """Append *count* bytes of *source* behind their length."""
        self.varint(count)
        self.put(source, begin, count)

    def varint(self, number: int) -> None:
        self.need(10)
        while number >= 0x80:
            self.p[self.size] = number & 0x7F | 0x80
            self.size += 1
            number >>= 7
        self.p[self.size] = number
        self.size += 1

    def fixed32(self, number: int) -> None:
        self.need(4)
        for i in range(4):
            self.p[self.size + i] = number >> (8 * i) & 0xFF
        self.size += 4

    def fixed64(self, number: int) -> None:
        self.need(8)
        for i in range(8):
            self.p[self.size + i] = number >> (8 * i) & 0xFF
        self.size += 8

    def zeroes(self, count: int) -> None:
        self.need(count)
        for i in range(count):
            self.p[self.size + i] = 0
        self.size += count

    def digits(self, number: int) -> None:
        """Append *number* in decimal."""
        self.need(20)
        count = 1
        rest = number
        while rest >= 10:
            rest //= 10
            count += 1
        for i in range(count - 1, -1, -1):
            self.p[self.size + i] = 48 + number % 10
            number //= 10
        self.size += count


def _copy(to: bytearray, at: int, source: _Bytes, begin: int, count: int) -> None:
    if _COMPILED:
        auditspan_copy_short(to, at, source, begin, count)  # type: ignore[name-defined] # noqa: F821
    else:
        to[at : at + count] = source[begin : begin + count]


def _bucket_of(p: _Bytes, begin: int, end: int) -> int:
    """The bucket of a key."""
    if begin == end:
        return 0
    return ((end - begin) * 37 + p[begin + (end - begin) // 2] * 7 + p[end - 1] * 11 + p[begin] * 3) % 256


class Transcoder:
    """The walk, with the room that it works in. For one thread at a time; *run* as often as you like."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.heads = plan.heads
        self.leaf_version = plan.leaf_version
        self.attributes_per_span = plan.attributes_per_span
        self.events_per_span = min(plan.events_per_span, _MAX_CHILDREN)
        self.links_per_span = min(plan.links_per_span, _MAX_CHILDREN)
        self.spans_per_request = plan.spans_per_request
        self.min_messages, self.min_bytes_a_message = plan.min_messages, plan.min_bytes_a_message
        self.value_bytes = plan.value_bytes
        self.request_bytes = plan.request_bytes
        self.kinds = [_row_string(kind) for kind in plan.kinds]
        self.status_codes = [_row_string(code) for code in plan.status_codes]
        self.shapes = bytes(_SHAPES)
        self.shapes_p = self.shapes
        self.ones = 2**64 - 1
        self.nibbles = _NIBBLES
        self.nibble = self.nibbles
        self._make_room()
        self._learn_names(plan)
        self._learn_words(plan)

    def _make_room(self) -> None:
        self.texts, self.types, self.scratch = (_Buffer(4096) for _ in range(3))
        self._make_room_for_leaves()
        self.at, self.to = _longs(len(_SHAPES)), _longs(len(_SHAPES))
        self.value = array("Q", bytes(8 * len(_SHAPES)))
        self.key_begin, self.key_end = _longs(_MAX_ATTRIBUTES), _longs(_MAX_ATTRIBUTES)
        self.value_begin, self.value_end = _longs(_MAX_ATTRIBUTES), _longs(_MAX_ATTRIBUTES)
        self.text_at, self.text_size = _longs(_MAX_ATTRIBUTES), _longs(_MAX_ATTRIBUTES)
        self.kind, self.place = _longs(_MAX_ATTRIBUTES), _longs(_MAX_ATTRIBUTES)
        self.event_begin, self.event_end = _longs(_MAX_CHILDREN), _longs(_MAX_CHILDREN)
        self.link_begin, self.link_end = _longs(_MAX_CHILDREN), _longs(_MAX_CHILDREN)
        self.name_at, self.name_size = _longs(_MAX_CHILDREN), _longs(_MAX_CHILDREN)
        self.trace_at, self.span_at = _longs(_MAX_CHILDREN), _longs(_MAX_CHILDREN)
        self.dropped, self.flags = _longs(_MAX_CHILDREN), _longs(_MAX_CHILDREN)
        self.next_alike = _longs(_MAX_ATTRIBUTES)
        self.last_alike = _longs(_PLACES)
        self.body, self.tenant, self.received, self.id_begin = b"", b"", b"", b""
        self.received_p = self.id_begin_p = b""
        self.sequence = self.stream_size = 0
        self.resource_first = self.resource_dropped = self.resource_url = self.resource_rest = b""
        self.scope_first = self.scope_dropped = self.scope_url = self.scope_rest = b""
        self.service = ""
        self._forget()

    def _make_room_for_leaves(self) -> None:
        self.out, self.ends, self.hashes, self.identities, self.keys, self.numbers = (
            _Buffer(4096) for _ in range(6)
        )

    def _learn_names(self, plan: Plan) -> None:
        """Number the attribute names that matter, so that a key is looked up once."""
        columns = [*(plan.filled_from[column] for column in _COLUMNS), plan.http_status, plan.grpc_status]
        slots: dict[str, int] = {names.DELIVERY: 0}
        for name in (name for column in columns for name in column):
            slots.setdefault(name, len(slots))
        self.names = "".join(slots).encode()
        self.names_p = self.names
        self.name_begin, self.name_end = _longs(len(slots)), _longs(len(slots))
        self.next_name, self.first = _longs(len(slots)), _longs(len(slots))
        self.is_peer = _longs(len(slots))
        self.slots = len(slots)
        self.bucket = _longs(_BUCKETS)
        for i in range(_BUCKETS):
            self.bucket[i] = -1
        end = 0
        for name, slot in slots.items():
            begin, end = end, end + len(name.encode())
            self.name_begin[slot], self.name_end[slot] = begin, end
            place = _bucket_of(self.names, begin, end)
            self.next_name[slot] = self.bucket[place]
            self.bucket[place] = slot
            self.is_peer[slot] = name in plan.peer_attributes
        self.fill = array("q", [slots[name] for column in columns for name in column])
        self.fill_begin = _longs(_GROUPS + 1)
        for i, column in enumerate(columns):
            self.fill_begin[i + 1] = self.fill_begin[i] + len(column)

    def _learn_words(self, plan: Plan) -> None:
        self.actor_types = _row_strings(names.ACTOR_TYPES)
        self.origins = _row_strings(names.ORIGINS)
        self.outcomes = _row_strings(names.OUTCOMES)
        self.grpc_denied = _row_strings(plan.grpc_denied)
        self.grpc_ok = _row_strings(plan.grpc_ok)
        self.unknown = names.UNKNOWN.encode()
        self.unverified = names.UNVERIFIED.encode()
        self.success, self.failure = names.SUCCESS.encode(), names.FAILURE.encode()
        self.denied = names.DENIED.encode()

    def _forget(self) -> None:
        self.resource: Head | None = None
        self.scope: Head | None = None
        self.resource_known = self.scope_known = 0
        self.resource_counted = 0
        self.out.size = self.ends.size = self.hashes.size = self.identities.size = 0
        self.keys.size = self.numbers.size = 0
        self.record_id_at = self.stream_at = self.stream_to = 0
        self.key = self.key_service = b""
        self.key_at = self.key_to = 0
        self.odd: list[tuple[int, bytes]] = []
        self.services: list[str] = []
        self.spans = self.tagged = self.copies = self.bytes = 0
        self.groups = self.messages = 0

    def run(
        self,
        body: bytes,
        tenant: str,
        received: bytes,
        sequence_key: Callable[[bytes, bytes], bytes],
        *,
        instrumented: bool,
    ) -> Transcoded | None:
        """What the request *body* comes to; None when it is for the readable path.

        *received* is the column received_time; *sequence_key* names the sequence of a service and a stream
        (record.sequence_key, for the sender). Raises what *heads* raises.
        """
        self._forget()
        self.body, self.p = body, body
        self.size = len(body)
        self.tenant = tenant.encode()
        self.received, self.received_p = received, received
        self.id_begin = b"auditspan record id\x00" + self.tenant + b"\x00"
        self.id_begin_p = self.id_begin
        self.sequence_key = sequence_key
        self.instrumented = instrumented
        try:
            if self._group(0, self.size, 0) < 0 or self._is_too_much():
                return None
            return Transcoded(self._taken(), self.odd, self.services, self.spans, self.tagged, self.copies)
        finally:
            if self.out.capacity > _KEPT_BYTES:
                self._make_room_for_leaves()
            self._forget()
            self.body = self.p = b""

    def _taken(self) -> Leaves:
        return Leaves(
            bytes(self.out.p[: self.out.size]),
            array("Q", bytes(self.ends.p[: self.ends.size])),
            bytes(self.hashes.p[: self.hashes.size]),
            bytes(self.identities.p[: self.identities.size]),
            bytes(self.keys.p[: self.keys.size]),
            array("Q", bytes(self.numbers.p[: self.numbers.size])),
        )

    def _is_too_much(self) -> int:
        """Whether the readable path may refuse the request for how much is in it. *messages* is never too few."""
        allowed = self.size // self.min_bytes_a_message
        return (
            self.spans > self.spans_per_request
            or self.groups > self.spans_per_request
            or (self.messages > allowed and self.messages > self.min_messages)
        )

    # The walk. A position that is negative means: give the request up.

    def _varint(self, pos: int, end: int) -> int:
        """Read the varint at *pos* into self.number; the position after it."""
        value = 0
        shift = 0
        while pos < end and shift < 64:
            byte = self.p[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift == 63 and byte > 1:
                    return _GIVE_UP
                self.number = value
                return pos
            shift += 7
        return _GIVE_UP

    def _tag(self, pos: int, end: int) -> int:
        """Read the tag at *pos*, which is before *end*, into self.tag; the position after it."""
        byte = self.p[pos]
        if byte < 0x80:
            self.tag = byte
            return pos + 1 if byte >= 8 else _GIVE_UP
        after = self._varint(pos, end)
        if after < 0 or after - pos > 5 or self.number >> 32 != 0 or self.number < 8:
            return _GIVE_UP
        self.tag = self.number
        return after

    def _open(self, pos: int, end: int) -> int:
        """Read the length at *pos*; where its payload begins. self.stop is where that ends, not after *end*."""
        if pos >= end:
            return _GIVE_UP
        length = self.p[pos]
        if length < 0x80:
            pos += 1
        else:
            pos = self._varint(pos, end)
            if pos < 0 or self.number >> 31 != 0:
                return _GIVE_UP
            length = self.number
        if length > end - pos:
            return _GIVE_UP
        self.stop = pos + length
        return pos

    def _skip(self, wire_type: int, pos: int, end: int) -> int:
        """The position after the payload at *pos*."""
        if wire_type == 2:
            return self.stop if self._open(pos, end) >= 0 else _GIVE_UP
        if wire_type == 0:
            return self._varint(pos, end)
        if wire_type == 1:
            pos += 8
        elif wire_type == 5:
            pos += 4
        else:
            return _GIVE_UP
        return pos if pos <= end else _GIVE_UP

    def _group(self, pos: int, end: int, level: int) -> int:
        """Walk a request (level 0), a ResourceSpans (1) or a ScopeSpans (2)."""
        begin = pos
        while pos < end:
            pos = self._tag(pos, end)
            if pos < 0:
                return _GIVE_UP
            number = self.tag >> 3
            if number > (3 if level else 1):
                pos = self._skip(self.tag & 7, pos, end)
            else:
                pos = self._open(pos, end) if self.tag & 7 == 2 else _GIVE_UP
            if pos < 0:
                return _GIVE_UP
            if number > 3 or (level == 0 and number > 1):
                continue
            stop = self.stop
            self.messages += 1
            if number == (2 if level else 1):
                if level < 2:
                    self.groups += 1
                if level == 2:
                    self.scope_begin, self.scope_end = begin, end
                    done = self._span(pos, stop)
                elif level == 1:
                    self.resource_begin, self.resource_end = begin, end
                    self.scope_known = 0
                    done = self._group(pos, stop, 2)
                else:
                    self.resource_known = 0
                    done = self._group(pos, stop, 1)
                if done < 0:
                    return _GIVE_UP
            pos = stop
        return 0

    def _span(self, begin: int, end: int) -> int:
        """Judge a span, and take it when it is tagged."""
        self.spans += 1
        count = self._scan(begin, end)
        if count < 0:
            return _GIVE_UP
        if not self.is_tagged:
            self.messages += count
            return 0
        self.messages += 2 * count + 2
        start = self.out.size
        done = self._leaf(begin, end, count)
        if done == _GIVE_UP:
            return _GIVE_UP
        if done == _COPY:
            self.copies += 1
            return 0
        if done == _ODD:
            self.out.size = start
            self.messages += (end - begin) // 2
            content = self._alone(begin, end)
            if content is None:
                return _GIVE_UP
            self.odd.append((self.tagged, content))
            self.bytes += len(content) + len(self.received)
        else:
            self._close(start)
            self.tagged += 1
            if not self.resource_counted:
                self.resource_counted = 1
                self.services.append(self.service)
            self.bytes += self.out.size - start
        return 0 if self.bytes <= self.request_bytes else _GIVE_UP

    def _close(self, begin: int) -> None:
        """Complete the leaf that begins at *begin* of self.out: received_time, its hashes, and whose retry it may be."""
        end = self.out.size
        self.hashes.need(32)
        self.identities.need(32)
        if _DIRECT:
            if not auditspan_sha256_leaf(  # type: ignore[name-defined] # noqa: F821
                self.out.p,
                begin,
                end,
                self.received_p,
                len(self.received),
                self.identities.p,
                self.identities.size,
                self.hashes.p,
                self.hashes.size,
            ):
                raise MemoryError("OpenSSL can't compute a digest")
            self.identities.size += 16
            self.hashes.size += 32
        else:
            digest = hashlib.sha256(b"\x00" + bytes(self.out.p[begin:end]))
            self.identities.append(digest.digest()[:16])
            digest.update(self.received)
            self.hashes.append(digest.digest())
        self.out.append(self.received)
        self.ends.fixed64(self.out.size)
        self._claim()

    def _claim(self) -> None:
        """Note which record the leaf claims to be (Leaf.key, Leaf.number)."""
        # An empty string is its length alone.
        if self.sequence == 0 or self.stream_to - self.stream_at == 1:
            self.numbers.fixed64(0)
            self.keys.need(16)
            for i in range(16):
                self.keys.p[self.keys.size + i] = self.out.p[self.record_id_at + _uuid_place(i)]
            self.keys.size += 16
        else:
            self.numbers.fixed64(self.sequence)
            self.keys.append(self._sequence())

    def _sequence(self) -> bytes:
        """The name of the leaf's sequence. A request has few, and the leaves of one stand together."""
        begin, end = self.stream_at, self.stream_to
        if self.key_service is not self.resource_first or not _same(
            self.out.p, begin, end - begin, self.out.p, self.key_at, self.key_to
        ):
            stream = bytes(self.out.p[end - self.stream_size : end])
            self.key = self.sequence_key(self.service.encode(), stream)
            self.key_service = self.resource_first
            self.key_at, self.key_to = begin, end
        return self.key

    def _scan(self, pos: int, end: int) -> int:
        """Judge the framing and the attribute keys of a span; how many attributes it has. Sets self.is_tagged."""
        count = 0
        self.is_tagged = 0
        while pos < end:
            tag = self.p[pos]
            if tag == 0x4A:  # attributes
                pos = self._open(pos + 1, end)
                if pos < 0:
                    return _GIVE_UP
                stop = self.stop
                if self._key_value(pos, stop, count) < 0:
                    return _GIVE_UP
                if count < _MAX_ATTRIBUTES:
                    count += 1
                pos = stop
            elif tag < 0x80 and tag & 7 == 2 and tag >= 8:
                if self._open(pos + 1, end) < 0:
                    return _GIVE_UP
                pos = self.stop
            else:
                pos = self._tag(pos, end)
                if pos < 0 or self.tag >> 3 == 9:
                    return _GIVE_UP
                pos = self._skip(self.tag & 7, pos, end)
                if pos < 0:
                    return _GIVE_UP
        return count

    def _key_value(self, pos: int, end: int, index: int) -> int:
        """Judge the key of a KeyValue, and note where key and value lie; what does not fit is not noted."""
        begin = stop = pos
        if pos < end and self.p[pos] == 0x0A:  # key
            begin = self._open(pos + 1, end)
            if begin < 0:
                return _GIVE_UP
            pos = stop = self.stop
            if not self._is_utf8(begin, stop):
                return _GIVE_UP
            if (
                stop - begin >= 6
                and self.p[begin] == 0x61
                and self.p[begin + 1] == 0x75
                and self.p[begin + 2] == 0x64
                and self.p[begin + 3] == 0x69
                and self.p[begin + 4] == 0x74
                and self.p[begin + 5] == 0x2E
            ):
                self.is_tagged = 1
        value = value_end = pos
        if pos < end and self.p[pos] == 0x12:  # value
            value = self._open(pos + 1, end)
            if value < 0:
                return _GIVE_UP
            pos = value_end = self.stop
        if pos != end:
            return _GIVE_UP
        if index < _MAX_ATTRIBUTES:
            self.key_begin[index], self.key_end[index] = begin, stop
            self.value_begin[index], self.value_end[index] = value, value_end
        return 0

    def _is_utf8(self, pos: int, end: int) -> int:
        return _is_ascii(self.p, pos, end - pos) or self._is_long_utf8(pos, end)

    def _is_long_utf8(self, pos: int, end: int) -> int:
        """RFC 3629: no longer than needed, no surrogates, nothing above U+10FFFF."""
        while pos < end:
            byte = self.p[pos]
            pos += 1
            if byte < 0x80:
                continue
            low, high = 0x80, 0xBF
            if 0xC2 <= byte <= 0xDF:
                more = 1
            elif 0xE0 <= byte <= 0xEF:
                more = 2
                if byte == 0xE0:
                    low = 0xA0
                elif byte == 0xED:
                    high = 0x9F
            elif 0xF0 <= byte <= 0xF4:
                more = 3
                if byte == 0xF0:
                    low = 0x90
                elif byte == 0xF4:
                    high = 0x8F
            else:
                return 0
            if more > end - pos:
                return 0
            for i in range(more):
                byte = self.p[pos + i]
                if byte < low or byte > high:
                    return 0
                low, high = 0x80, 0xBF
            pos += more
        return 1

    # What the readable path gets.

    def _outside(self, begin: int, end: int) -> bytes | None:
        """The fields of a ResourceSpans or ScopeSpans but for what is below it.

        None when it is malformed: the walk has not come to its end yet.
        """
        parts: list[bytes] = []
        pos = start = begin
        while pos < end:
            at = pos
            pos = self._tag(pos, end)
            if pos < 0:
                return None
            below = self.tag == 0x12
            pos = self._skip(self.tag & 7, pos, end)
            if pos < 0:
                return None
            if below:
                if start < at:
                    parts.append(self.body[start:at])
                start = pos
        parts.append(self.body[start:end])
        return b"".join(parts)

    def _alone(self, begin: int, end: int) -> bytes | None:
        """A request with one span, and what it belongs to; None when that is malformed."""
        scope = self._outside(self.scope_begin, self.scope_end)
        resource = self._outside(self.resource_begin, self.resource_end)
        if scope is None or resource is None:
            return None
        scope += _field(b"\x12", self.body[begin:end])
        return _field(b"\x0a", resource + _field(b"\x12", scope))

    def _find_heads(self) -> int:
        """Have the columns of the resource and the scope at hand."""
        if not self.resource_known:
            fields = self._outside(self.resource_begin, self.resource_end)
            if fields is None:
                return _GIVE_UP
            self.messages += len(fields) // 2
            self.resource = self.heads(True, fields)
            self.resource_known = 1
            self.resource_counted = 0
            if self.resource is not None:
                self.service = self.resource.service
                self.resource_first, self.resource_dropped = self.resource.first, self.resource.dropped
                self.resource_url, self.resource_rest = self.resource.url, self.resource.rest
        if not self.scope_known:
            fields = self._outside(self.scope_begin, self.scope_end)
            if fields is None:
                return _GIVE_UP
            self.messages += len(fields) // 2
            self.scope = self.heads(False, fields)
            self.scope_known = 1
            if self.scope is not None:
                self.scope_first, self.scope_dropped = self.scope.first, self.scope.dropped
                self.scope_url, self.scope_rest = self.scope.url, self.scope.rest
        return _ODD if self.resource is None or self.scope is None else 0

    # One tagged span.

    def _leaf(self, begin: int, end: int, count: int) -> int:
        """Append the leaf of a tagged span to self.out, but for its last column; 0, or _COPY, _ODD or _GIVE_UP."""
        if count >= _MAX_ATTRIBUTES or count > self.attributes_per_span:
            return _ODD
        if self._find_names(count) < 0:
            return _ODD
        index = self.first[0]
        if index >= 0:  # audit.delivery
            if self._string(index) < 0:
                return _ODD
            if self._is_spool():
                return _COPY
        self.events = self.links = 0
        heads = self._find_heads()
        if heads < 0:
            return heads
        if self._fields(begin, end, _SPAN, 16) < 0 or self._odd_values() or self._long_texts():
            return _ODD
        self.texts.size = self.types.size = 0
        if self._map(0, count) < 0 or self._beginning() < 0 or self._who_did_what() < 0:
            return _ODD
        self._ending()
        if self._events(count) < 0 or self._links(count) < 0:
            return _ODD
        return 0

    def _find_names(self, count: int) -> int:
        """Note the first attribute of each name that matters; _ODD when a key repeats."""
        for i in range(self.slots):
            self.first[i] = -1
        if self._repeats(0, count) < 0:
            return _ODD
        for i in range(count):
            begin, end = self.key_begin[i], self.key_end[i]
            slot = self.bucket[self.place[i]]
            while slot >= 0:
                if _same(
                    self.p, begin, end - begin, self.names_p, self.name_begin[slot], self.name_end[slot]
                ):
                    self.first[slot] = i
                    break
                slot = self.next_name[slot]
        return 0

    def _repeats(self, low: int, high: int) -> int:
        """_ODD when two of the attributes from *low* to *high* have one key. Notes the bucket of each."""
        for i in range(_PLACES):
            self.last_alike[i] = -1
        for i in range(low, high):
            begin, end = self.key_begin[i], self.key_end[i]
            self.place[i] = _bucket_of(self.p, begin, end)
            place = self.place[i] % _PLACES
            other = self.last_alike[place]
            self.next_alike[i] = other
            self.last_alike[place] = i
            while other >= 0:
                if _same(self.p, begin, end - begin, self.p, self.key_begin[other], self.key_end[other]):
                    return _ODD
                other = self.next_alike[other]
        return 0

    def _string(self, index: int) -> int:
        """Where the text of a value that is one string begins, up to self.stop; _ODD when it is something else."""
        pos, end = self.value_begin[index], self.value_end[index]
        if pos < end and self.p[pos] == 0x0A:
            pos = self._open(pos + 1, end)
            if pos >= 0 and self.stop == end and self._is_utf8(pos, end):
                self.start = pos
                return pos
        return _ODD

    def _is_spool(self) -> int:
        return _same(self.p, self.start, self.stop - self.start, b"spool", 0, 5)

    def _fields(self, pos: int, end: int, base: int, last: int) -> int:
        """Note the fields of a message at *base*: at, to and value. Attributes and children are noted in their order.

        *pos* and *end* bound a message whose framing may not have been judged. _ODD for all that is not plain.
        """
        for i in range(base, base + last + 1):
            self.at[i] = self.to[i] = 0
            self.value[i] = 0
        seen = 0
        while pos < end:
            pos = self._tag(pos, end)
            if pos < 0:
                return _ODD
            number, wire_type = self.tag >> 3, self.tag & 7
            if number > last:
                pos = self._skip(wire_type, pos, end)
                if pos < 0:
                    return _ODD
                continue
            shape = self.shapes_p[base + number]
            if shape & 7 != wire_type:
                return _ODD
            if shape & 16 == 0:
                if seen >> number & 1:
                    return _ODD
                seen |= 1 << number
            pos = self._field(pos, end, base + number, shape)
            if pos < 0:
                return _ODD
        return 0

    def _field(self, pos: int, end: int, place: int, shape: int) -> int:
        """Note one field; the position after it."""
        if shape & 7 == 2:
            begin = self._open(pos, end)
            if begin < 0:
                return _ODD
            pos = self.stop
            if shape & 16:
                return pos if self._child(begin, pos, place) >= 0 else _ODD
            if shape & 8 and not self._is_utf8(begin, pos):
                return _ODD
            self.at[place], self.to[place] = begin, pos
            return pos
        if shape & 7 == 0:
            pos = self._varint(pos, end)
            if pos < 0 or self.number >> 32 != 0:
                return _ODD
            self.value[place] = self.number
            return pos
        width = 8 if shape & 7 == 1 else 4
        if width > end - pos:
            return _ODD
        number = 0
        for i in range(width - 1, -1, -1):
            number = number << 8 | self.p[pos + i]
        self.value[place] = number
        return pos + width

    def _child(self, begin: int, end: int, place: int) -> int:
        if place == 9:  # Span.attributes, noted by _scan
            return 0
        if place == 11:  # Span.events
            if self.events >= self.events_per_span:
                return _ODD
            self.messages += (end - begin) // 2 + 1
            self.event_begin[self.events], self.event_end[self.events] = begin, end
            self.events += 1
            return 0
        if place == 13:  # Span.links
            if self.links >= self.links_per_span:
                return _ODD
            self.messages += (end - begin) // 2 + 1
            self.link_begin[self.links], self.link_end[self.links] = begin, end
            self.links += 1
            return 0
        # Event.attributes, Link.attributes
        if self.high >= _MAX_ATTRIBUTES or self._key_value(begin, end, self.high) < 0:
            return _ODD
        self.high += 1
        return 0

    def _odd_values(self) -> int:
        """Whether an id is invalid, a time can't stand in its column, or an enum number has no name."""
        if self.to[1] - self.at[1] != 16 or self.to[2] - self.at[2] != 8:
            return 1
        if self._is_zero(self.at[1], 16) or self._is_zero(self.at[2], 8):
            return 1
        if self.to[4] != self.at[4] and self.to[4] - self.at[4] != 8:
            return 1
        if self.value[7] >> 63 or self.value[8] < self.value[7]:
            return 1
        kind = self.value[6]
        if kind >= len(self.kinds):
            return 1
        if self._fields(self.at[15], self.to[15], _STATUS, 3) < 0:
            return 1
        code = self.value[_STATUS + 3]
        return code >= len(self.status_codes)

    def _long_texts(self) -> int:
        """Whether trace_state, name or the status' message is over the limit."""
        return (
            self.to[3] - self.at[3] > self.value_bytes
            or self.to[5] - self.at[5] > self.value_bytes
            or self.to[_STATUS + 2] - self.at[_STATUS + 2] > self.value_bytes
        )

    def _is_zero(self, begin: int, count: int) -> int:
        bits = 0
        for i in range(count):
            bits |= self.p[begin + i]
        return bits == 0

    # Attributes.

    def _map(self, low: int, high: int) -> int:
        """Append the map of some attributes' texts to self.texts, and that of their types to self.types."""
        if high - low > self.attributes_per_span:
            return _ODD
        self.texts.varint(high - low)
        place = self.types.size
        self.types.byte(0)
        count = 0
        for i in range(low, high):
            begin = self.key_begin[i]
            size = self.key_end[i] - begin
            self.texts.text(self.p, begin, size)
            kind = self._text(i)
            if kind < 0 or self.text_size[i] > self.value_bytes or size > self.value_bytes:
                return _ODD
            self.kind[i] = kind
            if kind != _STRING:
                count += 1
                self.types.text(self.p, begin, size)
                self.types.append(_TYPE_NAMES[kind])
        if count > 0x7F:
            return _ODD
        self.types.p[place] = count
        return 0

    def _text(self, index: int) -> int:
        """Append the text of one value to self.texts, note where, and give its type."""
        pos, end = self.value_begin[index], self.value_end[index]
        if pos < end and self.p[pos] == 0x0A:  # string_value
            begin = self._string(index)
            if begin < 0:
                return _ODD
            self.texts.varint(end - begin)
            self.text_at[index], self.text_size[index] = self.texts.size, end - begin
            self.texts.put(self.p, begin, end - begin)
            return _STRING
        self.scratch.size = 0
        if pos == end:
            kind = _EMPTY
        elif self.p[pos] == 0x21:  # double_value
            if end - pos != 9:
                return _ODD
            self.scratch.append(_double_text(self.body, pos + 1))
            kind = _DOUBLE if self.scratch.size else _ODD
        elif self.p[pos] == 0x2A:  # array_value
            self.messages += (end - pos) // 2
            begin = self._open(pos + 1, end)
            kind = _ARRAY if begin >= 0 and self.stop == end and self._array(begin, end) >= 0 else _ODD
        else:
            kind = self._scalar(pos, end)
        if kind < 0:
            return _ODD
        self.texts.varint(self.scratch.size)
        self.text_at[index], self.text_size[index] = self.texts.size, self.scratch.size
        self.texts.put(self.scratch.p, 0, self.scratch.size)
        return kind

    def _scalar(self, pos: int, end: int) -> int:
        """Append the text of a bool or an int to self.scratch, and give its type."""
        tag = self.p[pos]
        if tag not in (0x10, 0x18) or self._varint(pos + 1, end) != end:
            return _ODD
        if tag == 0x10:
            self.scratch.append(b"true" if self.number != 0 else b"false")
            return _BOOL
        if self.number >> 63:
            self.scratch.byte(45)
            self.scratch.digits((self.number ^ self.ones) + 1)
        else:
            self.scratch.digits(self.number)
        return _INT

    def _array(self, pos: int, end: int) -> int:
        """Append an array of strings, bools and ints to self.scratch, as JSON; _ODD for any other."""
        self.scratch.byte(91)
        while pos < end:
            if self.p[pos] != 0x0A:
                return _ODD
            pos = self._open(pos + 1, end)
            if pos < 0:
                return _ODD
            stop = self.stop
            if self.scratch.size > 1:
                self.scratch.byte(44)
            if pos == stop:
                return _ODD
            if self.p[pos] == 0x0A:
                pos = self._open(pos + 1, stop)
                if pos < 0 or self.stop != stop or not self._is_utf8(pos, stop):
                    return _ODD
                if self._json_string(pos, stop) < 0:
                    return _ODD
            elif self._scalar(pos, stop) < 0:
                return _ODD
            pos = stop
        self.scratch.byte(93)
        return 0

    def _json_string(self, pos: int, end: int) -> int:
        self.scratch.byte(34)
        while pos < end:
            byte = self.p[pos]
            if byte < 0x20:
                return _ODD
            if byte in (34, 92):
                self.scratch.byte(92)
            self.scratch.byte(byte)
            pos += 1
        self.scratch.byte(34)
        return 0

    # Columns, in their order.

    def _beginning(self) -> int:
        """Append the columns up to record_id."""
        self.out.byte(self.leaf_version)
        self.out.fixed64(self.value[7])
        self.out.fixed64(self.value[8] - self.value[7])
        self.out.put(self.p, self.at[1], 16)
        self.out.put(self.p, self.at[2], 8)
        if self.to[4] != self.at[4]:
            self.out.put(self.p, self.at[4], 8)
        else:
            self.out.zeroes(8)
        self._span_id(self._said(_PARENT))
        self.out.text(self.p, self.at[3], self.to[3] - self.at[3])
        self.out.text(self.p, self.at[5], self.to[5] - self.at[5])
        self.out.append(self.kinds[self.value[6]])
        self.out.append(self.status_codes[self.value[_STATUS + 3]])
        self.out.text(self.p, self.at[_STATUS + 2], self.to[_STATUS + 2] - self.at[_STATUS + 2])
        self.out.append(self.resource_first)
        self.out.text(self.tenant, 0, len(self.tenant))
        return 0

    def _ending(self) -> None:
        """Append the columns from scope_name to the last of the scope's attributes."""
        self.out.append(self.scope_first)
        self.out.fixed32(self.value[16])
        self.out.fixed32(self.value[10])
        self.out.fixed32(self.value[12])
        self.out.fixed32(self.value[14])
        self.out.append(self.resource_dropped)
        self.out.append(self.scope_dropped)
        self.out.append(self.resource_url)
        self.out.append(self.scope_url)
        self.out.put(self.texts.p, 0, self.texts.size)
        self.out.put(self.types.p, 0, self.types.size)
        self.out.append(self.resource_rest)
        self.out.append(self.scope_rest)

    def _who_did_what(self) -> int:
        """Append the columns from record_id to sequence_number."""
        self.record_id_at = self.out.size
        self._record_id(self._said(_RECORD_ID))
        self._said_or(_ACTOR_ID, self.unknown)
        if self._word(_ACTOR_TYPE, self.actor_types, self.unknown) < 0:
            return _ODD
        if not self.instrumented:
            self.out.text(self.unverified, 0, len(self.unverified))
        elif self._word(_ACTOR_ORIGIN, self.origins, self.unverified) < 0:
            return _ODD
        if self._roles() < 0:
            return _ODD
        self._said_or(_ACTOR_SESSION, b"")
        self._said_or(_ACTOR_AUTH_METHOD, b"")
        self._said_or(_ACTOR_DELEGATE, b"")
        self._said_or(_REASON, b"")
        if self._action() < 0:
            return _ODD
        if self._said(_OUTCOME) >= 0:
            if self._word(_OUTCOME, self.outcomes, self.unknown) < 0:
                return _ODD
        else:
            http = self._there(_HTTP_STATUS)
            if http >= 0 and not _is_ascii(self.texts.p, self.text_at[http], self.text_size[http]):
                return _ODD
            self._append_text(self._outcome())
        self._said_or(_TARGET_TYPE, b"")
        self._said_or(_TARGET_ID, b"")
        self._client_address()
        self._sequence_stream(self._said(_SEQUENCE_STREAM))
        self._sequence_number(self._said(_SEQUENCE_NUMBER))
        return 0

    def _said(self, column: int) -> int:
        """The attribute that fills *column*, or -1: the first that is there and not empty."""
        for i in range(self.fill_begin[column], self.fill_begin[column + 1]):
            index = self.first[self.fill[i]]
            if index >= 0 and self.text_size[index] > 0:
                return index
        return -1

    def _there(self, column: int) -> int:
        """The attribute that is there of those that *column* names, or -1."""
        for i in range(self.fill_begin[column], self.fill_begin[column + 1]):
            if self.first[self.fill[i]] >= 0:
                return self.first[self.fill[i]]
        return -1

    def _said_or(self, column: int, otherwise: bytes) -> None:
        index = self._said(column)
        if index < 0:
            self.out.text(otherwise, 0, len(otherwise))
        else:
            self.out.text(self.texts.p, self.text_at[index], self.text_size[index])

    def _append_text(self, text: bytes) -> None:
        self.out.text(text, 0, len(text))

    def _word(self, column: int, words: bytes, otherwise: bytes) -> int:
        """Append what fills *column* when it is one of *words*, whatever its case; _ODD outside ASCII."""
        index = self._said(column)
        if index >= 0:
            begin, size = self.text_at[index], self.text_size[index]
            if not _is_ascii(self.texts.p, begin, size):
                return _ODD
            at = _find_word(words, len(words), self.texts.p, begin, size, 1)
            if at >= 0:
                self.out.text(words, at, size)
                return 0
        self.out.text(otherwise, 0, len(otherwise))
        return 0

    def _is_one_of(self, index: int, words: bytes) -> int:
        return _find_word(words, len(words), self.texts.p, self.text_at[index], self.text_size[index], 0) >= 0

    def _action(self) -> int:
        index = self._said(_ACTION)
        if index < 0:
            self.out.byte(0)
            return 0
        begin, size = self.text_at[index], self.text_size[index]
        if not _is_ascii(self.texts.p, begin, size):
            return _ODD
        self.out.varint(size)
        self.out.need(size)
        for i in range(begin, begin + size):
            byte = self.texts.p[i]
            self.out.byte(byte - 32 if 97 <= byte <= 122 else byte)
        return 0

    def _outcome(self) -> bytes:
        """The outcome when nobody named it: by its code, then by the span's status."""
        http, grpc = self._there(_HTTP_STATUS), self._there(_GRPC_STATUS)
        digits = 0  # the first digit of a status of three digits
        if http >= 0 and self.text_size[http] == 3:
            place = self.text_at[http]
            digits = self.texts.p[place]
            if digits == 52 and self.texts.p[place + 1] == 48 and self.texts.p[place + 2] in (49, 51):
                return self.denied  # 401, 403
            for i in range(3):
                if self.texts.p[place + i] < 48 or self.texts.p[place + i] > 57:
                    digits = 0
        if grpc >= 0 and self._is_one_of(grpc, self.grpc_denied):
            return self.denied
        if self.value[_STATUS + 3] == 2:
            return self.failure
        if digits != 0:
            return self.failure if digits >= 52 else self.success
        if grpc >= 0 and self.text_size[grpc] > 0:
            return self.success if self._is_one_of(grpc, self.grpc_ok) else self.failure
        return self.success if self.value[_STATUS + 3] == 1 else self.unknown

    def _client_address(self) -> None:
        """Who called. The peer of a span that calls others is the server that it called, not its client."""
        called = self.value[6] in (2, 5)
        for i in range(self.fill_begin[_CLIENT_ADDRESS], self.fill_begin[_CLIENT_ADDRESS + 1]):
            slot = self.fill[i]
            index = self.first[slot]
            if index >= 0 and self.text_size[index] > 0 and (called or not self.is_peer[slot]):
                self.out.text(self.texts.p, self.text_at[index], self.text_size[index])
                break
        else:
            self.out.byte(0)

    def _roles(self) -> int:
        for i in range(self.fill_begin[_ACTOR_ROLES], self.fill_begin[_ACTOR_ROLES + 1]):
            index = self.first[self.fill[i]]
            if index < 0 or self.text_size[index] == 0:
                continue
            place, size = self.text_at[index], self.text_size[index]
            if size == 2 and self.texts.p[place] == 91 and self.texts.p[place + 1] == 93:
                continue
            if self.kind[index] == _ARRAY:
                return self._role_list(self.value_begin[index], self.value_end[index])
            self.out.byte(1)
            self.out.text(self.texts.p, place, size)
            return 0
        self.out.byte(0)
        return 0

    def _role_list(self, pos: int, end: int) -> int:
        """Append the texts of an array that `_array` took."""
        begin = pos = self._open(pos + 1, end)
        count = 0
        while pos < end:
            self._open(pos + 1, end)
            pos = self.stop
            count += 1
        if count > self.attributes_per_span:
            return _ODD
        self.out.varint(count)
        pos = begin
        while pos < end:
            pos = self._open(pos + 1, end)
            stop = self.stop
            if self.p[pos] == 0x0A:
                pos = self._open(pos + 1, stop)
                self.out.text(self.p, pos, stop - pos)
            else:
                self.scratch.size = 0
                self._scalar(pos, stop)
                self.out.text(self.scratch.p, 0, self.scratch.size)
            pos = stop
        return 0

    def _record_id(self, index: int) -> None:
        """Append the sender's UUID, or one that every copy of the same span gets (RFC 9562, section 5.8)."""
        self.out.zeroes(16)
        if index < 0 or self.text_size[index] != 36 or not self._uuid(self.text_at[index]):
            self._derive_record_id()

    def _derive_record_id(self) -> None:
        if _DIRECT:
            self.scratch.size = 0
            self.scratch.need(32)
            if not auditspan_sha256_id(  # type: ignore[name-defined] # noqa: F821
                self.id_begin_p, len(self.id_begin), self.p, self.at[1], 16, self.at[2], 8, self.scratch.p
            ):
                raise MemoryError("OpenSSL can't compute a digest")
        else:
            ids = self.body[self.at[1] : self.at[1] + 16] + self.body[self.at[2] : self.at[2] + 8]
            self.scratch.size = 0
            self.scratch.append(hashlib.sha256(self.id_begin + ids).digest())
        for i in range(16):
            byte = self.scratch.p[i]
            if i == 6:
                byte = byte & 0x0F | 0x80  # version 8
            elif i == 8:
                byte = byte & 0x3F | 0x80  # variant 10
            self.out.p[self.out.size - 16 + _uuid_place(i)] = byte

    def _uuid(self, place: int) -> int:
        """Fill the 16 bytes just appended from 36 characters of self.texts; 0 when they are no UUID."""
        count = 0
        high = 255
        for i in range(36):
            byte = self.texts.p[place + i]
            if i == 8 or i == 13 or i == 18 or i == 23:  # noqa: PLR1714 - compiled to four comparisons
                if byte != 45:
                    return 0
                continue
            digit = self.nibble[byte]
            if digit > 15:
                return 0
            if count & 1:
                self.out.p[self.out.size - 16 + _uuid_place(count >> 1)] = high << 4 | digit
            high = digit
            count += 1
        return 1

    def _span_id(self, index: int) -> None:
        """Append a span id that came as 16 hex digits, zeroes for anything else."""
        bits = 255
        place = 0
        if index >= 0 and self.text_size[index] == 16:
            place = self.text_at[index]
            bits = 0
            for i in range(place, place + 16):
                bits |= self.nibble[self.texts.p[i]]
        if bits > 15:
            self.out.zeroes(8)
        else:
            for i in range(place, place + 16, 2):
                self.out.byte(self.nibble[self.texts.p[i]] << 4 | self.nibble[self.texts.p[i + 1]])

    def _sequence_stream(self, index: int) -> None:
        self.stream_at = self.out.size
        self.stream_size = self.text_size[index] if index >= 0 else 0
        self.out.text(self.texts.p, self.text_at[index] if index >= 0 else 0, self.stream_size)
        self.stream_to = self.out.size

    def _sequence_number(self, index: int) -> None:
        """Append decimal digits as a number; 0 when they are none, or too many."""
        number = 0
        if index >= 0 and self.text_size[index] <= 20:
            for i in range(self.text_at[index], self.text_at[index] + self.text_size[index]):
                digit = self.texts.p[i] - 48
                if digit < 0 or digit > 9 or number > (self.ones - digit) // 10:
                    number = 0
                    break
                number = number * 10 + digit
        self.sequence = number
        self.out.fixed64(number)

    # Events and links: of each column, all its elements.

    def _events(self, count: int) -> int:
        """Append the columns of the events. Their attributes are noted from *count* on."""
        self.out.varint(self.events)
        self.texts.size = self.types.size = self.scratch.size = 0
        self.high = count
        for i in range(self.events):
            low = self.high
            if self._fields(self.event_begin[i], self.event_end[i], _EVENT, 4) < 0:
                return _ODD
            if self.value[_EVENT + 1] >> 63:
                return _ODD
            self.out.fixed64(self.value[_EVENT + 1])
            self.name_at[i], self.name_size[i] = (
                self.at[_EVENT + 2],
                self.to[_EVENT + 2] - self.at[_EVENT + 2],
            )
            self.dropped[i] = self.value[_EVENT + 4]
            if self.name_size[i] > self.value_bytes:
                return _ODD
            if self._repeats(low, self.high) < 0 or self._map(low, self.high) < 0:
                return _ODD
        self.out.varint(self.events)
        for i in range(self.events):
            self.out.text(self.p, self.name_at[i], self.name_size[i])
        self._maps(self.events)
        return 0

    def _links(self, count: int) -> int:
        """Append the columns of the links. Their attributes are noted from *count* on."""
        self.texts.size = self.types.size = 0
        self.high = count
        for i in range(self.links):
            low = self.high
            if self._fields(self.link_begin[i], self.link_end[i], _LINK, 6) < 0:
                return _ODD
            if self.to[_LINK + 1] - self.at[_LINK + 1] != 16 or self.to[_LINK + 2] - self.at[_LINK + 2] != 8:
                return _ODD
            self.trace_at[i], self.span_at[i] = self.at[_LINK + 1], self.at[_LINK + 2]
            self.name_at[i], self.name_size[i] = self.at[_LINK + 3], self.to[_LINK + 3] - self.at[_LINK + 3]
            self.dropped[i], self.flags[i] = self.value[_LINK + 5], self.value[_LINK + 6]
            if self.name_size[i] > self.value_bytes:
                return _ODD
            if self._repeats(low, self.high) < 0 or self._map(low, self.high) < 0:
                return _ODD
        self.out.varint(self.links)
        for i in range(self.links):
            self.out.put(self.p, self.trace_at[i], 16)
        self.out.varint(self.links)
        for i in range(self.links):
            self.out.put(self.p, self.span_at[i], 8)
        self.out.varint(self.links)
        for i in range(self.links):
            self.out.text(self.p, self.name_at[i], self.name_size[i])
        self.out.varint(self.links)
        for i in range(self.links):
            self.out.fixed32(self.flags[i])
        self._maps(self.links)
        return 0

    def _maps(self, count: int) -> None:
        """Append attributes, attribute_types and dropped_attributes_count of *count* events or links."""
        self.out.varint(count)
        self.out.put(self.texts.p, 0, self.texts.size)
        self.out.varint(count)
        self.out.put(self.types.p, 0, self.types.size)
        self.out.varint(count)
        for i in range(count):
            self.out.fixed32(self.dropped[i])


def _longs(count: int) -> array[int]:
    return array("q", bytes(8 * count))


def _row_string(text: str) -> bytes:
    data = text.encode()
    assert len(data) < 0x80  # noqa: S101 - our own short words
    return bytes([len(data)]) + data


def _row_strings(words: Iterable[str]) -> bytes:
    return b"".join(_row_string(word) for word in words)


def _field(tag: bytes, content: bytes) -> bytes:
    """A length-delimited field."""
    length = _Buffer(10)
    length.varint(len(content))
    return tag + bytes(length.p[: length.size]) + content


def _same(p: _Bytes, begin: int, size: int, q: _Bytes, low: int, high: int) -> int:
    if size != high - low:
        return 0
    if _COMPILED:
        return auditspan_equal(p, begin, q, low, size)  # type: ignore[name-defined, no-any-return] # noqa: F821
    return p[begin : begin + size] == q[low:high]


def _is_ascii(p: _Bytes, begin: int, size: int) -> int:
    if _COMPILED:
        return auditspan_is_ascii(p, begin, begin + size)  # type: ignore[name-defined, no-any-return] # noqa: F821
    return bytes(p[begin : begin + size]).isascii()


def _find_word(words: bytes, end: int, p: _Bytes, begin: int, size: int, fold: int) -> int:
    """Where in *words*, strings behind their lengths, a text stands; -1 when it does not. *fold* ignores case."""
    at = 0
    while at < end:
        length = words[at]
        at += 1
        if length == size:
            i = 0
            while i < size:
                byte = p[begin + i]
                if fold and 65 <= byte <= 90:
                    byte += 32
                if byte != words[at + i]:
                    break
                i += 1
            if i == size:
                return at
        at += length
    return -1


def _uuid_place(i: int) -> int:
    """Where byte *i* of a UUID stands in RowBinary: two UInt64, the high one first, each little endian."""
    return 7 - i if i < 8 else 23 - i


def _double_text(body: bytes, begin: int) -> bytes:
    """The shortest digits of a double; empty when it is not finite."""
    number: float = struct.unpack_from("<d", body, begin)[0]
    return repr(number).encode() if number - number == 0 else b""
