"""Follow one connection of a driver: its changes from the statement that made them until their transaction's end is known.

Who made what is told by the extractor of the driver, before and after each call. Whether a transaction is open is asked of the
driver, which knows it from the database's last answer: so changes that are committed by themselves count at once, and ends
that nobody told (DDL in MySQL, a deadlock, ON CONFLICT ROLLBACK) are not taken for what they aren't. No statement is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.changes import statements
from auditspan.changes import transaction as tx
from auditspan.changes.records import plain_name
from auditspan.changes.statements import CHANGING, Head, heads
from auditspan.changes.transaction import TOLD_BY_MAPPER, Change, Transaction
from auditspan.extractors.driver_rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.extractors.driver_rows import Sent

# The heads of a text, and the change that it makes where that is one.
Found = tuple[tuple[Head, ...], Change | None]

# What a driver says of its connection's transaction.
IDLE: Final = "idle"  # there is none
OPEN: Final = "open"
BROKEN: Final = "broken"  # it can only be rolled back; PostgreSQL takes a COMMIT for that
GONE: Final = "gone"  # the connection is closed or lost
UNTOLD: Final = "untold"  # the driver doesn't know

_LOST: Final = frozenset({"OperationalError", "InterfaceError", "AdminShutdown"})
_LEGACY: Final = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL; before Python 3.12 there is no other
_MYSQL_DEADLOCK: Final = 1213  # the server has rolled back by the time it says so
_IN_SOME: Final = "one of several failed; which rows were changed before can't be told"
_LOST_IN_COMMIT: Final = "the connection was lost while it committed"


def state_of(connection: Any) -> Callable[[Any], str]:
    """How to ask a connection of this kind for its transaction."""
    if hasattr(connection, "in_transaction"):
        return _of_sqlite
    if hasattr(getattr(connection, "info", None), "transaction_status"):
        return _of_postgresql
    if hasattr(connection, "server_status") and hasattr(connection, "open"):
        return _of_pymysql
    return _of_autocommit


def _of_sqlite(connection: Any) -> str:
    try:
        return OPEN if connection.in_transaction else IDLE
    except Exception:  # noqa: BLE001 - as sqlite3 says that it is closed
        return GONE


def _of_postgresql(connection: Any) -> str:
    if connection.closed:
        return GONE
    return (IDLE, OPEN, OPEN, BROKEN, GONE)[int(connection.info.transaction_status)]


def _of_pymysql(connection: Any) -> str:
    if not connection.open:
        return GONE
    return OPEN if connection.server_status & 1 else IDLE  # SERVER_STATUS_IN_TRANS, of the last answer


def _of_autocommit(connection: Any) -> str:
    asked = getattr(connection, "get_autocommit", None)
    commits = asked() if callable(asked) else getattr(connection, "autocommit", None)
    return IDLE if commits is True or commits == 1 else UNTOLD


class Watch:
    """The transaction of one connection. As a connection, for one thread at a time."""

    def __init__(
        self,
        connection: Any,
        system: str,
        database: str,
        *,
        keep: bool,
        state: Callable[[Any], str] | None = None,
    ) -> None:
        """Where *keep* is said, *connection* is asked once more when the application has dropped it.

        *state* is how to ask it, where it isn't to be seen.
        """
        self.transaction: Final = Transaction()
        self._system = system
        self._database = database
        self._state = state or state_of(connection)
        self._kept = connection if keep else None
        self._begun = False  # by a BEGIN in a text, which matters where the driver can't tell
        self._broken = False

    def __del__(self) -> None:
        """The application dropped the connection. The garbage collector's work: nothing is written here."""
        try:
            if self.transaction:
                if self._kept is not None and self._state(self._kept) == IDLE:
                    tx.leave(self.transaction, tx.NOT_SEEN, names.UNKNOWN)
                else:
                    tx.leave(self.transaction, tx.NOT_COMMITTED)
        except Exception:  # noqa: BLE001, S110 - nobody is there to be told
            pass

    def state(self, connection: Any) -> str:
        """Of the transaction that is open there."""
        found = self._state(connection)
        return OPEN if found == IDLE and self._begun and self._state is _of_autocommit else found

    def before(self, connection: Any) -> None:
        """A call to the driver begins."""
        if tx.left:
            tx.settle_left()
        self._broken = False
        if self.transaction:
            state = self.state(connection)
            self._broken = state == BROKEN
            if state == IDLE:
                self.transaction.settle(names.UNKNOWN, tx.NOT_SEEN)

    def found(self, sql: str) -> Found | None:
        """What is in *sql* that there is something to do about once it is done; None where there isn't."""
        those = heads(sql)
        if not those:
            return ((), None) if self.transaction else None
        if len(those) == 1 and those[0].verb in CHANGING:
            change = self._begin(those[0])
            return (those, change) if change is not None or self.transaction else None
        return those, None

    def before_script(self, connection: Any) -> bool:
        """A script of SQLite's begins; whether it commits what there is before it does anything."""
        self.before(connection)
        return bool(self.transaction) and getattr(connection, "autocommit", _LEGACY) == _LEGACY

    def committed_first(self, *, failed: bool) -> None:
        """The script has committed what came before; where it *failed*, perhaps by that."""
        self.transaction.settle(names.UNKNOWN if failed else names.SUCCESS, tx.NOT_SEEN if failed else "")

    def done(self, connection: Any, sent: Sent, found: Found | None = None) -> None:
        """The statement, in which is what was *found*, is done."""
        those, begun = found or (heads(sent.sql), None)
        last = len(those) - 1
        for number, head in enumerate(those):
            if head.verb not in CHANGING:
                self._follow(head)
                continue
            change = begun if begun is not None else self._begin(head)
            if change is not None:
                self._changed(change, head, sent, alone=last == 0, counted=number == last and not head.inner)
        if self.transaction:
            self._look(connection, sent.sql, several=last > 0)

    def _changed(self, change: Change, head: Head, sent: Sent, *, alone: bool, counted: bool) -> None:
        if counted and sent.counted == 0 and "RETURNING" not in sent.sql.upper():
            return
        if sent.unseen:
            change.unsure = tx.NOT_SEEN
        if alone:
            change.rows, change.known = rows_of(head, sent, change.rule)
        else:
            change.rows = sent.counted if counted else tx.UNKNOWN
        if change.rows:
            self.transaction.add(change)

    def _begin(self, head: Head) -> Change | None:
        if TOLD_BY_MAPPER.get():
            return None
        return tx.begin(plain_name(head.table), head.verb, system=self._system, database=self._database)

    def _follow(self, head: Head) -> None:
        if head.verb == statements.BEGIN:
            if self._system == "mysql":  # commits what came before
                self.transaction.settle(names.SUCCESS)
            self._begun = True
            return
        if head.verb in {statements.COMMIT, statements.ROLLBACK}:
            self._begun = False
        if head.verb == statements.COMMIT and self._broken:
            self.transaction.settle(names.FAILURE, tx.ROLLED_BACK)
        else:
            self.transaction.follow(head)

    def _look(self, connection: Any, sql: str, *, several: bool) -> None:
        """Whether what is there has been committed by now."""
        state = self._state(connection)
        if state == OPEN:
            return
        state = self.state(connection)
        if state == IDLE:
            prepared = sql.lstrip()[:8].upper().startswith("PREPARE ")  # the first phase of two
            self.transaction.settle(
                names.UNKNOWN if prepared else names.SUCCESS, tx.NOT_SEEN if prepared else ""
            )
        elif state == UNTOLD and several:
            # A script, or a block of a procedure, whose END commits nothing: how far it came is nobody's to know.
            self.transaction.settle(names.UNKNOWN, tx.NOT_SEEN)

    def failed(self, connection: Any, sent: Sent, error: BaseException) -> None:
        """The statement raised *error*."""
        found = heads(sent.sql)
        if found and found[-1].verb == statements.COMMIT:
            self.commit_failed(connection, error)
        state = self.state(connection)
        for head in found:
            if head.verb in CHANGING:
                self._refused(head, sent, error, several=len(found) > 1, state=state)
        if not self.transaction:
            return
        if state == GONE:
            self.transaction.settle(names.FAILURE, tx.LOST)
        elif state == IDLE or _is_deadlock(self._system, error):
            self.transaction.settle(names.FAILURE, tx.ROLLED_BACK)

    def _refused(self, head: Head, sent: Sent, error: BaseException, *, several: bool, state: str) -> None:
        change = self._begin(head)
        if change is None:
            return
        in_some = several or sent.sets is None or len(sent.sets) > 1
        if in_some and state != BROKEN:
            change.rows, change.unsure = tx.UNKNOWN, _IN_SOME
            if state == IDLE:
                tx.end(change, names.UNKNOWN, _IN_SOME)
                return
        else:
            change.failed = f"the statement failed: {type(error).__name__}"
            if not several and head.verb in {"UPDATE", "DELETE"}:
                sent.refused = True
                change.known = rows_of(head, sent, change.rule)[1]
        self.transaction.add(change)

    def committed(self) -> None:
        """``commit()`` of the driver is done."""
        self._begun = False
        if self._broken:
            self.transaction.settle(names.FAILURE, tx.ROLLED_BACK)
        else:
            self.transaction.settle(names.SUCCESS)

    def commit_failed(self, connection: Any, error: BaseException) -> None:
        """It raised *error*; the transaction may be there still, to be tried again."""
        if not self.transaction:
            return
        state = self.state(connection)
        if (
            state == GONE
            or (state == UNTOLD and type(error).__name__ in _LOST)
            or not isinstance(error, Exception)
        ):
            self.transaction.settle(names.UNKNOWN, _LOST_IN_COMMIT)
        elif state != OPEN:
            self.transaction.settle(names.FAILURE, f"the commit failed: {type(error).__name__}")

    def rolled_back(self) -> None:
        """``rollback()`` of the driver is done."""
        self._begun = False
        self.transaction.settle(names.FAILURE, tx.ROLLED_BACK)

    def left(self, state: str) -> None:
        """The connection, in *state* a moment ago, is closed."""
        self._begun = False
        if state == IDLE:
            self.transaction.settle(names.UNKNOWN, tx.NOT_SEEN)
        else:
            self.transaction.settle(names.FAILURE, tx.LOST if state == GONE else tx.NOT_COMMITTED)

    def after_block(self, connection: Any, state: str, error: object) -> None:
        """A ``with`` of the connection, which was in *state* before, is over."""
        if self.transaction:
            now = self.state(connection)
            if now == GONE:
                self.left(state)
            elif error is not None:
                self.rolled_back()
            elif now == IDLE:
                self.committed()
        self._begun = False


def _is_deadlock(system: str, error: BaseException) -> bool:
    return system == "mysql" and error.args[:1] == (_MYSQL_DEADLOCK,)
