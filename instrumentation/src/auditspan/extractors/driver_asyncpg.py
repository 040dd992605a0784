"""Hear what is done by asyncpg's connections and prepared statements.

OpenTelemetry's instrumentation calls ours. asyncpg's own transactions, and what a pool does with a connection that
comes back, go by the connection's ``execute`` as texts.
"""

from __future__ import annotations

import functools
import sys
import weakref
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from auditspan.changes.bindings import DOLLAR
from auditspan.changes.records import as_text
from auditspan.changes.statements import COMMIT
from auditspan.changes.transaction import MAX_ROWS, UNKNOWN
from auditspan.extractors import guard, warn_once
from auditspan.extractors.driver_connections import GONE, IDLE, OPEN, Watch
from auditspan.extractors.driver_proxies import before, left, state_before
from auditspan.extractors.driver_rows import Sent

if TYPE_CHECKING:
    from collections.abc import Callable

_HOOKED: Final = "_auditspan"  # attribute of the instrumentor's class
_ANSWERING_ROWS: Final = frozenset({"fetch", "fetchrow", "fetchmany"})
# Connections have no room for an attribute.
_watches: Final[weakref.WeakKeyDictionary[Any, Watch]] = weakref.WeakKeyDictionary()


def hook(instrumentation: Any) -> None:
    """Wrap what OpenTelemetry's module *instrumentation* does, and the connections' end. Again does nothing."""
    instrumentor = instrumentation.AsyncPGInstrumentor
    connection = sys.modules["asyncpg.connection"].Connection
    if hasattr(instrumentor, _HOOKED):
        return
    ours = [  # all of it, or nothing where one is missing
        (instrumentor, "_do_execute", _around(instrumentor._do_execute, _of_connection)),  # noqa: SLF001 - no other name
        (instrumentor, "_do_prepared_execute", _around(instrumentor._do_prepared_execute, _of_statement)),  # noqa: SLF001 - as above
        (connection, "close", _closing(connection.close)),
        (connection, "terminate", _terminating(connection.terminate)),
    ]
    for owner, name, wrapper in ours:
        setattr(owner, name, wrapper)
    setattr(instrumentor, _HOOKED, True)


def state_of(connection: Any) -> str:
    """Of the transaction that is open on *connection*. That one is broken is told by the answer to its COMMIT."""
    if connection.is_closed():
        return GONE
    return OPEN if connection.is_in_transaction() else IDLE


class _Call(NamedTuple):
    """One call, as the instrumentation has it; *sets* are the parameters."""

    connection: Any
    method: str
    sql: str
    sets: tuple[Any, ...] | list[Any] | None
    statement: Any = None

    def sent(self) -> Sent:
        return Sent(self.sql, DOLLAR, self.sets)


def _of_connection(connection: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    sql = args[0] if args else kwargs.get("query", kwargs.get("command", ""))
    if func.__name__ == "executemany":
        given = args[1] if len(args) > 1 else kwargs.get("args")
        return _Call(connection, func.__name__, str(sql), given if isinstance(given, (list, tuple)) else None)
    return _Call(connection, func.__name__, str(sql), (args[1:],))


def _of_statement(statement: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    del kwargs
    sets: Any = (args,)
    if func.__name__ == "executemany":
        sets = args[0] if args and isinstance(args[0], (list, tuple)) else None
    elif func.__name__ == "fetchmany":
        sets = (args[0],) if args and isinstance(args[0], (list, tuple)) else None
    connection = statement._connection  # noqa: SLF001 - as the instrumentation itself does
    return _Call(connection, func.__name__, str(statement.get_query()), sets, statement)


def _watch_of(connection: Any) -> Watch:
    found = _watches.get(connection)
    if found is None:
        params = getattr(connection, "_params", None)
        database = str(getattr(params, "database", "") or "")
        found = _watches[connection] = Watch(connection, "postgresql", database, keep=False, state=state_of)
    return found


def _around(original: Callable[..., Any], call_of: Callable[..., _Call]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def execute(self: Any, func: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        try:
            call = call_of(instance, func, args, kwargs)
            watch = _watch_of(call.connection)
        except Exception:  # noqa: BLE001 - inside the application's statement
            warn_once("watch of a connection")
            return await original(self, func, instance, args, kwargs)
        before(watch, call.connection)
        try:
            result = await original(self, func, instance, args, kwargs)
        except BaseException as error:
            _failed(watch, call, error)
            raise
        _done(watch, call, result)
        return result

    return execute


@guard
def _failed(watch: Watch, call: _Call, error: BaseException) -> None:
    watch.failed(call.connection, call.sent(), error)


@guard
def _done(watch: Watch, call: _Call, result: Any) -> None:
    found = watch.found(call.sql)
    if found is None:
        return
    sent = call.sent()
    sent.counted = _counted(call, result)
    if call.method in _ANSWERING_ROWS and result:
        rows = [result] if call.method == "fetchrow" else result
        sent.returned = functools.partial(_returned, rows)
    if result == "ROLLBACK" and [head.verb for head in found[0]] == [COMMIT]:
        watch.rolled_back()  # PostgreSQL's answer to the COMMIT of a transaction in which something failed
    else:
        watch.done(call.connection, sent, found)


def _counted(call: _Call, result: Any) -> int:
    """From the command's status, as ``UPDATE 3``; a call that returns rows tells only those."""
    if call.method == "execute":
        status = result
    elif call.statement is not None and call.method != "executemany":
        status = call.statement.get_statusmsg()
    else:
        return len(result) if call.method in {"fetch", "fetchmany"} and result else UNKNOWN
    number = str(status or "").rpartition(" ")[2]
    return int(number) if number.isdigit() else UNKNOWN


def _returned(rows: list[Any], wanted: tuple[str, ...]) -> list[dict[str, str]]:
    there = [name for name in dict.fromkeys(wanted) if name in set(rows[0].keys())]
    return [{name: as_text(row[name]) for name in there} for row in rows[:MAX_ROWS]]


def _closing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def close(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watches.get(self)
        state = state_before(watch, self) if watch is not None else ""
        try:
            return await original(self, *args, **kwargs)
        finally:
            if state and watch is not None:
                left(watch, state)

    return close


def _terminating(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def terminate(self: Any) -> None:
        watch = _watches.get(self)
        state = state_before(watch, self) if watch is not None else ""
        original(self)
        if state and watch is not None:
            left(watch, state)

    return terminate
