"""Change OTLP requests at random: as bytes, and as trees of fields whose lengths stay right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from auditspan_collector.decode import wire
from collector.codec import wire_format as wf
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from random import Random

REQUEST = wire.shape_of(ExportTraceServiceRequest.DESCRIPTOR)
WORDS = [
    b"audit.",
    b"audit.delivery",
    b"audit.actor.roles",
    b"audit.record.id",
    b"audit.sequence.number",
    b"audit.parent.span_id",
    b"audit.outcome",
    b"http.status_code",
    b"rpc.grpc.status_code",
    b"spool",
    b"[]",
    b"18446744073709551616",
    b"018f6a52-7e1c-7aaa-8b1e-0123456789ab",
    b"00f067aa0ba902b7",
    b"401",
    "\u0664\u0660\u0661".encode(),
    "\u212a".encode(),
    b'a"b\\c\n\x7f',
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"x" * 70,
    b"",
]


class Field:
    """A field: its number, its wire type, and its payload, or the fields of the message that it holds."""

    def __init__(self, number: int, wire_type: int, payload: bytes, inner: list[Field] | None) -> None:
        self.number, self.wire_type, self.payload, self.inner = number, wire_type, payload, inner

    def copy(self) -> Field:
        inner = None if self.inner is None else [field.copy() for field in self.inner]
        return Field(self.number, self.wire_type, self.payload, inner)


def parse(body: bytes, shape: wire.Shape | None) -> list[Field] | None:
    """The fields of a message; None when it is not one."""
    fields = []
    pos = 0
    try:
        while pos < len(body):
            number, wire_type, pos = wire.tag(body, pos, len(body))
            begin = pos
            pos = wire.skip(body, pos, len(body), number, wire_type, 0)
            payload, inner = body[begin:pos], None
            if wire_type == wire.LEN:
                payload = body[wire.span_of(body, begin, len(body))[0] : pos]
                known = shape.fields.get(number) if shape else None
                if known is not None and known.shape is not None:
                    inner = parse(payload, known.shape)
            fields.append(Field(number, wire_type, payload, inner))
    except wire.Malformed:
        return None
    return fields


def written(fields: list[Field], random: Random, oddness: float) -> bytes:
    """The message again; some lengths are longer than they need."""
    out = bytearray()
    for field in fields:
        payload = field.payload if field.inner is None else written(field.inner, random, oddness)
        out += wf.tag(field.number, field.wire_type)
        if field.wire_type == wire.LEN:
            out += wf.varint(len(payload), longer_by=1 if random.random() < oddness else 0)
        out += payload
    return bytes(out)


def places(fields: list[Field]) -> list[tuple[list[Field], int]]:
    """Every field below, as the list that holds it and its index."""
    found = []
    for index, field in enumerate(fields):
        found.append((fields, index))
        if field.inner is not None:
            found += places(field.inner)
    return found


def change_field(  # noqa: C901 - a list of things that go wrong
    holder: list[Field], index: int, everything: list[Field], random: Random
) -> None:
    """One change to a field or its neighbours."""
    field = holder[index]
    kind = random.randrange(10)
    if kind == 0:
        holder.insert(random.randrange(len(holder) + 1), field.copy())
    elif kind == 1:
        del holder[index]
    elif kind == 2:
        other = random.randrange(len(holder))
        holder[index], holder[other] = holder[other], holder[index]
    elif kind == 3:
        field.number = random.choice([1, 2, 3, 4, 5, 8, 9, 11, 13, 15, 16, 17, 77, 536_870_911])
    elif kind == 4:
        number = random.choice([1, 3, 9, 17, 77])
        wire_type = random.randrange(6)
        payload = b"" if wire_type in (2, 4) else wf.payload(wire_type, number)
        holder.insert(index, Field(number, wire_type, payload, None))
    elif kind == 5:
        field.payload, field.inner = random.choice(WORDS), None
    elif kind == 6 and field.wire_type == wire.VARINT:
        field.payload = wf.varint(random.choice([0, 1, 2, 3, 7, 255, 2**31, 2**32, 2**63, 2**64 - 1]))
    elif kind == 6 and field.wire_type in (wire.I64, wire.I32):
        field.payload = random.choice([b"\x00", b"\xff", random.randbytes(1)]) * len(field.payload)
    elif kind == 7:
        source, at = random.choice(places(everything))
        holder.insert(index, source[at].copy())
    elif kind == 8 and field.inner is None and field.payload:
        at = random.randrange(len(field.payload))
        field.payload = field.payload[:at] + random.randbytes(1) + field.payload[at + 1 :]
    else:
        field.wire_type = random.randrange(6)


def change_bytes(body: bytes, random: Random) -> bytes:  # noqa: PLR0911 - as above
    """One change to bytes: a bit, a byte, some out, some in, some twice, or the end off."""
    if not body:
        return random.randbytes(3)
    kind, at = random.randrange(6), random.randrange(len(body))
    after = at + random.randrange(1, 6)
    if kind == 0:
        return body[:at] + bytes([body[at] ^ 1 << random.randrange(8)]) + body[at + 1 :]
    if kind == 1:
        return body[:at] + random.randbytes(1) + body[at + 1 :]
    if kind == 2:
        return body[:at] + body[after:]
    if kind == 3:
        return body[:at] + random.choice([random.randbytes(2), *WORDS[:3]]) + body[at:]
    if kind == 4:
        return body[:after] + body[at:]
    return body[:at]


def mutated(body: bytes, random: Random) -> bytes:
    """*body* with one to eight changes."""
    changes = random.choice([1, 1, 1, 2, 2, 3, 5, 8])
    if random.random() < 0.7:
        fields = parse(body, REQUEST)
        for _ in range(changes):
            found = places(fields) if fields else []
            if found:
                change_field(*random.choice(found), fields, random)
        body = written(fields or [], random, random.choice([0.0, 0.0, 0.3]))
        changes = random.choice([0, 0, 0, 1])
    for _ in range(changes):
        body = change_bytes(body, random)
    return body
