"""Read the few small protobuf messages of an answer without the protobuf library (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from dataclasses import dataclass

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class Malformed(ValueError):  # noqa: N818 - a fact about the bytes
    """Not a protobuf message."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A message's varints and length-delimited fields by their number, in order; the last one counts."""

    numbers: dict[int, int]
    contents: dict[int, list[bytes]]

    def number(self, field: int) -> int:
        """An int32 or int64 field; 0 when it is absent."""
        value = self.numbers.get(field, 0)
        return value - (1 << 64) if value >= 1 << 63 else value

    def message(self, field: int) -> bytes:
        """A message field's content; empty when it is absent."""
        return (self.contents.get(field) or [b""])[-1]

    def messages(self, field: int) -> list[bytes]:
        """A repeated message field's contents."""
        return self.contents.get(field, [])

    def text(self, field: int) -> str:
        """A string field; empty when it is absent."""
        return self.message(field).decode("utf-8", "replace")


def read(message: bytes) -> Fields:
    """The fields of *message*. Raises Malformed."""
    fields = Fields({}, {})
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            fields.numbers[number], at = _varint(message, at)
            continue
        if wire_type == _LENGTH:
            length, at = _varint(message, at)
            fields.contents.setdefault(number, []).append(message[at : at + length])
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise Malformed(f"wire type {wire_type}")
        at += length
    if at > len(message):
        raise Malformed("the message ends early")
    return fields


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise Malformed("the message ends early")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise Malformed("a varint of more than ten bytes")
