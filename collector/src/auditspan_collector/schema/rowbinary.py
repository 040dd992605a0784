"""ClickHouse's types as they stand in RowBinary: what an encoder here writes, the engine reads, and gives back.

Integers and times are little endian; a String is its length as a varint and its bytes, and LowCardinality changes
nothing of that; an Array or a Map is its size as a varint and its elements.
Reference: https://clickhouse.com/docs/interfaces/formats/RowBinary
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_SHORT_LENGTHS: Final = [bytes([length]) for length in range(0x80)]


@dataclass(frozen=True, slots=True)
class Type:
    """A column type: its name in DDL, a value's bytes in RowBinary, and what these are made of (columnar.Columns)."""

    sql: str
    encode: Callable[[Any], bytes]
    layout: tuple[int, ...]

    @property
    def native(self) -> str:
        """Its name in a block of Native. Words go as plain strings, of which the server makes its dictionary."""
        return self.sql.replace("LowCardinality(String)", "String")


def varint(number: int) -> bytes:
    """*number* (not negative) as unsigned LEB128."""
    if number < 0x80:
        return _SHORT_LENGTHS[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def string(text: str) -> bytes:
    """*text* in UTF-8 behind its length in bytes."""
    data = text.encode()
    return varint(len(data)) + data


def _fixed(width: int) -> Callable[[bytes], bytes]:
    def encode(value: bytes) -> bytes:
        if len(value) != width:
            raise ValueError(f"FixedString({width}) of {len(value)} bytes")
        return value

    return encode


def _uuid(value: bytes) -> bytes:
    # Two UInt64, the high one first, each little endian.
    if len(value) != 16:
        raise ValueError(f"UUID of {len(value)} bytes")
    return value[7::-1] + value[:7:-1]


def array(element: Type) -> Type:
    """Array of *element*; takes a sequence."""
    inner = element.encode

    def encode(values: Sequence[Any]) -> bytes:
        if not values:
            return b"\x00"
        return varint(len(values)) + b"".join([inner(value) for value in values])

    return Type(f"Array({element.sql})", encode, (-1, *element.layout))


def _pairs(values: Sequence[tuple[str, str]]) -> bytes:
    if not values:
        return b"\x00"
    out = [varint(len(values))]
    for pair in values:
        for text in pair:
            data = text.encode()
            out += (varint(len(data)), data)
    return b"".join(out)


UINT8: Final = Type("UInt8", struct.Struct("<B").pack, (1,))
UINT32: Final = Type("UInt32", struct.Struct("<I").pack, (4,))
UINT64: Final = Type("UInt64", struct.Struct("<Q").pack, (8,))
NANOSECONDS: Final = Type("DateTime64(9, 'UTC')", struct.Struct("<q").pack, (8,))
MILLISECONDS: Final = Type("DateTime64(3, 'UTC')", struct.Struct("<q").pack, (8,))
STRING: Final = Type("String", string, (0,))
WORD: Final = Type("LowCardinality(String)", string, (0,))  # a string of few different values
TRACE_ID: Final = Type("FixedString(16)", _fixed(16), (16,))
SPAN_ID: Final = Type("FixedString(8)", _fixed(8), (8,))
UUID: Final = Type("UUID", _uuid, (16,))
WORDS: Final = array(WORD)
TEXTS: Final = Type(
    "Map(LowCardinality(String), String)", _pairs, (-2, 0, 0)
)  # takes pairs; repeated keys stay
TYPES: Final = Type("Map(LowCardinality(String), LowCardinality(String))", _pairs, (-2, 0, 0))
