"""What kind of statement arrived, and where the data of an INSERT starts.

ClickHouse's parser has the last word on every statement; this module looks only as far as routing needs. Reading a
statement wrongly here makes it fail, never do more: data goes to the engine's streaming insert, which takes nothing
but an INSERT without SELECT, and everything else is judged by the engine's own parser before it runs (*engine*).
Where data starts: ClickHouse's src/Parsers/ParserInsertQuery.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_TOKEN = re.compile(
    rb"""
    (?P<space> \s+ | --[^\n]* | \#[!\ ][^\n]* | /\*.*?(?:\*/|\Z) )
  | (?P<quoted> '(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.|"")*" | `(?:[^`\\]|\\.|``)*` | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
  | (?P<word> [A-Za-z0-9_$\x80-\xff]+ )
  | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_OPEN, _CLOSE = frozenset(b"([{"), frozenset(b")]}")
_STREAMED = frozenset({b"SELECT", b"WITH", b"FROM"})


class _Token(NamedTuple):
    text: bytes  # words in upper case
    word: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class InsertWithData:
    """``INSERT INTO t (a, b) FORMAT CSV`` and its data. *statement* ends before FORMAT or VALUES.

    *data_start* counts bytes from the start of the text: the first byte of the data that came with the statement.
    """

    statement: bytes
    format: str
    data_start: int


@dataclass(frozen=True, slots=True)
class Statement:
    """Everything else. *keyword* is its first word in upper case; *format* what its FORMAT clause names, or empty."""

    text: bytes
    keyword: str
    format: str

    @property
    def streamable(self) -> bool:
        """Whether the engine can hand out its result block by block."""
        return self.keyword.encode() in _STREAMED


def _tokens(text: bytes) -> Iterator[_Token]:
    """The tokens of *text* that lie outside parentheses, without space and comments."""
    depth = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "space":
            continue
        value = match.group()
        if kind == "other" and value[0] in _OPEN:
            depth += 1
        elif kind == "other" and value[0] in _CLOSE:
            depth -= 1
        elif depth == 0:
            word = kind == "word"
            yield _Token(value.upper() if word else value, word, match.start(), match.end())


def outside_strings(canonical: bytes) -> Iterator[bytes]:
    """The words and signs of a statement as the parser writes it (no comments), without its strings."""
    for match in _TOKEN.finditer(canonical):
        if match.lastgroup != "space" and not match.group().startswith(b"'"):
            yield match.group()


def _skip_target(tokens: Iterator[_Token]) -> _Token | None:
    """Pass the target of an INSERT, which may itself be called ``values``, and give back the first token after it."""
    token = next(tokens, None)
    while token is not None and token.text in (b"INTO", b"TABLE", b"FUNCTION"):
        token = next(tokens, None)
    while token is not None:  # `database`.`table`
        token = next(tokens, None)
        if token is None or token.text != b".":
            return token
        token = next(tokens, None)
    return None


def _data_after_format(text: bytes, position: int) -> int:
    """After the format's name come blanks and at most one line end; then the data."""
    while text[position : position + 1] in (b" ", b"\t", b"\f") and position < len(text):
        position += 1
    if text[position : position + 1] == b"\r":
        position += 1
    if text[position : position + 1] == b"\n":
        position += 1
    return position


def _insert(text: bytes, tokens: Iterator[_Token]) -> InsertWithData | None:
    token = _skip_target(tokens)
    while token is not None:
        if token.word and token.text == b"VALUES":
            return InsertWithData(text[: token.start], "Values", token.end)
        if token.word and token.text == b"FORMAT":
            name = next(tokens, None)
            if name is None or not name.word:
                return None
            written = text[name.start : name.end].decode("ascii", "replace")
            return InsertWithData(text[: token.start], written, _data_after_format(text, name.end))
        if token.word and token.text in (b"SELECT", b"WITH", b"FROM", b"WATCH"):
            return None
        token = next(tokens, None)
    return None


def _result_format(text: bytes, tokens: Iterator[_Token]) -> str:
    """The name in a trailing FORMAT clause, which only SETTINGS or the end may follow."""
    found, candidate = b"", b""
    previous: _Token | None = None
    for token in tokens:
        if candidate and token.text not in (b";", b"SETTINGS"):
            candidate = b""
        elif candidate and token.text == b"SETTINGS":
            found, candidate = candidate, b""
        if token.word and previous is not None and previous.word and previous.text == b"FORMAT":
            candidate = text[token.start : token.end]
        previous = token
    return (candidate or found).decode("ascii", "replace")


def read(text: bytes) -> InsertWithData | Statement:
    """Look at *text*: the whole statement, or its beginning when it is an INSERT with data."""
    tokens = _tokens(text)
    first = next(tokens, None)
    keyword = first.text if first is not None and first.word else b""
    if keyword == b"INSERT":
        insert = _insert(text, tokens)
        if insert is not None:
            return insert
    elif first is None and b"(" in text:
        keyword = b"SELECT"  # a parenthesised SELECT; the engine's parser decides
    return Statement(text, keyword.decode("ascii", "replace"), _result_format(text, _tokens(text)))
