"""Read from one statement of SQL which columns it binds to which of its parameters. Pure.

So that rows can be named by the values that are bound to their keys, and that values of columns which a rule names can be shown.
Only what is plain is read: ``INSERT INTO t (a, b) VALUES (?, ?)``, ``SET a = ?``, and a WHERE of comparisons by ``=``
or IN that AND joins. With an OR or NOT, or anything not known, the answer is that nothing is known. Whoever uses it compares
the number of parameters and of rows, so that a text that was misread names no wrong row.

A parser of all of SQL would be a dependency of every service, and dear: sqlparse takes fifteen times as long for an UPDATE, and
forty times for an INSERT of 400 rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from auditspan.changes.statements import unquoted

QMARK: Final = "qmark"  # ? and ?1, :name, @name, $name: SQLite
DOLLAR: Final = "dollar"  # $1: PostgreSQL's own
FORMAT: Final = "format"  # %s and %(name)s: PostgreSQL, MySQL
MAX_LENGTH: Final = 4_096  # characters of a text that is read as a whole, and then kept
_MAX_BEGINNING: Final = 1_024  # of a longer one, which is an INSERT of many rows, or says nothing

_GRAMMAR: Final = r"""
    (?P<skip>\s+|--[^\n]*|/\*(?:.*?\*/|.*)|::\s*[\w.]+(?:\(\d+\))?(?:\[\])*)
  | (?P<name>"(?:[^"]|"")*(?:"|\Z)|`(?:[^`]|``)*(?:`|\Z)|\[[^\]]*(?:\]|\Z))
  | (?P<text>'(?:[^']|'')*(?:'|\Z))
  | (?P<bind>BINDS)
  | (?P<number>\d+(?:\.\d+)?\b)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<other>.)
"""
_BINDS: Final = {QMARK: r"\?\d*|[:@$]\w+", FORMAT: r"%[sbt]|%\(\w+\)[sbt]", DOLLAR: r"\$\d+"}
_CONSTANTS: Final = {"NULL": None, "TRUE": True, "FALSE": False}
_ENDS: Final = frozenset({"", ";", "RETURNING", "ORDER", "LIMIT"})
_AFTER_SET: Final = _ENDS | {",", "WHERE", "FROM"}
_AFTER_TERM: Final = _ENDS | {"AND", ")"}
# Joined by AND alone, each comparison holds for each row; with one of these it may not.
_NOT_PLAIN: Final = frozenset({"OR", "XOR", "NOT", "CASE", "SELECT", "BETWEEN", "USING", "JOIN"})
_UPSERT: Final = re.compile(r"\b(?:CONFLICT|DUPLICATE)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Bound:
    """The value is parameter number *key*, or the one of that name."""

    key: int | str


@dataclass(frozen=True, slots=True)
class Written:
    """The value stands in the text."""

    value: object


Slot = Bound | Written


@dataclass(slots=True)
class Shape:
    """What one statement binds.

    *columns* are those that an INSERT or UPDATE writes, None where the value is an expression; *where* those whose value
    is one of those given, in each row that it finds. *bound* is how many parameters it takes by position, -1 where they have
    names or it is too long to count. An INSERT has the *columns* of its first row; of *many* rows each has *width* parameters.
    *certain* means that it inserts its rows or fails. Belongs to all who look: nobody changes it.
    """

    columns: dict[str, Slot | None] = field(default_factory=dict)
    where: dict[str, tuple[Slot, ...]] = field(default_factory=dict)
    bound: int = -1
    many: bool = False
    width: int = 0
    certain: bool = False


_NOTHING: Final = Shape()  # for all who ask


def shape_of(sql: str, style: str) -> Shape:
    """What *sql*, which is one INSERT, REPLACE, UPDATE or DELETE, binds in the parameters' *style*."""
    if len(sql) <= MAX_LENGTH:
        return _cached(sql, style)
    if _is_odd(sql[:MAX_LENGTH], style) or _UPSERT.search(sql):
        return _NOTHING
    return _read(sql[:_MAX_BEGINNING], style, whole=False)


@lru_cache(maxsize=512)
def _cached(sql: str, style: str) -> Shape:
    return _NOTHING if _is_odd(sql, style) else _read(sql, style, whole=True)


def _is_odd(sql: str, style: str) -> bool:
    """Whether parameters stand in *sql* in a way that is not known, or there is an escape in a text."""
    return style not in _BINDS or (style != QMARK and "\\" in sql)


def _read(sql: str, style: str, *, whole: bool) -> Shape:
    return _Reader(sql, style).shape(whole=whole)


@lru_cache(maxsize=3)
def _tokens(style: str) -> re.Pattern[str]:
    """Compiled when it is needed: a service that changes no data starts without it."""
    return re.compile(_GRAMMAR.replace("BINDS", _BINDS[style]), re.VERBOSE | re.DOTALL)


class _Reader:
    """Reads the tokens of one text; each as its kind and its text, of a parameter with where its value is."""

    def __init__(self, sql: str, style: str) -> None:
        self._count = 0
        self._named = False
        self._tokens: list[tuple[str, str, Slot | None]] = []
        for match in _tokens(style).finditer(sql):
            kind, text = match.lastgroup or "", match[0]
            if kind != "skip":
                self._tokens.append((kind, text, self._slot(kind, text)))
        self._at = 0

    def shape(self, *, whole: bool) -> Shape:
        """What the statement binds; a text that is not *whole* is one of which the end is missing."""
        shape = Shape()
        verb = self._word()
        self._at += 1
        if verb in {"INSERT", "REPLACE"}:
            self._insert(shape, whole=whole)
        elif whole and verb == "UPDATE" and self._skip_to("SET", over={","}):
            self._set(shape)
            if self._skip_to("WHERE", over={"FROM"}):
                self._where(shape)
        elif whole and verb == "DELETE" and self._skip_to("WHERE", over={","}):
            self._where(shape)
        if whole and not self._named:
            shape.bound = self._count
        return shape

    def _slot(self, kind: str, text: str) -> Slot | None:
        if kind == "bind":
            return self._bound(text)
        if kind == "text":
            return Written(text[1:-1].replace("''", "'"))
        if kind == "number":
            return Written(text)
        if kind == "word" and text.upper() in _CONSTANTS:
            return Written(_CONSTANTS[text.upper()])
        return None

    def _bound(self, text: str) -> Bound:
        if text[1:].isdigit() and text[0] in "?$":
            self._count = max(self._count, int(text[1:]))
            return Bound(int(text[1:]) - 1)
        if text[0] in ":@$" or text[1:2] == "(":
            self._named = True
            return Bound(text[2:-2] if text[0] == "%" else text[1:])
        self._count += 1
        return Bound(self._count - 1)

    def _word(self) -> str:
        """The keyword or sign that stands here; empty at the end, the kind for anything else."""
        if self._at >= len(self._tokens):
            return ""
        kind, text, _ = self._tokens[self._at]
        return text.upper() if kind in {"word", "other"} else kind

    def _skip_to(self, word: str, over: set[str]) -> bool:
        """Go behind *word*; False where it doesn't come, or something *over* which another table may come in."""
        plain = True
        while self._word() and self._word() != word:
            plain = plain and self._word() not in over
            self._at += 1
        self._at += 1
        return plain and self._at <= len(self._tokens)

    def _words(self) -> set[str]:
        return {text.upper() for kind, text, _ in self._tokens if kind == "word"}

    def _column(self) -> str:
        """The name that stands here, without its table; empty where none does."""
        name = ""
        while self._at < len(self._tokens) and self._tokens[self._at][0] in {"name", "word"}:
            kind, text, _ = self._tokens[self._at]
            name = unquoted(text) if kind == "name" else text
            self._at += 1
            if self._word() != ".":
                break
            self._at += 1
        return name

    def _insert(self, shape: Shape, *, whole: bool) -> None:
        names: list[str] = []
        while self._word() not in {"(", "VALUES", "SELECT", "DEFAULT", "SET", "WITH", ""}:
            self._at += 1
        if self._word() == "(":
            while self._word() not in {")", ""}:
                self._at += 1
                names.append(self._column())
            self._at += 1
        if self._word() != "VALUES" or not all(names):
            return
        self._at += 1
        before = self._position()
        slots = self._row()
        if slots is None or len(slots) != len(names):
            return
        shape.width = self._position() - before
        shape.columns = dict(zip(names, slots, strict=True))
        shape.many = self._word() == ","
        if not whole and not shape.many:  # its end may be missing
            shape.columns = {}
        words = self._words()
        shape.certain = whole and not words & {"CONFLICT", "IGNORE", "SELECT"}
        if "DUPLICATE" in words or ("CONFLICT" in words and "NOTHING" not in words):
            shape.columns = {}  # which row it is, and what stays of it, is decided by the database

    def _position(self) -> int:
        """How many parameters stand before here."""
        return sum(kind == "bind" for kind, _, _ in self._tokens[: self._at])

    def _row(self) -> list[Slot | None] | None:
        """The values of one row in parentheses."""
        if self._word() != "(":
            return None
        slots: list[Slot | None] = []
        while self._word() not in {")", ""}:
            self._at += 1
            start, depth = self._at, 0
            while self._word() and (depth or self._word() not in {",", ")"}):
                depth += (self._word() == "(") - (self._word() == ")")
                self._at += 1
            slots.append(self._tokens[start][2] if self._at == start + 1 else None)
        self._at += 1
        return slots

    def _set(self, shape: Shape) -> None:
        while True:
            name = self._column()
            if not name or self._word() != "=":
                return
            self._at += 1
            start, depth = self._at, 0
            while self._word() and (depth or self._word() not in _AFTER_SET):
                depth += (self._word() == "(") - (self._word() == ")")
                self._at += 1
            shape.columns[name] = self._tokens[start][2] if self._at == start + 1 else None
            if self._word() != ",":
                return
            self._at += 1

    def _where(self, shape: Shape) -> None:
        if self._words() & _NOT_PLAIN:
            return
        found: dict[str, tuple[Slot, ...]] = {}
        while self._word() not in _ENDS:
            while self._word() in {"(", "AND"}:
                self._at += 1
            name = self._column()
            slots = self._compared() if name else ()
            if slots and self._word() in _AFTER_TERM:
                found.setdefault(name, slots)
            self._skip_term()
        shape.where = found

    def _compared(self) -> tuple[Slot, ...]:
        """The values after ``=`` or IN."""
        if self._word() == "=":
            self._at += 1
            if self._word() == "=":  # SQLite takes it for one
                self._at += 1
            if self._word() == "ANY":
                self._at += 1
                return self._list()
            slot = self._tokens[self._at][2] if self._word() else None
            self._at += 1
            return (slot,) if slot is not None else ()
        if self._word() == "IN":
            self._at += 1
            return self._list()
        return ()

    def _list(self) -> tuple[Slot, ...]:
        slots = self._row() or []
        return tuple(slot for slot in slots if slot is not None) if None not in slots else ()

    def _skip_term(self) -> None:
        """Go to the next AND outside of what is open here, or the end."""
        depth = 0
        while self._word() and not (depth <= 0 and self._word() in _ENDS | {"AND"}):
            depth += (self._word() == "(") - (self._word() == ")")
            self._at += 1
