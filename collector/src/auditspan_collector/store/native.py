"""Native blocks for clients that speak a later revision of ClickHouse's protocol than the engine writes.

The engine writes Native as revision 0: column count, row count, then name, type and data of each column. A client
that sends ``client_protocol_version`` 54454 or more (clickhouse-go, and so Grafana) expects a block info in front,
and a byte after each type that says whether the column is serialized in a special way (ClickHouse's
src/Formats/NativeWriter.cpp). It never is here. Where that byte goes depends on the length of every column before
it, so the columns are measured; the types that can't be measured (JSON, Dynamic, Variant, aggregate states) are an
error. Earlier revisions get revision 0: clickhouse-connect, which asks for 54405, looks at what it gets.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from auditspan_collector.store.failures import NOT_IMPLEMENTED, QueryFailed

REFRAMED_FROM: Final = 54454

# Field 1, is_overflows: 0. Field 2, bucket_num: -1. End.
_BLOCK_INFO: Final = b"\x01\x00\x02\xff\xff\xff\xff\x00"
_DEFAULT_SERIALIZATION: Final = b"\x00"

_WIDTHS: Final = {
    **dict.fromkeys(("UInt8", "Int8", "Bool", "Enum8", "Nothing"), 1),
    **dict.fromkeys(("UInt16", "Int16", "Date", "Enum16", "BFloat16"), 2),
    **dict.fromkeys(("UInt32", "Int32", "Float32", "Date32", "DateTime", "Time", "IPv4", "Decimal32"), 4),
    **dict.fromkeys(("UInt64", "Int64", "Float64", "DateTime64", "Time64", "Decimal64"), 8),
    **dict.fromkeys(("UInt128", "Int128", "UUID", "IPv6", "Decimal128", "Point"), 16),
    **dict.fromkeys(("UInt256", "Int256", "Decimal256"), 32),
}
_GEOMETRY: Final = {
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "Polygon": "Array(Array(Point))",
    "MultiLineString": "Array(Array(Point))",
    "MultiPolygon": "Array(Array(Array(Point)))",
}
_ELEMENT_NAME = re.compile(r"(?:[A-Za-z_]\w*|`(?:[^`\\]|\\.)*`)\s+(?=[A-Z])")


class _Type(NamedTuple):
    name: str
    inner: tuple[_Type, ...]
    width: int  # of a value, for types of one width


def _arguments(text: str) -> list[str]:
    """Split ``A, B(C, D), E('x, y')`` at its outer commas."""
    found, depth, start, quote = [], 0, 0, ""
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character in "'`\"":
            quote = character
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
        elif character == "," and not depth:
            found.append(text[start:position].strip())
            start = position + 1
        position += 1
    found.append(text[start:].strip())
    return found


def _decimal_width(precision: int) -> int:
    return next(width for limit, width in ((9, 4), (18, 8), (38, 16), (76, 32)) if precision <= limit)


def _compound(name: str, arguments: list[str]) -> _Type | None:
    match name:
        case "SimpleAggregateFunction":
            return _parse(arguments[1])
        case "Array" | "Nullable" | "LowCardinality":
            return _Type(name, (_parse(arguments[0]),), 0)
        case "Tuple":
            return _Type(
                name, tuple(_parse(_ELEMENT_NAME.sub("", argument, count=1)) for argument in arguments), 0
            )
        case "Nested":
            return _Type("Array", (_parse(f"Tuple({', '.join(arguments)})"),), 0)
        case "Map":
            return _Type("Array", (_Type("Tuple", tuple(_parse(argument) for argument in arguments), 0),), 0)
    return None


def _width(name: str, arguments: list[str]) -> int | None:
    """Bytes of a value, for types of one width; 0 for String."""
    match name:
        case "String":
            return 0
        case "FixedString":
            return int(arguments[0])
        case "Decimal":
            return _decimal_width(int(arguments[0]))
    return 8 if name.startswith("Interval") else _WIDTHS.get(name)


def _parse(text: str) -> _Type:
    """A type's shape. Raises QueryFailed for the types that can't be measured."""
    text = _GEOMETRY.get(text, text)
    name, parenthesis, rest = text.partition("(")
    arguments = _arguments(rest[:-1]) if parenthesis else []
    width = _width(name, arguments)
    found = _compound(name, arguments) if width is None else _Type(name, (), width)
    if found is None:
        raise QueryFailed.because(
            NOT_IMPLEMENTED,
            f"The type {text} can't be sent to a client of this protocol version; convert it, "
            "for instance with toString().",
        )
    return found


class _Block:
    """A cursor over one block."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        size = self.varint()
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def number(self) -> int:
        self.at += 8
        return int.from_bytes(self.data[self.at - 8 : self.at], "little")

    def skip_strings(self, count: int) -> None:
        data, at = self.data, self.at
        for _ in range(count):
            size = data[at]
            at += 1
            if size >= 0x80:
                self.at = at - 1
                size = self.varint()
                at = self.at
            at += size
        self.at = at

    def skip_prefix(self, kind: _Type) -> None:
        """State that comes before the values: a version for each LowCardinality in the type."""
        if kind.name == "LowCardinality":
            self.at += 8
            return
        for inner in kind.inner:
            self.skip_prefix(inner)

    def skip_values(self, kind: _Type, count: int) -> None:
        match kind.name:
            case "String":
                self.skip_strings(count)
            case "Nullable":
                self.at += count
                self.skip_values(kind.inner[0], count)
            case "Tuple":
                for inner in kind.inner:
                    self.skip_values(inner, count)
                if not kind.inner:
                    self.at += count
            case "Array":
                self.at += 8 * count
                total = int.from_bytes(self.data[self.at - 8 : self.at], "little") if count else 0
                self.skip_values(kind.inner[0], total)
            case "LowCardinality":
                self._skip_dictionary(kind.inner[0], count)
            case _:
                self.at += kind.width * count

    def _skip_dictionary(self, values: _Type, count: int) -> None:
        """Key width and flags, the dictionary, and a key for each row."""
        if not count:
            return
        key_width = 1 << (self.number() & 0xFF)
        self.skip_values(values.inner[0] if values.name == "Nullable" else values, self.number())
        keys = self.number()
        self.at += key_width * keys


def _block(block: _Block) -> list[bytes]:
    start, parts = block.at, [_BLOCK_INFO]
    columns, rows = block.varint(), block.varint()
    for _ in range(columns):
        block.text()
        kind = block.text()
        parts += (block.data[start : block.at], _DEFAULT_SERIALIZATION)
        start = block.at
        if rows:
            shape = _parse(kind)
            block.skip_prefix(shape)
            block.skip_values(shape, rows)
    parts.append(block.data[start : block.at])
    return parts


def reframed(data: bytes) -> bytes:
    """The engine's blocks, as a client of revision `REFRAMED_FROM` or later expects them. Raises QueryFailed."""
    block = _Block(data)
    parts: list[bytes] = []
    while block.at < len(data):
        parts += _block(block)
    return b"".join(parts)
