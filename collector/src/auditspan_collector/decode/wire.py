"""Judge protobuf's wire format byte by byte, and say exactly where it is wrong.

protobuf's own parsers answer "Error parsing message" and take a known field of the wrong wire type for an
unknown one. A sender with a broken exporter needs the place, and a wrong type must not look like an absent value.
So this module judges; upb only builds objects, from bytes that passed.

A message is a row of fields, each a tag (field number, wire type) and a payload. The wire type says how long the
payload is, so an unknown field can be skipped. Unknown groups (wire types 3 and 4) are skipped as upb skips
them: they must be closed by their own number. Shapes come from the descriptors of opentelemetry-proto.
Reference: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from google.protobuf.descriptor import FieldDescriptor

from auditspan_collector.errors import TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import Descriptor

VARINT: Final = 0
I64: Final = 1
LEN: Final = 2
START_GROUP: Final = 3
END_GROUP: Final = 4
I32: Final = 5
_WIRE_TYPE_NAMES: Final = ("VARINT", "I64", "LEN", "START_GROUP", "END_GROUP", "I32", "6", "7")

# Messages or groups inside the outermost message: protobuf's own default, so that no sender notices it.
MAX_DEPTH: Final = 100

# Messages in a request. No exporter writes them as densely as one in eight bytes, an attribute with a one-letter key
# and value taking ten; whoever sends more wants to have them walked, at a thousand times the cost of sending them.
SPANS_LIMIT: Final = 1 << 16  # in a request, unless its receiver says otherwise
MIN_MESSAGES: Final = 1 << 19
MIN_BYTES_A_MESSAGE: Final = 8

_WIRE_TYPE_OF: Final = {
    FieldDescriptor.TYPE_DOUBLE: I64,
    FieldDescriptor.TYPE_FIXED64: I64,
    FieldDescriptor.TYPE_SFIXED64: I64,
    FieldDescriptor.TYPE_FLOAT: I32,
    FieldDescriptor.TYPE_FIXED32: I32,
    FieldDescriptor.TYPE_SFIXED32: I32,
    FieldDescriptor.TYPE_STRING: LEN,
    FieldDescriptor.TYPE_BYTES: LEN,
    FieldDescriptor.TYPE_MESSAGE: LEN,
    FieldDescriptor.TYPE_INT32: VARINT,
    FieldDescriptor.TYPE_INT64: VARINT,
    FieldDescriptor.TYPE_UINT32: VARINT,
    FieldDescriptor.TYPE_UINT64: VARINT,
    FieldDescriptor.TYPE_SINT32: VARINT,
    FieldDescriptor.TYPE_SINT64: VARINT,
    FieldDescriptor.TYPE_BOOL: VARINT,
    FieldDescriptor.TYPE_ENUM: VARINT,
}


class Malformed(Exception):  # noqa: N818 - becomes InvalidRequest at the door of the package
    """Bytes that are not what their place asks for. *path* is filled from the inside out while it rises."""

    def __init__(self, problem: str, offset: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.offset = offset
        self.path: list[str] = []


class Budget:
    """How many messages of a request may still be looked at."""

    __slots__ = ("_allowed", "_left")

    def __init__(self, body: bytes) -> None:
        self._allowed = self._left = max(MIN_MESSAGES, len(body) // MIN_BYTES_A_MESSAGE)

    def spend(self, messages: int = 1) -> None:
        """Raise TooLarge when there are more than a request may hold."""
        self._left -= messages
        if self._left < 0:
            raise TooLarge(
                f"the request holds more than {self._allowed} messages (attributes, events, links and the like); "
                "send smaller batches"
            )


@dataclass(slots=True)
class Field:
    """A known field: its wire type, whether it repeats, and what its payload must be."""

    name: str
    wire_type: int
    repeated: bool
    utf8: bool
    shape: Shape | None


@dataclass(slots=True)
class Shape:
    """A message type: its known fields by number."""

    name: str
    fields: dict[int, Field] = field(default_factory=dict)


def shape_of(descriptor: Descriptor, known: dict[str, Shape] | None = None) -> Shape:
    """The shape of *descriptor* and, beneath it, of every message it can hold (AnyValue holds itself)."""
    known = {} if known is None else known
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    shape = known[descriptor.full_name] = Shape(descriptor.name)
    for one in descriptor.fields:
        wire_type = _WIRE_TYPE_OF[one.type]
        if one.is_repeated and wire_type != LEN:
            # Packed and unpacked forms are one field to protobuf. OTLP's traces have no such field; when they
            # get one, this module has to learn both forms, and says so at import instead of refusing requests.
            raise NotImplementedError(f"{one.full_name} is a repeated scalar")
        shape.fields[one.number] = Field(
            name=one.name,
            wire_type=wire_type,
            repeated=one.is_repeated,
            utf8=one.type == FieldDescriptor.TYPE_STRING,
            shape=shape_of(one.message_type, known) if one.message_type else None,
        )
    return shape


def varint(body: bytes, pos: int, end: int) -> tuple[int, int]:
    """The varint at *pos* and the position after it; at most ten bytes, cut to 64 bits as protobuf does."""
    value = shift = 0
    for at in range(pos, min(pos + 10, end)):
        byte = body[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
        shift += 7
    raise Malformed("a varint of more than ten bytes" if end - pos >= 10 else "truncated varint", pos)


def tag(body: bytes, pos: int, end: int) -> tuple[int, int, int]:
    """Field number, wire type and the position after the tag at *pos*, which is of a field."""
    number, wire_type, after = _tag_in_group(body, pos, end)
    if wire_type == END_GROUP:
        raise Malformed("the end of a group that did not begin", pos)
    return number, wire_type, after


def _tag_in_group(body: bytes, pos: int, end: int) -> tuple[int, int, int]:
    value, after = varint(body, pos, end)
    number, wire_type = value >> 3, value & 7
    if not 0 < number < 1 << 29 or after - pos > 5:
        raise Malformed(f"{number} is no field number", pos)
    if wire_type > I32:
        raise Malformed(f"{wire_type} is no wire type", pos)
    return number, wire_type, after


def span_of(body: bytes, pos: int, end: int) -> tuple[int, int]:
    """Begin and end of the payload whose length stands at *pos*."""
    length, begin = varint(body, pos, end)
    if length > end - begin:
        raise Malformed(f"length {length}, but only {end - begin} bytes are left", pos)
    return begin, begin + length


def skip(  # noqa: PLR0917 - where and what, as everywhere in this walk
    body: bytes, pos: int, end: int, number: int, wire_type: int, depth: int
) -> int:
    """The position after the payload at *pos* of field *number*."""
    if wire_type == LEN:
        return span_of(body, pos, end)[1]
    if wire_type == VARINT:
        return varint(body, pos, end)[1]
    if wire_type in (I64, I32):
        width = 8 if wire_type == I64 else 4
        if end - pos < width:
            raise Malformed(f"needs {width} bytes, but only {end - pos} are left", pos)
        return pos + width
    return _skip_group(body, pos, end, number, depth + 1)


def _skip_group(body: bytes, pos: int, end: int, group: int, depth: int) -> int:
    check_depth(depth, pos)
    while pos < end:
        number, wire_type, after = _tag_in_group(body, pos, end)
        if wire_type == END_GROUP:
            if number != group:
                raise Malformed(f"group {group} is closed as {number}", pos)
            return after
        pos = skip(body, after, end, number, wire_type, depth)
    raise Malformed(f"group {group} is not closed", pos)


def check_depth(depth: int, pos: int) -> None:
    """Raise when a message that begins at *pos* lies deeper than protobuf follows."""
    if depth > MAX_DEPTH:
        raise Malformed(f"nested more than {MAX_DEPTH} messages deep", pos)


def check_utf8(body: bytes, begin: int, end: int) -> str:
    """The text between *begin* and *end*; the offset of an error is that of the first wrong byte."""
    try:
        return body[begin:end].decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8: {error.reason}", begin + error.start) from None


def check_wire_type(known: Field, wire_type: int, pos: int) -> None:
    """Raise when a known field comes with another wire type than its own; upb would take it for unknown."""
    if wire_type != known.wire_type:
        wanted, found = _WIRE_TYPE_NAMES[known.wire_type], _WIRE_TYPE_NAMES[wire_type]
        raise Malformed(f"wire type {found}, expected {wanted}", pos)


def parts(body: bytes, start: int, end: int, shape: Shape, depth: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each known length-delimited field; every field's framing is judged, no content."""
    check_depth(depth, start)
    pos = start
    while pos < end:
        at, number = pos, 0
        try:
            number, wire_type, pos = tag(body, at, end)
            known = shape.fields.get(number)
            if known is not None:
                check_wire_type(known, wire_type, at)
            if known is None or wire_type != LEN:
                pos = skip(body, pos, end, number, wire_type, depth)
                continue
            begin, pos = span_of(body, pos, end)
        except Malformed as error:
            locate(error, body, start, at, shape, number)
            raise
        yield number, begin, pos


def judge(  # noqa: PLR0917 - where and what, as everywhere in this walk
    body: bytes, start: int, end: int, shape: Shape, depth: int, budget: Budget
) -> None:
    """Judge the message between *start* and *end*, and all inside it; *depth* is 0 for the outermost.

    Raises Malformed with the offset of the first wrong byte and the path below this message, and TooLarge when there
    is more of it than *budget* allows.
    """
    for number, begin, finish in parts(body, start, end, shape, depth):
        known = shape.fields[number]
        try:
            if known.shape is not None:
                budget.spend()
                judge(body, begin, finish, known.shape, depth + 1, budget)
            elif known.utf8:
                check_utf8(body, begin, finish)
        except Malformed as error:
            locate(error, body, start, begin - 1, shape, number)
            raise


def locate(  # noqa: PLR0917 - where and what, as everywhere in this walk
    error: Malformed, body: bytes, start: int, at: int, shape: Shape, number: int
) -> None:
    """Add to *error* the path of field *number* of the message that begins at *start*.

    A repeated field needs its index. Nothing counts on the way of valid bytes; the fields before *at* are
    walked again here, where time does not matter.
    """
    if number == 0:
        return
    known = shape.fields.get(number)
    if known is None:
        error.path.append(f"field_{number}")
        return
    if not known.repeated:
        error.path.append(known.name)
        return
    index, pos = 0, start
    while pos < at:
        found, wire_type, pos = tag(body, pos, len(body))
        pos = skip(body, pos, len(body), found, wire_type, 1)
        index += found == number and pos <= at
    error.path.append(f"{known.name}[{index}]")
