"""HOT PATH: rows turned into columns, ClickHouse's Native format, which costs the store a fraction of its RowBinary.

The rows are those that the spool holds, RowBinary as the ledger sealed it (schema.rowbinary); the block has the same
values, column by column. One pass over the rows checks each length and appends each value to its column's room, which
is kept for the next block; then the rooms are put together. A list that is the same as in the row before, as what a
service says of itself is, is not taken apart again. This source runs in two forms with one result: as it stands, and
compiled by Cython with the types that columnar.pxd gives its variables; functions called auditspan_... are those of
native.h, known to the compiled form only.
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
_PART_BYTES: Final = 32  # auditspan_part (native.h)
_LENGTH_BYTES: Final = 9  # of a varint that holds any length here
_ROOM_BYTES: Final = 1024  # of each part to begin with
_SLACK: Final = 64  # behind a room's end: a short value is written as one of this size (native.h)


class Columns:
    """The columns of a table's rows, each as (name, type in Native, layout); not for two threads at once.

    A layout is what a value is made of, outermost first: n > 0 is n bytes, 0 a string, and -k an array whose elements
    are each one of the k layouts that follow. ``Map(String, String)`` is (-2, 0, 0). Kept between blocks is room for
    the largest so far, and half as much again.
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
        # Of each array whether its elements hold none, so that what it was can be repeated.
        self._flat = array(
            "i", [kind < 0 and behind[part] == part - kind + 1 for part, kind in enumerate(kinds)]
        )
        # Of each part: its bytes in the block; compiled, room for more of them than there are.
        self._rooms = [bytearray() for _ in kinds]
        self._counts = _longs(kinds)  # of each array: its elements so far
        # Of the last array of each column that was not empty: where it stands, how long it is and how many elements it
        # has; and of each part of it, its bytes.
        self._last_at, self._last_size, self._last_count = _longs(kinds), _longs(kinds), _longs(kinds)
        self._last_bytes = _longs(kinds)
        self._parts = bytearray(_PART_BYTES * len(kinds))
        self._p = self._parts
        for part in range(len(kinds)):
            self._grow(part, _ROOM_BYTES)

    def block(self, rows: bytes, count: int, before: bytes = b"") -> bytes:
        """The *count* rows of *rows* as one block, behind *before*.

        ValueError when *rows* is not as many rows of these columns.
        """
        source = rows
        end = len(rows)
        kinds, behind = self._kinds, self._behind
        self._clear()
        at = 0
        for row in range(count):
            if row % _TURN == 0:
                time.sleep(0)  # answers wait for this thread's lock
            part = 0
            while part < len(kinds):
                if kinds[part] < 0:
                    at = self._take_column(part, source, at, end)
                else:
                    at = self._take(part, source, at, end)
                part = behind[part]
        if at != end:
            raise ValueError(f"{count} rows end at byte {at} of {end}")
        return self._together(before + varint(self._columns) + varint(count))

    def _clear(self) -> None:
        for part in range(len(self._kinds)):
            self._counts[part] = self._last_size[part] = 0
            if _COMPILED:
                auditspan_part_clear(self._p, part)  # type: ignore[name-defined] # noqa: F821
            else:
                self._rooms[part].clear()

    def _size(self, part: int) -> int:
        """How many bytes *part* has."""
        if _COMPILED:
            return auditspan_part_size(self._p, part)  # type: ignore[name-defined,no-any-return] # noqa: F821
        return len(self._rooms[part])

    def _together(self, head: bytes) -> bytes:
        """*head*, and each part behind its own."""
        size = len(head)
        for part in range(len(self._kinds)):
            size += len(self._heads[part]) + self._size(part)
        written = auditspan_bytes(size) if _COMPILED else bytearray(size)  # type: ignore[name-defined] # noqa: F821
        _put(written, 0, head, len(head))
        at = len(head)
        for part in range(len(self._kinds)):
            head = self._heads[part]
            _put(written, at, head, len(head))
            at += len(head)
            _put(written, at, self._rooms[part], self._size(part))
            at += self._size(part)
        return bytes(written)

    def _take(self, part: int, rows: bytes, at: int, end: int) -> int:
        """Append the value at *at*, no array, to *part*; returns where it ends."""
        if _COMPILED:
            stop = auditspan_take(self._p, part, rows, at, end)  # type: ignore[name-defined] # noqa: F821
            if stop >= 0:  # as nearly always: it is short, it is whole and there is room
                return stop  # type: ignore[no-any-return]
        return self._take_any(part, rows, at, end)

    def _take_any(self, part: int, rows: bytes, at: int, end: int) -> int:
        kind = self._kinds[part]
        if kind > 0:
            if kind > end - at:
                raise ValueError(f"byte {at}: the rows end within {kind} bytes")
            self._append(part, rows, at, kind, end)
            return at + kind
        begin = _length_end(rows, at, end)
        length = _length(rows, at, begin)
        if length > end - begin:
            raise ValueError(f"byte {at}: {length} bytes, where {end - begin} are left")
        self._append(part, rows, at, begin + length - at, end)
        return begin + length

    def _take_column(self, part: int, rows: bytes, at: int, end: int) -> int:
        """Append the array at *at*, of a column, which may be the same as the one before; returns where it ends."""
        if at < end and rows[at] == 0:
            self._append_offset(part, 0)
            return at + 1
        size = self._last_size[part]
        if size and size <= end - at and _same(rows, at, self._last_at[part], size):
            for inner in range(part + 1, self._behind[part]):
                self._append_again(inner, self._last_bytes[inner])
            self._append_offset(part, self._last_count[part])
            return at + size
        for inner in range(part + 1, self._behind[part]):
            self._last_bytes[inner] = -self._size(inner)
        counted = self._counts[part]
        stop = self._take_array(part, rows, at, end)
        if self._flat[part]:
            for inner in range(part + 1, self._behind[part]):
                self._last_bytes[inner] += self._size(inner)
            self._last_at[part], self._last_size[part] = at, stop - at
            self._last_count[part] = self._counts[part] - counted
        return stop

    def _take_array(self, part: int, rows: bytes, at: int, end: int) -> int:
        begin = _length_end(rows, at, end)
        length = _length(rows, at, begin)
        # An element takes a byte at least, so this also bounds the work.
        if length > end - begin:
            raise ValueError(f"byte {at}: {length} elements, where {end - begin} bytes are left")
        self._append_offset(part, length)
        at = begin
        for _element in range(length):
            inner = part + 1
            while inner < self._behind[part]:
                if self._kinds[inner] < 0:
                    at = self._take_array(inner, rows, at, end)
                else:
                    at = self._take(inner, rows, at, end)
                inner = self._behind[inner]
        return at

    def _append(self, part: int, rows: bytes, at: int, size: int, end: int) -> None:
        """Append the *size* bytes at *at* of *rows*, which end at *end*, to *part*."""
        if not _COMPILED:
            self._rooms[part] += rows[at : at + size]
        elif not auditspan_append(self._p, part, rows, at, size, end):  # type: ignore[name-defined] # noqa: F821
            self._grow(part, size)
            auditspan_append(self._p, part, rows, at, size, end)  # type: ignore[name-defined] # noqa: F821

    def _append_again(self, part: int, size: int) -> None:
        """Append the last *size* bytes of *part* to it once more."""
        if not _COMPILED:
            self._rooms[part] += self._rooms[part][len(self._rooms[part]) - size :]
        elif not auditspan_append_again(self._p, part, size):  # type: ignore[name-defined] # noqa: F821
            self._grow(part, size)
            auditspan_append_again(self._p, part, size)  # type: ignore[name-defined] # noqa: F821

    def _append_offset(self, part: int, length: int) -> None:
        """Append where the elements of an array of *length* end to *part*."""
        self._counts[part] += length
        if not _COMPILED:
            self._rooms[part] += struct.pack("<Q", self._counts[part])
        elif not auditspan_append_index(self._p, part, self._counts[part]):  # type: ignore[name-defined] # noqa: F821
            self._grow(part, _OFFSET_BYTES)
            auditspan_append_index(self._p, part, self._counts[part])  # type: ignore[name-defined] # noqa: F821

    def _grow(self, part: int, size: int) -> None:
        """Compiled, have room for *size* more bytes of *part*; a bytearray grows by itself."""
        if _COMPILED:
            used = self._size(part)
            room = bytearray(used + used // 2 + size + _SLACK)
            _put(room, 0, self._rooms[part], used)
            self._rooms[part] = room
            auditspan_part_begin(self._p, part, room, used, len(room) - _SLACK, self._kinds[part])  # type: ignore[name-defined] # noqa: F821


def _longs(parts: Sequence[int]) -> array[int]:
    return array("q", bytes(8 * len(parts)))


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


def _same(rows: bytes, one: int, other: int, size: int) -> bool:
    if _COMPILED:
        return auditspan_same(rows, one, other, size)  # type: ignore[name-defined,no-any-return] # noqa: F821
    return rows[one : one + size] == rows[other : other + size]


def _put(to: bytearray, at: int, source: bytes | bytearray, count: int) -> None:
    if _COMPILED:
        auditspan_copy(to, at, source, 0, count)  # type: ignore[name-defined] # noqa: F821
    else:
        to[at : at + count] = source[:count]
