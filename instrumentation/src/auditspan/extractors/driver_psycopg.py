"""Hear what is done by psycopg's connections and cursors.

The cursors of OpenTelemetry's instrumentation call ours. How a transaction ends is read from what the
connection itself sends (``_exec_command``: BEGIN, COMMIT, savepoints), which its ``commit()``, ``transaction()`` and pool come by,
synchronous or not.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from auditspan.changes.bindings import FORMAT
from auditspan.changes.records import as_text
from auditspan.changes.transaction import MAX_ROWS
from auditspan.extractors import guard, warn_once
from auditspan.extractors.driver_connections import Watch
from auditspan.extractors.driver_proxies import before, counted, left, sent_of, state_before, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

    from auditspan.extractors.driver_rows import Sent


_SLOT: Final = "_auditspan"  # attribute of a connection


def hook(instrumentation: Any) -> None:
    """Wrap what OpenTelemetry's module *instrumentation* gives, and the driver's own. Again does nothing."""
    psycopg: Any = sys.modules["psycopg"]  # which the instrumentation has imported
    tracer = instrumentation.CursorTracer
    if hasattr(tracer, _SLOT):
        return
    base = next(kind for kind in psycopg.Connection.__mro__ if "_exec_command" in vars(kind))
    ours = [  # all of it, or nothing where one is missing
        (base, "_exec_command", _following(base._exec_command)),  # noqa: SLF001 - all that a connection sends itself
        (psycopg.Connection, "close", _closing(psycopg.Connection.close)),
        (psycopg.AsyncConnection, "close", _closing_later(psycopg.AsyncConnection.close)),
        (psycopg.Cursor, "copy", _copying(psycopg.Cursor.copy)),
        (psycopg.AsyncCursor, "copy", _copying_later(psycopg.AsyncCursor.copy)),
        (tracer, "traced_execution", around_statement(tracer.traced_execution, watch_of)),
        (tracer, "traced_execution_async", _around_statement_later(tracer.traced_execution_async)),
    ]
    for owner, name, wrapper in ours:
        setattr(owner, name, wrapper)
    setattr(tracer, _SLOT, True)


def watch_of(connection: Any) -> Watch | None:
    """What follows *connection*, from now on if it was not followed. Never raises."""
    try:
        found = connection.__dict__.get(_SLOT)
        if found is None:
            found = Watch(connection, "postgresql", str(connection.info.dbname or ""), keep=False)
            setattr(connection, _SLOT, found)
        return found if isinstance(found, Watch) else None
    except Exception:  # noqa: BLE001 - inside the application's statement
        warn_once("watch of a connection")
        return None


def around_statement(
    original: Callable[..., Any], watched: Callable[[Any], Watch | None]
) -> Callable[..., Any]:
    """The *original* ``traced_execution`` of a tracer of cursors, which *watched* follows the connection of."""

    @functools.wraps(original)
    def traced_execution(self: Any, cursor: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        watch = watched(cursor.connection)
        if watch is None:
            return original(self, cursor, method, *args, **kwargs)
        before(watch, cursor.connection)
        call = _Call(self, cursor, method, args, kwargs)
        try:
            result = original(self, cursor, method, *args, **kwargs)
        except BaseException as error:
            _failed(watch, call, error)
            raise
        _done(watch, call)
        return result

    return traced_execution


def _around_statement_later(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def traced_execution(self: Any, cursor: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        watch = watch_of(cursor.connection)
        if watch is None:
            return await original(self, cursor, method, *args, **kwargs)
        before(watch, cursor.connection)
        call = _Call(self, cursor, method, args, kwargs)
        try:
            result = await original(self, cursor, method, *args, **kwargs)
        except BaseException as error:
            _failed(watch, call, error)
            raise
        _done(watch, call)
        return result

    return traced_execution


class _Call(NamedTuple):
    """One statement, as OpenTelemetry's tracer of cursors has it."""

    tracer: Any
    cursor: Any
    method: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _sent(call: _Call) -> Sent:
    sql = text_of(call.args, call.kwargs)
    if not sql:  # of psycopg's own kinds of statements
        given = call.args or (call.kwargs.get("query", ""),)
        sql = str(call.tracer.get_statement(call.cursor, given))
    many = getattr(call.method, "__name__", "") == "executemany"
    return sent_of(sql, FORMAT, call.args, call.kwargs, many=many)


@guard
def _done(watch: Watch, call: _Call) -> None:
    sql = text_of(call.args, call.kwargs)
    found = watch.found(sql) if sql else None
    if sql and found is None:
        return
    sent = _sent(call)
    sent.counted = counted(call.cursor)
    result = getattr(call.cursor, "pgresult", None)
    sent.unseen = bool(getattr(getattr(call.cursor.connection, "pgconn", None), "pipeline_status", 0))
    if result is not None and result.ntuples:
        sent.returned = functools.partial(_returned, result)
    watch.done(call.cursor.connection, sent, found)


@guard
def _failed(watch: Watch, call: _Call, error: BaseException) -> None:
    watch.failed(call.cursor.connection, _sent(call), error)


def _returned(result: Any, wanted: tuple[str, ...]) -> list[dict[str, str]]:
    """What RETURNING gave of the columns *wanted*, without taking it from the application."""
    named = {
        (result.fname(at) or b"").decode("utf-8", "replace"): at
        for at in range(result.nfields)
        if result.fformat(at) == 0  # as text
    }
    there = [(name, named[name]) for name in dict.fromkeys(wanted) if name in named]
    rows = range(min(result.ntuples, MAX_ROWS)) if there else ()
    return [{name: _as_said(result.get_value(row, at)) for name, at in there} for row in rows]


def _as_said(value: bytes | None) -> str:
    return as_text(None if value is None else bytes(value).decode("utf-8", "replace"))


def _following(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def command(self: Any, text: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        watch = watch_of(self)
        if watch is None:
            return (yield from original(self, text, *args, **kwargs))
        before(watch, self)
        try:
            result = yield from original(self, text, *args, **kwargs)
        except BaseException as error:
            _command_failed(watch, self, text, error)
            raise
        _commanded(watch, self, text)
        return result

    return command


def _command(connection: Any, text: Any) -> Sent:
    if hasattr(text, "as_string"):
        text = text.as_string(connection)
    return sent_of(text_of((text,), {}), FORMAT, (), {}, many=False)


@guard
def _commanded(watch: Watch, connection: Any, text: Any) -> None:
    watch.done(connection, _command(connection, text))


@guard
def _command_failed(watch: Watch, connection: Any, text: Any, error: BaseException) -> None:
    watch.failed(connection, _command(connection, text), error)


def _closing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def close(self: Any) -> None:
        state = _state_before(self)
        original(self)
        _closed(self, state)

    return close


def _closing_later(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def close(self: Any) -> None:
        state = _state_before(self)
        await original(self)
        _closed(self, state)

    return close


def _state_before(connection: Any) -> str:
    watch = connection.__dict__.get(_SLOT)
    return state_before(watch, connection) if watch is not None else ""


def _closed(connection: Any, state: str) -> None:
    if state and connection.closed:  # one of a pool goes back there
        left(connection.__dict__[_SLOT], state)


def _copying(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @contextlib.contextmanager
    def copy(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with _watching_copy(self, statement), original(self, statement, *args, **kwargs) as copying:
            yield copying

    return copy


def _copying_later(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    @contextlib.asynccontextmanager
    async def copy(self: Any, statement: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with _watching_copy(self, statement):
            async with original(self, statement, *args, **kwargs) as copying:
                yield copying

    return copy


@contextlib.contextmanager
def _watching_copy(cursor: Any, statement: Any) -> Iterator[None]:
    watch = watch_of(cursor.connection)
    if watch is None:
        yield
        return
    before(watch, cursor.connection)
    try:
        yield
    except BaseException as error:
        _command_failed(watch, cursor.connection, statement, error)
        raise
    _copied(watch, cursor, statement)


@guard
def _copied(watch: Watch, cursor: Any, statement: Any) -> None:
    sent = _command(cursor.connection, statement)
    sent.counted = counted(cursor)
    watch.done(cursor.connection, sent)
