"""Read from a text of SQL which tables it changes, and whether it begins or ends a transaction. Pure.

Only heads of statements are read: the verb, and the table's name after it. Comments, quoted names, schemas and ``WITH`` are
understood; what isn't is no change. Values are skipped; a text that holds some is kept in this process's memory alone, with
the last few hundred others, to be read once. The work is bounded by ``MAX_LENGTH``, and linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LENGTH: Final = 32_768  # characters that are looked at; a table's name stands at the beginning
_MAX_HEADS: Final = 20  # of a text with several statements
_MAX_CACHED_LENGTH: Final = 4_096

BEGIN: Final = "BEGIN"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
SAVEPOINT: Final = "SAVEPOINT"
RELEASE: Final = "RELEASE"
ROLLBACK_TO: Final = "ROLLBACK TO"
CHANGING: Final = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE", "TRUNCATE", "COPY"})

# An open comment or quote takes the rest, so that no character is looked at twice.
_TOKEN: Final = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*|\#[^\n]*|/\*(?:.*?\*/|.*))
  | (?P<name>"(?:[^"]|"")*(?:"|\Z)|`(?:[^`]|``)*(?:`|\Z)|\[[^\]]*(?:\]|\Z))
  | (?P<text>'(?:[^']|'')*(?:'|\Z))
  | (?P<dollar>\$(?P<tag>\w*)\$(?:.*?\$(?P=tag)\$|.*))
  | (?P<word>[^\W\d][\w$]*)
  | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_FIRST: Final = re.compile(r"\s*([A-Za-z]+)")
_ENDS: Final = {
    "BEGIN": BEGIN,
    "START": BEGIN,
    "COMMIT": COMMIT,
    "END": COMMIT,
    "ROLLBACK": ROLLBACK,
    "ABORT": ROLLBACK,
    "SAVEPOINT": SAVEPOINT,
    "RELEASE": RELEASE,
}
_SELECTS: Final = frozenset({"SELECT", "select"})  # as they are mostly written
_LEADING: Final = CHANGING | {"WITH"} | _ENDS.keys()
_BEFORE_NAME: Final = frozenset(
    [
        "INTO",
        "FROM",
        "TABLE",
        "ONLY",
        "OVERWRITE",
        "LOW_PRIORITY",
        "DELAYED",
        "HIGH_PRIORITY",
        "QUICK",
        "IGNORE",
        "CONCURRENTLY",
    ]
)
_CODE: Final = frozenset({"TRIGGER", "PROCEDURE", "FUNCTION", "EVENT"})
_ENDED_APART: Final = frozenset({"IF", "LOOP", "REPEAT", "WHILE"})
_AFTER_OR: Final = frozenset({"REPLACE", "IGNORE", "ROLLBACK", "ABORT", "FAIL"})


@dataclass(frozen=True, slots=True)
class Head:
    """One statement: its *verb*, and the *table* it changes or the name of the savepoint.

    *inner* says that it stands inside a ``WITH``, whose rows the driver doesn't count.
    """

    verb: str
    table: str = ""
    inner: bool = False


def heads(sql: str) -> tuple[Head, ...]:
    """The statements in *sql* that change data or a transaction, in their order."""
    # Most are SELECTs. One that has no second statement is not read further, and takes no place in the cache.
    beginning = sql[:6]
    if beginning not in _SELECTS and beginning[:1].isspace():
        beginning = sql.lstrip()[:6]
    if (beginning in _SELECTS or beginning.upper() == "SELECT") and ";" not in sql:
        return ()
    return _cached(sql) if len(sql) <= _MAX_CACHED_LENGTH else _read(sql)


@lru_cache(maxsize=512)
def _cached(sql: str) -> tuple[Head, ...]:
    return _read(sql)


def _read(sql: str) -> tuple[Head, ...]:
    first = _FIRST.match(sql)
    if first is not None and first[1].upper() not in _LEADING and ";" not in sql:
        return ()
    return tuple(_Reader(sql[:MAX_LENGTH]).statements())


def _tokens(sql: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup or ""
        if match["dollar"] is not None:
            yield "text", ""
        elif kind != "skip":
            yield kind, match[0]


class _Reader:
    """Reads the tokens of one text, one ahead."""

    def __init__(self, sql: str) -> None:
        self._tokens = _tokens(sql)
        self._alone = ";" not in sql
        self.kind, self.text = "", ""
        self._next()

    def statements(self) -> Iterator[Head]:
        found = 0
        while self.kind and found < _MAX_HEADS:
            for head in self._statement():
                yield head
                found += 1
            self._skip_to_end()

    def _next(self) -> None:
        self.kind, self.text = next(self._tokens, ("", ""))

    def _word(self) -> str:
        return self.text.upper() if self.kind == "word" else ""

    def _take(self, *words: str) -> bool:
        if self._word() in words:
            self._next()
            return True
        return False

    def _skip_to_end(self) -> None:
        if self._alone:  # so that the values of a long INSERT are not read one by one
            self.kind = ""
            return
        while self.kind and self.text != ";":
            self._next()
        self._next()

    def _statement(self) -> Iterator[Head]:
        if self._take("WITH"):
            yield from self._with()
        verb = self._word()
        if verb in CHANGING:
            self._next()
            head = self._change(verb)
            if head is not None:
                yield head
        elif verb == "CREATE":
            self._definition()
        elif verb in _ENDS:
            self._next()
            yield self._end(_ENDS[verb])

    def _definition(self) -> None:
        """A CREATE: what stands between BEGIN and END of a trigger or procedure is not done now."""
        code = False
        while self.kind and self.text != ";":
            code = code or self._word() in _CODE
            if code and self._take("BEGIN"):
                self._block()
            else:
                self._next()

    def _block(self) -> None:
        """The rest of a block, END included. An END IF or END LOOP ends none."""
        depth = 1
        while self.kind and depth:
            word = self._word()
            self._next()
            depth += word in {"BEGIN", "CASE"}
            depth -= word == "END" and not self._take(*_ENDED_APART)

    def _with(self) -> Iterator[Head]:
        """The statements in the parentheses of a WITH; stops at the one after it."""
        depth, opened = 0, False
        while self.kind and self.text != ";":
            word = self._word()
            if depth == 0 and (word in CHANGING or word == "SELECT"):
                return
            if opened and word in CHANGING:
                self._next()
                head = self._change(word)
                if head is not None:
                    yield Head(head.verb, head.table, inner=True)
                opened = False
                continue
            opened = self.text == "("
            depth += (self.text == "(") - (self.text == ")")
            self._next()

    def _change(self, verb: str) -> Head | None:
        while True:
            if self._take("OR"):  # SQLite's INSERT OR REPLACE
                verb = "REPLACE" if self._word() == "REPLACE" else verb
                self._take(*_AFTER_OR)
            elif self._take("TOP") or self.text == "(":  # SQL Server's UPDATE TOP (5)
                self._parentheses()
            elif not self._take(*_BEFORE_NAME):
                break
        table = self._name()
        if verb == "COPY":
            self._parentheses()
            if self._word() != "FROM":
                return None
        return Head(verb, table) if table else None

    def _parentheses(self) -> None:
        depth = 0
        while self.kind and (depth or self.text == "("):
            depth += (self.text == "(") - (self.text == ")")
            self._next()
            if not depth:
                return

    def _name(self) -> str:
        parts: list[str] = []
        while self.kind in {"name", "word"} and len(parts) < 4:
            parts.append(unquoted(self.text) if self.kind == "name" else self.text)
            self._next()
            if self.text != ".":
                break
            self._next()
        return ".".join(parts)

    def _end(self, what: str) -> Head:
        if what == ROLLBACK:
            self._take("WORK", "TRANSACTION", "TRAN")
            if self._take("TO"):
                self._take("SAVEPOINT")
                return Head(ROLLBACK_TO, self._name())
        if what == RELEASE:
            self._take("SAVEPOINT")
        return Head(what, self._name() if what in {SAVEPOINT, RELEASE} else "")


def unquoted(name: str) -> str:
    """A quoted *name* as it is meant."""
    quote = "]" if name[0] == "[" else name[0]
    return name[1:].removesuffix(quote).replace(quote * 2, quote)
