"""HTTP/2 header fields on the wire (RFC 7541): write them plainly, read them whatever the peer chose.

Fields are written as literals, neither indexed nor Huffman-coded, so that writing needs no state. Reading knows the
static table, the dynamic one and the Huffman code, which is canonical: its code lengths say it all.
"""

from __future__ import annotations

from collections import deque
from typing import Final

Field = tuple[bytes, bytes]

MAX_FIELDS_BYTES: Final = 64 * 1024  # decoded, names and values
TABLE_BYTES: Final = 4096  # what a peer may use unless told otherwise

# RFC 7541 Appendix A, from index 1.
_STATIC: Final[tuple[Field, ...]] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", b"%d" % status) for status in (200, 204, 206, 304, 400, 404, 500)),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            *(
                b"accept-language",
                b"accept-ranges",
                b"accept",
                b"access-control-allow-origin",
                b"age",
                b"allow",
            ),
            *(b"authorization", b"cache-control", b"content-disposition", b"content-encoding"),
            *(b"content-language", b"content-length", b"content-location", b"content-range", b"content-type"),
            *(b"cookie", b"date", b"etag", b"expect", b"expires", b"from", b"host", b"if-match"),
            *(b"if-modified-since", b"if-none-match", b"if-range", b"if-unmodified-since", b"last-modified"),
            *(b"link", b"location", b"max-forwards", b"proxy-authenticate", b"proxy-authorization", b"range"),
            *(b"referer", b"refresh", b"retry-after", b"server", b"set-cookie", b"strict-transport-security"),
            *(b"transfer-encoding", b"user-agent", b"vary", b"via", b"www-authenticate"),
        )
    ),
)

# RFC 7541 Appendix B: the length in bits of the code of each byte value, and of the end of string (256).
_CODE_LENGTHS: Final = (
    *(13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28),
    *(28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28),
    *(6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6),
    *(5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10),
    *(13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7),
    *(7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6),
    *(15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5),
    *(6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28),
    *(20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23),
    *(24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24),
    *(22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23),
    *(21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23),
    *(26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25),
    *(19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27),
    *(20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23),
    *(26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26),
    30,
)
_END_OF_STRING: Final = 256


class MalformedHeaders(ValueError):  # noqa: N818 - a fact about the peer
    """The peer's header block is not HPACK, or larger than MAX_FIELDS_BYTES."""


def encode(fields: list[Field]) -> bytes:
    """A header block with *fields*, never to be indexed on the way (section 6.2.3): some are credentials."""
    return b"".join(
        b"\x10" + _integer(len(name), 7) + name + _integer(len(value), 7) + value for name, value in fields
    )


class Decoder:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        """A connection's beginning: an empty dynamic table."""
        self._dynamic: deque[Field] = deque()
        self._used_bytes = 0
        self._limit_bytes = TABLE_BYTES

    def decode(self, block: bytes) -> list[Field]:
        """The fields of a whole block. Raises MalformedHeaders; the connection is unusable then."""
        fields: list[Field] = []
        total = at = 0
        try:
            while at < len(block):
                first = block[at]
                if first & 0x80:  # section 6.1: indexed
                    index, at = _read_integer(block, at, 7)
                    field = self._lookup(index)
                elif first & 0xE0 == 0x20:  # section 6.3: a new size of the table
                    size, at = _read_integer(block, at, 5)
                    self._resize(size)
                    continue
                else:  # section 6.2: a literal, to be indexed or not
                    indexed = bool(first & 0x40)
                    index, at = _read_integer(block, at, 6 if indexed else 4)
                    name, at = (self._lookup(index)[0], at) if index else _read_string(block, at)
                    value, at = _read_string(block, at)
                    field = (name, value)
                    if indexed:
                        self._add(field)
                total += len(field[0]) + len(field[1])
                if total > MAX_FIELDS_BYTES:
                    raise MalformedHeaders(f"more than {MAX_FIELDS_BYTES} bytes of header fields")
                fields.append(field)
        except IndexError as problem:
            raise MalformedHeaders("the header block ends early") from problem
        return fields

    def _lookup(self, index: int) -> Field:
        if 0 < index <= len(_STATIC):
            return _STATIC[index - 1]
        if 0 < index <= len(_STATIC) + len(self._dynamic):
            return self._dynamic[index - len(_STATIC) - 1]
        raise MalformedHeaders(f"no header field has index {index}")

    def _add(self, field: Field) -> None:
        self._dynamic.appendleft(field)
        self._used_bytes += _size(field)
        self._evict()

    def _resize(self, size: int) -> None:
        if size > TABLE_BYTES:
            raise MalformedHeaders(f"a table of {size} bytes where {TABLE_BYTES} are allowed")
        self._limit_bytes = size
        self._evict()

    def _evict(self) -> None:
        while self._used_bytes > self._limit_bytes:
            self._used_bytes -= _size(self._dynamic.pop())


def _size(field: Field) -> int:
    return len(field[0]) + len(field[1]) + 32  # section 4.1


def _integer(value: int, prefix_bits: int) -> bytes:
    """Section 5.1, with the bits before the prefix all zero."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([value])
    encoded, value = bytearray([most]), value - most
    while value >= 128:
        encoded.append(value % 128 + 128)
        value //= 128
    encoded.append(value)
    return bytes(encoded)


def _read_integer(block: bytes, at: int, prefix_bits: int) -> tuple[int, int]:
    most = (1 << prefix_bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedHeaders("an integer larger than any length")


def _read_string(block: bytes, at: int) -> tuple[bytes, int]:
    coded = block[at] & 0x80
    length, at = _read_integer(block, at, 7)
    content = block[at : at + length]
    if len(content) < length:
        raise MalformedHeaders("the header block ends early")
    return (_huffman(content) if coded else content), at + length


def _codes() -> dict[tuple[int, int], int]:
    """Each code, as its length and its bits, to what it stands for."""
    codes: dict[tuple[int, int], int] = {}
    code = before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_CODE_LENGTHS)):
        code <<= length - before
        codes[length, code] = symbol
        code, before = code + 1, length
    return codes


_SYMBOLS: Final = _codes()


def _huffman(content: bytes) -> bytes:
    """Section 5.2. Bit by bit: answers are short and rare."""
    found = bytearray()
    code = length = 0
    for byte in content:
        for shift in range(7, -1, -1):
            code, length = code << 1 | byte >> shift & 1, length + 1
            symbol = _SYMBOLS.get((length, code))
            if symbol == _END_OF_STRING or length > 30:
                raise MalformedHeaders("a Huffman code that is none")
            if symbol is not None:
                found.append(symbol)
                code = length = 0
    if length > 7 or code != (1 << length) - 1:
        raise MalformedHeaders("Huffman padding that is none")
    return bytes(found)
