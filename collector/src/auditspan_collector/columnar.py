"""HOT PATH: rows turned into columns, ClickHouse's Native format, which costs the store a fraction of its RowBinary.

The rows are those that the spool holds, RowBinary as the ledger sealed it (schema.rowbinary); the block has the same
values, column by column. Two passes over the rows: the first finds how much each column takes and checks every length,
the second copies. This source runs in two forms with one result: as it stands, and compiled by Cython with the types
that columnar.pxd gives its variables; functions called auditspan_... are those of native.h, known to the compiled form
only.
Reference: https://clickhouse.com/docs/interfaces/formats/Native, and ClickHouse's src/Formats/NativeReader.cpp
"""

from __future__ import annotations

import struct
import time
from array import array
from typing import TYPE_CHECKING, Final

from auditspan_collector.schema.rowbinary import string, varint

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPILED: Final = not __file__.endswith(".py")
_COMPILED: Final = COMPILED  # known to C

_TURN: Final = 1024  # rows between two chances for other threads
_OFFSET_BYTES: Final = 8
_LENGTH_BYTES: Final = 9  # of a varint that holds any length here


class Columns:
    """The columns of a table's rows, each as (name, type in Native, layout); not for two threads at once.

    A layout is what a value is made of, outermost first: n > 0 is n bytes, 0 a string, and -k an array whose elements
    are each one of the k layouts that follow. ``Map(String, String)`` is (-2, 0, 0).
    """

    def __init__(self, columns: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        kinds: list[int] = []
        heads: list[bytes] = []
        for name, type_name, layout in columns:
            heads += [string(name) + string(type_name)] + [b""] * (len(layout) - 1)
            kinds += layout
        behind = [0] * len(kinds)
        for part in reversed(range(len(kinds))):
            behind[part] = part + 1
            for _ in range(-kinds[part]):
                behind[part] = behind[behind[part]]
        self._columns = len(columns)
        self._heads = heads  # of each part: what stands in front of its bytes
        self._kinds = array("i", kinds)
        self._behind = array("i", behind)  # of each part: the first one that is no part of it
        self._sizes = array("q", bytes(8 * len(kinds)))  # of each part: its bytes in the block
        self._places = array("q", bytes(8 * len(kinds)))  # of each part: where its next bytes go
        self._counts = array("q", bytes(8 * len(kinds)))  # of each array: its elements so far

    def block(self, rows: bytes, count: int) -> bytes:
        """The *count* rows of *rows* as one block. ValueError when *rows* is not as many rows of these columns."""
        source = rows
        end = len(rows)
        for part in range(len(self._kinds)):
            self._sizes[part] = self._counts[part] = 0
        at = 0
        for row in range(count):
            if row % _TURN == 0:
                time.sleep(0)  # answers wait for this thread's lock
            at = self._measure_row(source, at, end)
        if at != end:
            raise ValueError(f"{count} rows end at byte {at} of {end}")
        written = self._lay_out(count)
        to = written
        at = 0
        for row in range(count):
            if row % _TURN == 0:
                time.sleep(0)
            at = self._copy_row(source, at, to)
        return bytes(written)

    def _lay_out(self, count: int) -> bytearray:
        """Room for the block, its heads written, and each part's first place."""
        head = varint(self._columns) + varint(count)
        size = len(head)
        for part in range(len(self._kinds)):
            size += len(self._heads[part])
            self._places[part] = size
            size += self._sizes[part]
        written = auditspan_bytes(size) if _COMPILED else bytearray(size)  # type: ignore[name-defined] # noqa: F821
        _put(written, 0, head, 0, len(head))
        for part in range(len(self._kinds)):
            name = self._heads[part]
            _put(written, self._places[part] - len(name), name, 0, len(name))
        return written

    def _measure_row(self, rows: bytes, at: int, end: int) -> int:
        part = 0
        while part < len(self._kinds):
            if self._kinds[part] < 0:
                at = self._measure_array(part, rows, at, end)
            else:
                at = self._measure(part, rows, at, end)
            part = self._behind[part]
        return at

    def _measure(self, part: int, rows: bytes, at: int, end: int) -> int:
        """Add the value at *at*, no array, to the size of *part*; returns where it ends."""
        kind = self._kinds[part]
        if kind > 0:
            if kind > end - at:
                raise ValueError(f"byte {at}: the rows end within {kind} bytes")
            self._sizes[part] += kind
            return at + kind
        begin = _length_end(rows, at, end)
        length = _length(rows, at, begin)
        if length > end - begin:
            raise ValueError(f"byte {at}: {length} bytes, where {end - begin} are left")
        self._sizes[part] += begin + length - at
        return begin + length

    def _measure_array(self, part: int, rows: bytes, at: int, end: int) -> int:
        begin = _length_end(rows, at, end)
        length = _length(rows, at, begin)
        # An element takes a byte at least, so this also bounds the work.
        if length > end - begin:
            raise ValueError(f"byte {at}: {length} elements, where {end - begin} bytes are left")
        self._sizes[part] += _OFFSET_BYTES
        at = begin
        for _element in range(length):
            inner = part + 1
            while inner < self._behind[part]:
                if self._kinds[inner] < 0:
                    at = self._measure_array(inner, rows, at, end)
                else:
                    at = self._measure(inner, rows, at, end)
                inner = self._behind[inner]
        return at

    def _copy_row(self, rows: bytes, at: int, to: bytearray) -> int:
        part = 0
        while part < len(self._kinds):
            if self._kinds[part] < 0:
                at = self._copy_array(part, rows, at, to)
            else:
                at = self._copy(part, rows, at, to)
            part = self._behind[part]
        return at

    def _copy(self, part: int, rows: bytes, at: int, to: bytearray) -> int:
        """Write the value at *at*, no array, which was measured; returns where it ends."""
        stop = at + self._kinds[part]
        if stop == at:
            stop = _length_end(rows, at, at + _LENGTH_BYTES)
            stop += _length(rows, at, stop)
        _put(to, self._places[part], rows, at, stop - at)
        self._places[part] += stop - at
        return stop

    def _copy_array(self, part: int, rows: bytes, at: int, to: bytearray) -> int:
        begin = _length_end(rows, at, at + _LENGTH_BYTES)
        length = _length(rows, at, begin)
        self._counts[part] += length
        if _COMPILED:
            auditspan_put_index(to, self._places[part], self._counts[part])  # type: ignore[name-defined] # noqa: F821
        else:
            place = self._places[part]
            to[place : place + _OFFSET_BYTES] = struct.pack("<Q", self._counts[part])
        self._places[part] += _OFFSET_BYTES
        at = begin
        for _element in range(length):
            inner = part + 1
            while inner < self._behind[part]:
                if self._kinds[inner] < 0:
                    at = self._copy_array(inner, rows, at, to)
                else:
                    at = self._copy(inner, rows, at, to)
                inner = self._behind[inner]
        return at


def _length_end(rows: bytes, at: int, end: int) -> int:
    """Where the varint at *at* ends."""
    last = at
    while last < end and last - at < _LENGTH_BYTES:
        if rows[last] < 0x80:
            return last + 1
        last += 1
    raise ValueError(f"byte {at}: no length")


def _length(rows: bytes, at: int, end: int) -> int:
    """The varint that stands between *at* and *end*."""
    length = shift = 0
    while at < end:
        bits = rows[at] & 0x7F
        length |= bits << shift
        shift += 7
        at += 1
    return length


def _put(to: bytearray, at: int, source: bytes, begin: int, count: int) -> None:
    if _COMPILED:
        auditspan_copy_short(to, at, source, begin, count)  # type: ignore[name-defined] # noqa: F821
    else:
        to[at : at + count] = source[begin : begin + count]
