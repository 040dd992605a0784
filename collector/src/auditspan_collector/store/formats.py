"""Result formats: their content type, and how blocks of them join into one result.

The engine hands out a result block by block, each a complete document of its format. For formats of rows these
join as they are, or after taking away the header that each block repeats; documents such as JSON do not, and are
made at once instead, within the statement's memory limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector.store.engine import Chunk

_Header = Literal["none", "line", "csv", "binary"]

_TEXT: Final = "text/plain; charset=UTF-8"
_TSV: Final = "text/tab-separated-values; charset=UTF-8"
_CSV: Final = "text/csv; charset=UTF-8"
_JSON: Final = "application/json; charset=UTF-8"
_LINES: Final = "application/x-ndjson; charset=UTF-8"
_BINARY: Final = "application/octet-stream"

# Lower-case name: how its header is written, how many rows of it there are, content type. A row of a binary header
# is a list of strings: the names, then the types.
_STREAMED: Final[dict[str, tuple[_Header, int, str]]] = {
    "native": ("none", 0, _BINARY),
    "null": ("none", 0, _TEXT),
    "rawblob": ("none", 0, _TEXT),
    "lineasstring": ("none", 0, _TEXT),
    "tskv": ("none", 0, _TSV),
    "msgpack": ("none", 0, "application/x-msgpack"),
    "csv": ("none", 0, _CSV + "; header=absent"),
    "csvwithnames": ("csv", 1, _CSV + "; header=present"),
    "csvwithnamesandtypes": ("csv", 2, _CSV + "; header=present"),
    "rowbinary": ("none", 0, _BINARY),
    "rowbinarywithnames": ("binary", 1, _BINARY),
    "rowbinarywithnamesandtypes": ("binary", 2, _BINARY),
    "jsoneachrow": ("none", 0, _LINES),
    "jsonlines": ("none", 0, _LINES),
    "ndjson": ("none", 0, _LINES),
    "jsonstringseachrow": ("none", 0, _LINES),
    **{
        name + suffix: ("line" if rows else "none", rows, content)
        for name, content in (
            ("tabseparated", _TSV),
            ("tsv", _TSV),
            ("tabseparatedraw", _TSV),
            ("tsvraw", _TSV),
            ("raw", _TSV),
            ("jsoncompacteachrow", _LINES),
            ("jsoncompactstringseachrow", _LINES),
        )
        for suffix, rows in (("", 0), ("withnames", 1), ("withnamesandtypes", 2))
    },
}
_CONTENT_TYPES: Final = {
    "xml": "application/xml; charset=UTF-8",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
    "arrowstream": "application/vnd.apache.arrow.stream",
    "markdown": "text/markdown; charset=UTF-8",
}


def content_type(name: str) -> str:
    """What goes into the Content-Type header."""
    name = name.lower()
    if name in _STREAMED:
        return _STREAMED[name][2]
    if name.startswith("json"):
        return _JSON
    if name.startswith("pretty") or name in ("vertical", "values", "sqlinsert"):
        return _TEXT
    return _CONTENT_TYPES.get(name, _BINARY)


def joins(name: str) -> bool:
    """Whether blocks of the format join into one result."""
    return name.lower() in _STREAMED


def _strings_end(data: bytes, position: int, count: int) -> int:
    for _ in range(count):
        size, shift = 0, 0
        while True:
            byte = data[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += size
    return position


def _header_end(data: bytes, kind: _Header, rows: int) -> int:
    if kind == "binary":
        count_end = _strings_end(data, 0, 0)
        count, shift = 0, 0
        while True:
            byte = data[count_end]
            count_end += 1
            count |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        return _strings_end(data, count_end, count * rows)
    position = 0
    for _ in range(rows):
        end = data.find(b"\n", position)
        while kind == "csv" and end >= 0 and data.count(b'"', position, end) % 2:
            end = data.find(b"\n", end + 1)  # a line end inside a quoted name
        if end < 0:
            return len(data)
        position = end + 1
    return position


def joined(chunks: Iterator[Chunk], name: str) -> Iterator[Chunk]:
    """*chunks*, with the header only in front of the first one."""
    kind, rows, _ = _STREAMED[name.lower()]
    header = b""
    for chunk in chunks:
        if kind == "none":
            yield chunk
            continue
        data = bytes(chunk.data)
        if not header:
            header = data[: _header_end(data, kind, rows)]
            yield chunk
        elif data.startswith(header):
            yield chunk._replace(data=data[len(header) :])
        else:  # totals and extremes: the engine writes their header behind them
            yield chunk._replace(data=data.removesuffix(header))
