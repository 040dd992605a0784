"""What kind of statement arrived, and where the data of an INSERT starts.

ClickHouse's parser has the last word on every statement; this module looks only as far as routing needs. Reading a
statement wrongly here makes it fail, never do more: the engine's own parser judges both an INSERT with data and
everything else before it runs (*engine*). Where data starts: ClickHouse's src/Parsers/ParserInsertQuery.cpp.

The time it takes grows with the length of the statement and no faster, whatever the statement is: whoever may only
read sends these too. So a quote that nobody closes takes the rest of the text, as no statement can be made of it any
more, and once a ``$tag$`` is not closed, no further one is looked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_WITHOUT_TAGS: Final = rb"""
    (?P<space> \s++ | --[^\n]*+ | \#[!\ ][^\n]*+ | /\*.*?(?:\*/|\Z) )
  | (?P<quoted> '(?:[^'\\]++|\\.|'')*+(?:'|\\?\Z) | "(?:[^"\\]++|\\.|"")*+(?:"|\\?\Z)
              | `(?:[^`\\]++|\\.|``)*+(?:`|\\?\Z) )
  | (?P<word> [A-Za-z0-9_$\x80-\xff]++ )
  | (?P<other> . )
    """
_TOKEN = re.compile(_WITHOUT_TAGS, re.VERBOSE | re.DOTALL)
_TOKEN_OR_TAG = re.compile(rb"(?P<tag> \$\w*+\$ ) |" + _WITHOUT_TAGS, re.VERBOSE | re.DOTALL)
_OPEN, _CLOSE = frozenset(b"([{"), frozenset(b")]}")
_STREAMED = frozenset({b"SELECT", b"WITH", b"FROM"})


class _Token(NamedTuple):
    text: bytes  # words in upper case
    word: bool
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class InsertWithData:
    """``INSERT INTO t (a, b) SETTINGS x = 1 FORMAT CSV`` and its data.

    *target* ends before SETTINGS, *settings* before FORMAT or VALUES. *data_start* counts bytes from the start of the
    text: the first byte of the data that came with the statement.
    """

    target: bytes
    settings: bytes
    format: str
    data_start: int

    def taking_data(self, clause: bytes) -> bytes:
        """The statement that finds its data by *clause* (``FROM INFILE ...``) instead of behind itself."""
        return b"%s\n%s\n%sFORMAT %s" % (self.target, clause, self.settings, self.format.encode())


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


def _pieces(text: bytes) -> Iterator[tuple[str | None, int, int]]:
    """Kind, start and end of every token; what stands between two equal tags (``$a$...$a$``) is one, quoted."""
    position = 0
    while True:
        for match in _TOKEN_OR_TAG.finditer(text, position):
            if match.lastgroup == "tag":
                break
            yield match.lastgroup, match.start(), match.end()
        else:
            return
        start, tag = match.start(), match.group()
        closing = text.find(tag, match.end())
        if closing < 0:
            break
        position = closing + len(tag)
        yield "quoted", start, position
    # Each search for the end of a tag that has none reads the whole rest; one of them is enough.
    for match in _TOKEN.finditer(text, start):
        yield match.lastgroup, match.start(), match.end()


def _tokens(text: bytes) -> Iterator[_Token]:
    """The tokens of *text* that lie outside parentheses, without space and comments."""
    depth = 0
    for kind, start, end in _pieces(text):
        if kind == "space":
            continue
        if kind == "other" and text[start] in _OPEN:
            depth += 1
        elif kind == "other" and text[start] in _CLOSE:
            depth -= 1
        elif depth == 0:
            value, word = text[start:end], kind == "word"
            yield _Token(value.upper() if word else value, word, start, end)


def dollar_words(text: bytes) -> int:
    """How many words of *text* start with a dollar sign, as a tag that is not closed does."""
    return sum(kind == "word" and text.startswith(b"$", start) for kind, start, _ in _pieces(text))


def outside_strings(canonical: bytes) -> Iterator[bytes]:
    """The words and signs of a statement as the parser writes it (no comments, no tags), without its strings."""
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
    settings: int | None = None
    while token is not None:
        if token.word and token.text == b"SETTINGS" and settings is None:
            settings = token.start
        elif token.word and token.text in (b"VALUES", b"FORMAT"):
            form, data = "Values", token.end
            if token.text == b"FORMAT":
                name = next(tokens, None)
                if name is None or not name.word:
                    return None
                form = text[name.start : name.end].decode("ascii", "replace")
                data = _data_after_format(text, name.end)
            target_end = token.start if settings is None else settings
            return InsertWithData(text[:target_end], text[target_end : token.start], form, data)
        elif token.word and token.text in (b"SELECT", b"WITH", b"FROM", b"WATCH"):
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
