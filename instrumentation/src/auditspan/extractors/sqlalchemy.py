"""SQLAlchemy: each change of data is a record inside the request that made it, written when its transaction ends.

Read from SQLAlchemy's own events, whoever made the engine and whether or not OpenTelemetry instruments it. A commit counts
once it has been made: the event comes before it, so ``Connection._commit_impl`` is wrapped.
"""

from __future__ import annotations

import functools
import logging
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import wrapt

from auditspan import attributes as names
from auditspan.changes import transaction as tx
from auditspan.changes.records import plain_name, rule_for
from auditspan.changes.statements import CHANGING, heads
from auditspan.changes.transaction import Transaction
from auditspan.extractors import dbapi, guard, warn_once
from auditspan.extractors.sqlalchemy_rows import complete, rows_of, table_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from auditspan.changes.statements import Head
    from auditspan.changes.transaction import Change, Row

_log = logging.getLogger(__name__)

INSTRUMENTORS: Final[tuple[str, ...]] = ()  # its events are enough
TESTED: Final = {"sqlalchemy": ("1.4", "2.1")}

_KEPT: Final = "auditspan"  # key of a connection record's info
_SLOT: Final = "_auditspan"  # attribute of a Connection
_COUNT: Final = "_auditspan_rows"  # attribute of an execution's context
_WHERE: Final = "_auditspan_where"  # attribute of an Engine
_SAVEPOINTS: Final = frozenset({"savepoint", "release_savepoint", "rollback_to_savepoint"})


def instrument(instrumentor: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """There is none."""
    del instrumentor
    return arguments


@functools.cache
def start() -> None:
    """Listen as soon as the application has imported SQLAlchemy. Again does nothing."""
    wrapt.register_post_import_hook(lambda module: _guarded(_listen, module), "sqlalchemy")
    wrapt.register_post_import_hook(lambda module: _guarded(_listen_to_sessions, module), "sqlalchemy.orm")


def _guarded(step: Callable[[Any], None], module: Any) -> None:
    try:
        step(module)
    except Exception:  # noqa: BLE001 - inside the application's import
        _log.warning("Auditspan can't listen to SQLAlchemy; changes of data leave no record", exc_info=True)


def _listen(_: Any) -> None:
    from sqlalchemy import event  # noqa: PLC0415 - only where SQLAlchemy is
    from sqlalchemy.engine import Connection, Engine  # noqa: PLC0415 - as above
    from sqlalchemy.pool import Pool  # noqa: PLC0415 - as above

    for method, wrapped in (
        ("_commit_impl", _around),
        ("_commit_twophase_impl", _around),
        ("_savepoint_impl", _with_name),  # the event of a savepoint comes before it has a name
        ("_execute_context", _telling),
    ):
        setattr(Connection, method, wrapped(getattr(Connection, method)))
    for target, name, listener in (
        (Engine, "after_cursor_execute", _sent),
        (Engine, "handle_error", _failed),
        (Engine, "rollback", _rolled_back),
        (Engine, "rollback_twophase", _rolled_back),
        (Engine, "release_savepoint", _release),
        (Engine, "rollback_savepoint", _roll_back_to),
        (Pool, "connect", _connected),
        (Pool, "checkin", _given_back),
        (Pool, "invalidate", _lost),
    ):
        event.listen(target, name, _listener(listener))


def _listen_to_sessions(_: Any) -> None:
    from sqlalchemy import event  # noqa: PLC0415 - only where SQLAlchemy is
    from sqlalchemy.orm import Session  # noqa: PLC0415 - as above

    event.listen(Session, "before_flush", _listener(_before_flush))
    event.listen(Session, "after_flush", _listener(_after_flush))


def _listener(ours: Callable[..., None]) -> Callable[..., None]:
    """*ours*, never raising; with a signature that SQLAlchemy takes for the newest."""

    def listener(*arguments: Any) -> None:
        try:
            ours(*arguments)
        except Exception:  # noqa: BLE001 - inside the application's statement
            warn_once(f"listener {ours.__qualname__}")

    return listener


def _around(original: Callable[..., Any]) -> Callable[..., Any]:
    committed = guard(_committed)

    @functools.wraps(original)
    def commit(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            committed(self, error)
            raise
        committed(self, None)
        return result

    return commit


def _with_name(original: Callable[..., Any]) -> Callable[..., Any]:
    begun = guard(_savepoint)

    @functools.wraps(original)
    def savepoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        name = original(self, *args, **kwargs)
        begun(self, name)
        return name

    return savepoint


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    """What the driver is told meanwhile is told here already; what came of it is known when it is done."""

    @functools.wraps(original)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = tx.TOLD_BY_MAPPER.set(True)
        try:
            result = original(self, *args, **kwargs)
        finally:
            tx.TOLD_BY_MAPPER.reset(token)
        try:
            _executed(self, result)
        except Exception:  # noqa: BLE001 - inside the application's statement
            warn_once("look at a statement of SQLAlchemy's")
        return result

    return execute


class _Flush:
    """One flush of a session, and its changes."""

    def __init__(self, session: Any) -> None:
        self.session = weakref.ref(session)
        self.changes: dict[tuple[Any, ...], Change] = {}

    def runs(self) -> bool:
        """Whether it still does: nobody tells the end of one that failed."""
        return bool(getattr(self.session(), "_flushing", False))


_flush: Final[ContextVar[_Flush | None]] = ContextVar("auditspan-flush", default=None)


def _before_flush(session: Any, *_: Any) -> None:
    _flush.set(_Flush(session))


def _after_flush(session: Any, *_: Any) -> None:
    flush = _flush.get()
    _flush.set(None)
    if flush is not None and flush.session() is session:
        complete(session, flush.changes.values())


def _of(connection: Any) -> Transaction | None:
    return getattr(getattr(connection, "_root", connection), _SLOT, None)


def _transaction(connection: Any) -> Transaction:
    found = _of(connection)
    if found is None:
        found = Transaction()
        setattr(getattr(connection, "_root", connection), _SLOT, found)
    info = connection.info
    kept = info.get(_KEPT)
    if kept is None or kept[0] is not found:
        info[_KEPT] = (found, weakref.ref(connection))
    return found


def _sent(connection: Any, cursor: Any, statement: str, _: Any, execution: Any, *__: Any) -> None:
    """A statement went to the driver: count its rows, and take up what is no construct of SQLAlchemy's."""
    rows = getattr(cursor, "rowcount", tx.UNKNOWN)
    rows = rows if isinstance(rows, int) else tx.UNKNOWN
    if _is_dml(execution):
        before = getattr(execution, _COUNT, 0)
        setattr(execution, _COUNT, tx.UNKNOWN if tx.UNKNOWN in {rows, before} else before + rows)
        return
    if _visited(execution) in _SAVEPOINTS:  # SQLAlchemy's own: they have events
        return
    found = heads(statement)
    for head in found:
        count = tx.UNKNOWN if head.inner else rows
        if head.verb in CHANGING and count:
            change = _begin(connection, head.table, head.verb, count)
            if change is not None:
                _take(connection, change)
    if any(head.verb not in CHANGING for head in found):
        _follow(connection, found)


def _follow(connection: Any, found: tuple[Head, ...]) -> None:
    """The application wrote the end of a transaction, or a savepoint, itself."""
    if len(found) == 1:
        _transaction(connection).follow(found[0])
    else:
        # A script, or a block of a procedure, whose END commits nothing: how far it came is nobody's to know.
        _transaction(connection).settle(names.UNKNOWN, tx.NOT_SEEN)


def _visited(execution: Any) -> str:
    statement = getattr(getattr(execution, "compiled", None), "statement", None)
    return str(getattr(statement, "__visit_name__", ""))


def _is_dml(execution: Any) -> bool:
    return execution is not None and bool(
        getattr(execution, "compiled", None) is not None
        and (execution.isinsert or execution.isupdate or execution.isdelete)
    )


def _verb(execution: Any) -> str:
    return "INSERT" if execution.isinsert else "UPDATE" if execution.isupdate else "DELETE"


def _executed(connection: Any, result: Any) -> None:
    execution = getattr(result, "context", None)
    if not _is_dml(execution):
        return
    table = table_of(execution)
    change = _begin(connection, getattr(table, "fullname", ""), _verb(execution))
    if change is None:
        return
    counted = getattr(execution, _COUNT, tx.UNKNOWN)
    change.rows, change.known = rows_of(execution, table, change.rule, counted)
    if change.rows:
        _take(connection, change)


def _take(connection: Any, change: Change) -> None:
    if tx.left:
        tx.settle_left()
    if _is_committed(connection):
        tx.end(change, names.SUCCESS)
        return
    flush = _flush.get()
    if flush is None or not flush.runs():
        _transaction(connection).add(change)
        return
    key = (id(connection), id(change.around), change.table, change.verb)
    there = flush.changes.get(key)
    if there is not None and not there.ended:
        there.take_in(change.rows, change.known if there.table == change.table else (), statements=0)
    else:
        flush.changes[key] = _transaction(connection).add(change)


def _begin(connection: Any, table: str, verb: str, rows: int = 0, known: Iterable[Row] = ()) -> Change | None:
    engine = connection.engine
    where: tuple[str, str] | None = getattr(engine, _WHERE, None)
    if where is None:  # the same for all its life
        database = getattr(getattr(engine, "url", None), "database", None)
        where = (str(engine.dialect.name), str(database or ""))
        setattr(engine, _WHERE, where)
    return tx.begin(plain_name(table), verb, system=where[0], database=where[1], rows=rows, known=known)


def _is_committed(connection: Any) -> bool:
    """Whether what was done is there already: the driver commits by itself, or SQLAlchemy 1.4 has done so."""
    isolation = connection.get_execution_options().get("isolation_level")
    if isolation is None:
        isolation = getattr(connection.dialect, "_on_connect_isolation_level", None) or getattr(
            connection.dialect, "isolation_level", None
        )
    return isolation == "AUTOCOMMIT" or not connection.in_transaction()


def _failed(error: Any) -> None:
    connection, execution = error.connection, error.execution_context
    if connection is None or error.statement is None:
        return
    reason = f"the statement failed: {type(error.original_exception).__name__}"
    found: list[tuple[str, str]] = []
    known: list[Row] = []
    if _is_dml(execution):
        table = table_of(execution)
        found = [(getattr(table, "fullname", ""), _verb(execution))]
        rule = rule_for(found[0][0])
        if rule is not None and not execution.isinsert:
            known = rows_of(execution, table, rule, len(execution.compiled_parameters))[1]
    else:
        found = [(head.table, head.verb) for head in heads(error.statement) if head.verb in CHANGING]
    for table, verb in found:
        change = _begin(connection, table, verb, known=known)
        if change is None:
            continue
        change.failed = reason
        if error.is_disconnect or _is_committed(connection):
            tx.end(change, names.FAILURE, reason)
        else:
            _transaction(connection).add(change)


def _committed(connection: Any, error: BaseException | None) -> None:
    transaction = _of(connection)
    if not transaction:
        return
    if error is None:
        transaction.settle(names.SUCCESS)
    elif getattr(error, "connection_invalidated", False) or not isinstance(error, Exception):
        transaction.settle(names.UNKNOWN, "the connection was lost while it committed")
    else:
        cause = type(getattr(error, "orig", None) or error).__name__
        transaction.settle(names.FAILURE, f"the commit failed: {cause}")


def _rolled_back(connection: Any, *_: Any) -> None:
    transaction = _of(connection)
    if transaction:
        transaction.settle(names.FAILURE, tx.ROLLED_BACK)


def _savepoint(connection: Any, name: Any) -> None:
    _transaction(connection).savepoint(str(name))


def _release(connection: Any, name: Any, *_: Any) -> None:
    transaction = _of(connection)
    if transaction is not None:
        transaction.release(str(name))


def _roll_back_to(connection: Any, name: Any, *_: Any) -> None:
    transaction = _of(connection)
    if transaction is not None:
        transaction.roll_back_to(str(name))
        transaction.release(str(name))  # SQLAlchemy does not go back to it


def _connected(connection: Any, *_: Any) -> None:
    """The driver below aiosqlite works in a thread of its own, where it can't see that we tell of it here."""
    driver = getattr(getattr(connection, "_connection", None), "_conn", None)
    if hasattr(driver, dbapi.WATCHED):
        setattr(driver, dbapi.WATCHED, None)


def _given_back(_: Any, record: Any) -> None:
    _leave(record, tx.NOT_COMMITTED)


def _lost(_: Any, record: Any, *__: Any) -> None:
    _leave(record, tx.LOST)


def _leave(record: Any, reason: str) -> None:
    kept = record.info.pop(_KEPT, None)
    if not kept or not kept[0]:
        return
    transaction, connection = kept
    if connection() is None:
        tx.leave(transaction, reason)  # the garbage collector's work
    else:
        transaction.settle(names.FAILURE, reason)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "SQLAlchemy": {
        "page": "sqlalchemy",
        "distribution": "sqlalchemy",
        "gives": "transactions rows keys values",
    },
}
