"""Collect the changes of one transaction, and write them as records when its end is known.

A change is no success before its transaction is committed. Savepoints are frames on a stack: releasing one hands its changes
to the frame below, rolling back to one makes them failures. Each frame holds a bounded number of changes; what comes
above that is counted into one for each request, table and action, so that a loop over a million rows costs memory for
a hundred.
"""

from __future__ import annotations

import time
from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context

from auditspan import attributes as names
from auditspan import context
from auditspan.changes import statements
from auditspan.changes.records import rule_for, write
from auditspan.rules import AUDIT, SKIP, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context

    from auditspan.changes.statements import Head
    from auditspan.context import AuditedSpan

MAX_CHANGES: Final = 50  # of a transaction (and of each savepoint) that are told one by one
MAX_FOLDED: Final = 10  # tables and actions that the others are counted by; beyond, one for each request
MAX_PARENTS: Final = (
    1000  # requests in one transaction that are told apart; beyond, one that is in none of them
)
MAX_ROWS: Final = 100  # whose keys and values are told in one record
MAX_SAVEPOINTS: Final = 100  # open inside each other
UNKNOWN: Final = -1  # how many rows there were

ROLLED_BACK: Final = "the transaction was rolled back"
ROLLED_BACK_TO_SAVEPOINT: Final = "rolled back to a savepoint"
NOT_COMMITTED: Final = "the connection was given back without a commit"
LOST: Final = "the connection was lost before a commit"
NOT_KNOWN: Final = "rolled back to a savepoint that is not known; whether this was before it can't be told"
NOT_SEEN: Final = "done; whether it was committed can't be seen"

ACTIONS: Final = {
    "INSERT": "CREATE",
    "COPY": "CREATE",
    "UPDATE": "UPDATE",
    "REPLACE": "UPDATE",
    "MERGE": "UPDATE",
    "DELETE": "DELETE",
    "TRUNCATE": "DELETE",
}

# True while a mapper that tells of its changes itself uses a driver: the driver's extractor need not.
TOLD_BY_MAPPER: Final[ContextVar[bool]] = ContextVar("auditspan-told-by-mapper", default=False)


@dataclass(slots=True)
class Row:
    """One row: its *key* as text, empty where it isn't known, and those values that a rule names."""

    key: str = ""
    before: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Change:
    """What one statement, or one flush, changed in a *table*.

    *around* is the audited span it happened in, *context* what was current then. *rows* is how many, or ``UNKNOWN``;
    *known* are the first of them. *failed* is why it came to nothing, *unsure* why that can't be told, once it is known.
    """

    table: str
    verb: str
    rule: Rule
    around: AuditedSpan | None
    context: Context
    system: str = ""
    database: str = ""
    rows: int = 0
    known: list[Row] = field(default_factory=list)
    statements: int = 1
    failed: str = ""
    unsure: str = ""
    started_ns: int = field(default_factory=time.time_ns)
    ended: bool = False

    @property
    def action(self) -> str:
        """The rule's word, or what the verb means."""
        return self.rule.action or ACTIONS.get(self.verb, self.verb)

    def take_in(self, rows: int, known: Iterable[Row], statements: int = 1) -> None:
        """Count another statement's *rows* here."""
        self.rows = UNKNOWN if UNKNOWN in {rows, self.rows} else self.rows + rows
        self.known += list(known)[: max(0, MAX_ROWS - len(self.known))]
        self.statements += statements


def begin(
    table: str, verb: str, *, system: str = "", database: str = "", rows: int = 0, known: Iterable[Row] = ()
) -> Change | None:
    """A change that is being made now; None where nobody wants a record of it.

    Inside an audited span it is one unless a rule skips the table; elsewhere only where a rule asks for it.
    """
    rule = rule_for(table)
    if rule is None or rule.do == SKIP:
        return None
    here = otel_context.get_current()
    around = context.current(here)
    if around is None and rule.do != AUDIT:
        return None
    # By position: a tenth of an INSERT's price is making this.
    known = list(known)[:MAX_ROWS] if known else []
    return Change(table, verb, rule, around, here, system, database, rows, known)


class _Frame:
    """The changes since a savepoint, or since the transaction began."""

    def __init__(self, name: str = "", *, blurred: bool = False) -> None:
        self.name = name
        self.blurred = blurred  # there were savepoints in it that are not tracked
        self.single: list[Change] = []
        self._folded: dict[tuple[Any, ...], Change] = {}

    def add(self, change: Change) -> Change:
        """Keep *change*; returns where it is kept."""
        if len(self.single) < MAX_CHANGES:
            self.single.append(change)
            return change
        ended = (change.failed, change.unsure)
        key: tuple[Any, ...] = (id(change.around), *ended, change.table, change.verb)
        if key not in self._folded and len(self._folded) >= MAX_FOLDED:
            key = (id(change.around), *ended)
            if key not in self._folded and len(self._folded) >= MAX_PARENTS:
                key = ended
            if key not in self._folded:
                change.table, change.verb, change.rule, change.known = "", "EXECUTE", Rule(), []
        there = self._folded.setdefault(key, change)
        if there is not change:
            known = change.known if there.table == change.table else ()
            there.take_in(change.rows, known, change.statements)
        elif key == ended:
            there.around, there.context = None, otel_context.Context()
        return there

    def all(self) -> list[Change]:
        """What there is, in order."""
        return [*self.single, *self._folded.values()]

    def __bool__(self) -> bool:
        return bool(self.single)


class Transaction:
    """The changes on one connection whose end is not known yet. For one thread at a time, as connections are."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._frames = [_Frame()]
        self._undone = _Frame()

    def __bool__(self) -> bool:
        """Whether there are any. Asked at each statement, of which most find none."""
        frames = self._frames
        if len(frames) == 1:
            return bool(frames[0].single or self._undone.single)
        return bool(self._undone) or any(frames)

    def add(self, change: Change) -> Change:
        """Keep *change* until the end; returns where it is kept, which may be another one that counts it."""
        single = self._frames[-1].single
        if len(single) < MAX_CHANGES and not (change.failed or change.unsure):
            single.append(change)
            return change
        return (self._undone if change.failed or change.unsure else self._frames[-1]).add(change)

    def savepoint(self, name: str) -> None:
        """What comes now can be undone by itself."""
        if len(self._frames) <= MAX_SAVEPOINTS:
            self._frames.append(_Frame(name))
        else:
            self._frames[-1].blurred = True

    def release(self, name: str) -> None:
        """The savepoint, and those after it, are no more; their changes are the transaction's."""
        at = self._find(name)
        if at:
            for frame in self._pop(at):
                for change in frame.all():
                    self._frames[-1].add(change)

    def roll_back_to(self, name: str) -> None:
        """What was done since the savepoint is undone; the savepoint stays."""
        at = self._find(name)
        if at:
            for frame in self._pop(at):
                for change in frame.all():
                    change.failed = ROLLED_BACK_TO_SAVEPOINT
                    self._undone.add(change)
            self._frames.append(_Frame(name))
        else:
            self._doubt(len(self._frames) - 1 if self._frames[-1].blurred else 0)

    def _doubt(self, at: int) -> None:
        """Something in the frames from *at* on is undone, and nobody can say what."""
        for number, frame in enumerate(self._frames[at:], at):
            for change in frame.all():
                change.unsure = NOT_KNOWN
                self._undone.add(change)
            self._frames[number] = _Frame(frame.name, blurred=frame.blurred)

    def settle(self, outcome: str, reason: str = "") -> None:
        """The transaction ended so: write the records. What was undone before is a failure in any case. Never raises."""
        if not self:
            if len(self._frames) > 1 or self._frames[0].blurred:
                self.__init__()  # type: ignore[misc] # savepoints without a change end with it, too
            return
        changes = self._undone.all()
        for frame in self._frames:
            changes += frame.all()
        self._begin()
        for change in sorted(changes, key=lambda each: each.started_ns):
            end(change, outcome, reason)

    def follow(self, head: Head) -> None:
        """A statement that the application wrote itself begins or ends something."""
        if head.verb == statements.COMMIT:
            self.settle(names.SUCCESS)
        elif head.verb == statements.ROLLBACK:
            self.settle(names.FAILURE, ROLLED_BACK)
        elif head.verb == statements.SAVEPOINT:
            self.savepoint(head.table)
        elif head.verb == statements.RELEASE:
            self.release(head.table)
        elif head.verb == statements.ROLLBACK_TO:
            self.roll_back_to(head.table)

    def _find(self, name: str) -> int:
        wanted = name.casefold()
        found = (
            at for at in range(len(self._frames) - 1, 0, -1) if self._frames[at].name.casefold() == wanted
        )
        return next(found, 0)

    def _pop(self, at: int) -> list[_Frame]:
        popped, self._frames = self._frames[at:], self._frames[:at]
        return popped


def end(change: Change, outcome: str, reason: str = "") -> None:
    """Write the record of *change*, which ended so unless it had failed before. Never raises."""
    change.ended = True
    if change.failed:
        outcome, reason = names.FAILURE, change.failed
    elif change.unsure and outcome == names.SUCCESS:
        outcome, reason = names.UNKNOWN, change.unsure
    write(change, outcome, reason)


# Transactions whose connection the garbage collector found: it may run while this very thread holds the spool's lock.
left: Final[deque[tuple[Transaction, str, str]]] = deque(maxlen=1000)


def leave(transaction: Transaction, reason: str, outcome: str = names.FAILURE) -> None:
    """Let the next one who comes by say that *transaction* failed, or what else became of it."""
    left.append((transaction, outcome, reason))


def settle_left() -> None:
    """Write what was left."""
    while left:
        transaction, outcome, reason = left.popleft()
        transaction.settle(outcome, reason)
