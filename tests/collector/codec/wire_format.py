"""Write protobuf by hand, also in the ways that no library writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from random import Random

    from google.protobuf.message import Message

VARINT, I64, LEN, START_GROUP, END_GROUP, I32 = range(6)


def varint(number: int, *, longer_by: int = 0) -> bytes:
    """*number* in LEB128; *longer_by* bytes longer than it needs."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    for _ in range(longer_by):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def length_delimited(number: int, content: bytes, *, longer_by: int = 0) -> bytes:
    return tag(number, LEN) + varint(len(content), longer_by=longer_by) + content


def payload(wire_type: int, number: int) -> bytes:
    """Some payload of *wire_type* for field *number*."""
    return {
        VARINT: b"\x01",
        I64: bytes(8),
        LEN: b"\x00",
        START_GROUP: tag(number, END_GROUP),
        I32: bytes(4),
    }[wire_type]


def attribute(key: bytes, text: bytes = b"x") -> bytes:
    """A KeyValue with a string, as content of a field."""
    return length_delimited(1, key) + length_delimited(2, length_delimited(1, text))


def request(
    span: bytes = b"", *, resource: bytes | None = None, scope: bytes | None = None, tagged: bool = True
) -> bytes:
    """A request with one span: *span*'s bytes and, when *tagged*, an audit attribute and ids behind them."""
    if tagged:
        span += length_delimited(9, attribute(b"audit.actor.id")) + ids()
    scope_spans = (b"" if scope is None else length_delimited(1, scope)) + length_delimited(2, span)
    resource_spans = (b"" if resource is None else length_delimited(1, resource)) + length_delimited(
        2, scope_spans
    )
    return length_delimited(1, resource_spans)


def ids() -> bytes:
    return length_delimited(1, b"t" * 16) + length_delimited(2, b"s" * 8)


def scrambled(message: Message, random: Random) -> bytes:
    """*message* in a valid encoding that upb would never write; by protobuf's rules it parses to the same.

    Fields of different numbers change places, singular messages come in pieces, scalars come twice, lengths are
    longer than they need, unknown fields and groups stand in between. Fields of a oneof stay whole, since another
    one between would clear them.
    """
    queues: list[list[bytes]] = []
    for field, value in message.ListFields():
        if field.is_repeated:
            queues.append([_encoded(field, one, random) for one in value])
        elif field.message_type is not None and field.containing_oneof is None:
            pieces = _pieces(value, random)
            queues.append(
                [length_delimited(field.number, piece, longer_by=random.randrange(2)) for piece in pieces]
            )
        else:
            written = _encoded(field, value, random)
            before = [_encoded(field, _other(field, value), random)] if random.random() < 0.3 else []
            queues.append([*before, written] if field.containing_oneof is None else [written])
    queues.append([_unknown(random) for _ in range(random.randrange(3))])
    out = b""
    while queues := [queue for queue in queues if queue]:
        out += random.choice(queues).pop(0)
    return out


def _pieces(message: Message, random: Random) -> list[bytes]:
    """*message* in one or two pieces that merge to it, fields of one number together, so that their order stays."""
    first, second = type(message)(), type(message)()
    for field, value in message.ListFields():
        part = first if random.random() < 0.5 else second
        if field.is_repeated:
            getattr(part, field.name).extend(value)
        elif field.message_type is not None:
            getattr(part, field.name).CopyFrom(value)
        else:
            setattr(part, field.name, value)
    return [scrambled(first, random), scrambled(second, random)]


def _other(field: FieldDescriptor, value: object) -> object:
    return type(value)() if field.type != FieldDescriptor.TYPE_ENUM else 1


def _encoded(field: FieldDescriptor, value: object, random: Random) -> bytes:
    if field.message_type is not None:
        return length_delimited(field.number, scrambled(value, random), longer_by=random.randrange(2))  # type: ignore[arg-type]
    holder = field.containing_type._concrete_class()
    if field.is_repeated:
        getattr(holder, field.name).append(value)
    else:
        setattr(holder, field.name, value)
    written = holder.SerializeToString()
    return written or tag(field.number, _ZERO_WIRE_TYPES[field.type]) + _ZEROES[_ZERO_WIRE_TYPES[field.type]]


def _unknown(random: Random) -> bytes:
    number = random.choice([77, 1000, 536_870_911])
    wire_type = random.choice([VARINT, I64, LEN, START_GROUP, I32])
    return tag(number, wire_type) + payload(wire_type, number)


_ZEROES = {VARINT: b"\x00", I64: bytes(8), LEN: b"\x00", I32: bytes(4)}
_ZERO_WIRE_TYPES = {
    FieldDescriptor.TYPE_STRING: LEN,
    FieldDescriptor.TYPE_BYTES: LEN,
    FieldDescriptor.TYPE_FIXED32: I32,
    FieldDescriptor.TYPE_FIXED64: I64,
    FieldDescriptor.TYPE_UINT32: VARINT,
    FieldDescriptor.TYPE_ENUM: VARINT,
    FieldDescriptor.TYPE_INT32: VARINT,
}
