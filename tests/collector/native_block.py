"""Reads a block in ClickHouse's Native format as the format's description has it, and gives its rows in RowBinary.

It shares nothing with what writes the blocks: types are read by their names in the block.
Reference: https://clickhouse.com/docs/interfaces/formats/Native
"""

from __future__ import annotations

import re
import struct

FIXED = {"UInt8": 1, "UInt32": 4, "UInt64": 8, "UUID": 16}


class Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        assert len(taken) == count, f"the block ends within {count} bytes at {self.at}"
        self.at += count
        return taken

    def varint(self) -> int:
        number = shift = 0
        while (byte := self.take(1)[0]) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
        return number | byte << shift

    def text(self) -> bytes:
        return self.take(self.varint())

    def values(self, kind: str, count: int) -> list[bytes]:
        """*count* values of type *kind*, each as RowBinary has it."""
        if kind == "String":
            return [leb128(len(text)) + text for text in (self.text() for _ in range(count))]
        if array := re.fullmatch(r"Array\((.*)\)", kind):
            return self.elements(count, [array[1]])
        if pair := re.fullmatch(r"Map\((\w+), (\w+)\)", kind):
            return self.elements(count, [pair[1], pair[2]])
        if fixed := re.fullmatch(r"FixedString\((\d+)\)", kind):
            width = int(fixed[1])
        else:
            width = 8 if kind.startswith("DateTime64(") else FIXED[kind]
        return [self.take(width) for _ in range(count)]

    def elements(self, count: int, kinds: list[str]) -> list[bytes]:
        ends = struct.unpack(f"<{count}Q", self.take(8 * count))
        columns = [self.values(kind, ends[-1] if ends else 0) for kind in kinds]
        return [
            leb128(end - begin)
            + b"".join(column[at] for at in range(begin, end) for column in columns)
            for begin, end in zip((0, *ends), ends, strict=False)
        ]  # fmt: skip


def leb128(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def read(data: bytes) -> tuple[list[str], list[bytes]]:
    """The names of the block's columns, and its rows; there must be nothing behind it."""
    reader = Reader(data)
    columns, count = reader.varint(), reader.varint()
    names, values = [], []
    for _ in range(columns):
        names.append(reader.text().decode())
        values.append(reader.values(reader.text().decode(), count))
    assert reader.at == len(data), "bytes behind the block"
    return names, [b"".join(row) for row in zip(*values, strict=True)]
