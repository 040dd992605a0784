"""Hear what is done by the proxies of connections and cursors that ``opentelemetry-instrumentation-dbapi`` hands out.

Their own calls are wrapped, and those that they only pass on: ``commit``, ``rollback``, ``close``, and sqlite3's ``execute`` of a
connection. Nothing is added to what a connection has.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from auditspan.changes.bindings import FORMAT, QMARK
from auditspan.changes.transaction import UNKNOWN
from auditspan.extractors import guard, warn_once
from auditspan.extractors.dbapi import WATCHED
from auditspan.extractors.driver_connections import Watch
from auditspan.extractors.driver_rows import Sent

if TYPE_CHECKING:
    from collections.abc import Callable


_HOOKED: Final = "_auditspan"  # attribute of a class of proxies
_STYLES: Final = {"qmark": QMARK, "numeric": QMARK, "named": QMARK, "format": FORMAT, "pyformat": FORMAT}
_STYLES_OF_SYSTEMS: Final = {"sqlite": QMARK, "postgresql": FORMAT, "mysql": FORMAT}
_PARAMETERS: Final = ("params", "vars", "args", "parameters", "params_seq", "vars_list", "seq_of_parameters")
_GIVING_IDS: Final = frozenset({"sqlite", "mysql"})
_NO_PARAMETERS: Final = (None,)
# Of the sqlite3 connection that is being made here: all of them share one integration, and other threads make theirs.
_FILE: Final[ContextVar[str]] = ContextVar("auditspan-sqlite-file", default="")


def hook(dbapi: Any) -> None:
    """Wrap the proxies of OpenTelemetry's module *dbapi*. Again does nothing."""
    connection, cursor = dbapi.TracedConnectionProxy, dbapi.TracedCursorProxy
    if hasattr(connection, _HOOKED):
        return
    integration = dbapi.DatabaseApiIntegration
    ours = [  # all of it, or nothing where one is missing
        (connection, "__init__", _watching(connection.__init__)),
        (connection, "cursor", _handing_on(connection.cursor)),
        (connection, "__getattr__", _passing_on(connection.__getattr__, _OF_CONNECTIONS)),
        (connection, "__exit__", _around_block(connection.__exit__)),
        (cursor, "execute", _around_statement(cursor.execute, many=False)),
        (cursor, "executemany", _around_statement(cursor.executemany, many=True)),
        (cursor, "__getattr__", _passing_on(cursor.__getattr__, _OF_CURSORS)),
        (integration, "wrapped_connection", _naming_file(integration.wrapped_connection)),
    ]
    for owner, name, wrapper in ours:
        setattr(owner, name, wrapper)
    setattr(connection, _HOOKED, True)


class _Watched:
    """What is known of one connection, for it and its cursors."""

    __slots__ = ("gives_ids", "raw", "style", "system", "watch")

    def __init__(self, raw: Any, integration: Any) -> None:
        self.raw = raw
        self.system = str(integration.database_system)
        self.gives_ids = self.system in _GIVING_IDS
        self.style = style_of(integration)
        self.watch = Watch(raw, self.system, _database_of(raw, integration), keep=True)


def _database_of(raw: Any, integration: Any) -> str:
    """As the connection says; the integration would have that of the last connection that said one."""
    if integration.database_system == "sqlite":
        return _FILE.get()
    path = integration.connection_attributes.get("database")
    found = functools.reduce(lambda it, name: getattr(it, name, None), path.split("."), raw) if path else None
    return found.decode(errors="ignore") if isinstance(found, bytes) else str(found or "")


def style_of(integration: Any) -> str:
    """How the parameters of a driver stand in its statements."""
    said = getattr(integration.connect_module, "paramstyle", "")
    return _STYLES.get(said, _STYLES_OF_SYSTEMS.get(integration.database_system, ""))


def _watched(proxy: Any) -> _Watched | None:
    return getattr(proxy, WATCHED, None)


def _watching(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, connection: Any, integration: Any = None, *args: Any, **kwargs: Any) -> None:
        original(self, connection, integration, *args, **kwargs)
        try:
            setattr(self, WATCHED, _Watched(connection, integration))
        except Exception:  # noqa: BLE001 - inside the application's connect
            warn_once("watch of a connection")

    return init


def _naming_file(original: Callable[..., Any]) -> Callable[..., Any]:
    """SQLite's connections don't tell their database."""

    @functools.wraps(original)
    def connect(self: Any, method: Any, args: Any, kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("database", "")
        said = _FILE.set(str(given).partition("?")[0])  # a URI may hold more than a name
        try:
            return original(self, method, args, kwargs)
        finally:
            _FILE.reset(said)

    return connect


def _handing_on(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def cursor(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = original(self, *args, **kwargs)
        setattr(made, WATCHED, _watched(self))
        return made

    return cursor


def _around_statement(original: Callable[..., Any], *, many: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        watched = getattr(self, WATCHED, None)
        if watched is None:
            return original(self, *args, **kwargs)
        before(watched.watch, watched.raw)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _failed(watched, args, kwargs, error, many)
            raise
        _done(watched, self.__wrapped__, args, kwargs, many)
        return result

    return execute


def _run(watched: _Watched, call: Any, args: Any, kwargs: Any, *, many: bool) -> Any:
    """Execute by a *call* of a connection, which makes a cursor."""
    before(watched.watch, watched.raw)
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        _failed(watched, args, kwargs, error, many)
        raise
    _done(watched, result, args, kwargs, many)
    return result


def before(watch: Watch, connection: Any) -> None:
    """A call begins. Never raises."""
    try:
        watch.before(connection)
    except Exception:  # noqa: BLE001 - inside the application's statement, as all here
        warn_once("look at a connection before a statement")


def _done(watched: _Watched, cursor: Any, args: Any, kwargs: Any, many: bool) -> None:  # noqa: FBT001 - as where it is called
    try:
        sql = text_of(args, kwargs)
        found = watched.watch.found(sql)
        if found is None:
            return
        sent = sent_of(sql, watched.style, args, kwargs, many=many)
        sent.counted = counted(cursor)
        if watched.gives_ids and not many:
            sent.last_id = getattr(cursor, "lastrowid", None)
            sent.certain_id = watched.system == "mysql"
        watched.watch.done(watched.raw, sent, found)
    except Exception:  # noqa: BLE001 - as above
        warn_once("look at a statement")


@guard
def _failed(watched: _Watched, args: Any, kwargs: Any, error: BaseException, many: bool) -> None:  # noqa: FBT001 - guard hands all on
    sent = sent_of(text_of(args, kwargs), watched.style, args, kwargs, many=many)
    watched.watch.failed(watched.raw, sent, error)


def text_of(args: Any, kwargs: Any) -> str:
    """The statement of a call, empty for what is no text."""
    sql = args[0] if args else kwargs.get("query", kwargs.get("operation", ""))
    if isinstance(sql, str):
        return sql
    return bytes(sql).decode("utf-8", "replace") if isinstance(sql, (bytes, bytearray)) else ""


def sent_of(sql: str, style: str, args: Any, kwargs: Any, *, many: bool) -> Sent:
    """The statement with its parameters. An iterator of them is the driver's to read."""
    given = args[1] if len(args) > 1 else None
    if kwargs and len(args) < 2:
        given = next((kwargs[name] for name in _PARAMETERS if name in kwargs), None)
    if style == QMARK and given and "%" in sql and "?" not in sql:
        style = FORMAT  # Django writes SQLite's so, and puts them right below this
    if not many:
        return Sent(sql, style, _NO_PARAMETERS if given is None else (given,))
    return Sent(sql, style, given if isinstance(given, (list, tuple)) else None)


def counted(cursor: Any) -> int:
    """The rows of the statement before, as the driver says."""
    rows = getattr(cursor, "rowcount", UNKNOWN)
    return rows if isinstance(rows, int) and rows >= 0 else UNKNOWN


def _passing_on(original: Callable[..., Any], ours: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    @functools.wraps(original)
    def passed_on(self: Any, name: str) -> Any:
        found = original(self, name)
        wrapper = ours.get(name)
        watched = _watched(self) if wrapper is not None else None
        return (
            functools.partial(wrapper, watched, found) if wrapper and watched and callable(found) else found
        )

    return passed_on


def _commit(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    before(watched.watch, watched.raw)
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        commit_failed(watched.watch, watched.raw, error)
        raise
    committed(watched.watch)
    return result


@guard
def committed(watch: Watch) -> None:
    """A commit is done."""
    watch.committed()


@guard
def commit_failed(watch: Watch, connection: Any, error: BaseException) -> None:
    """A commit raised *error*."""
    watch.commit_failed(connection, error)


def _rollback(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    before(watched.watch, watched.raw)
    try:
        return call(*args, **kwargs)
    finally:  # where it fails, the connection is lost, and the transaction with it
        rolled_back(watched.watch)


@guard
def rolled_back(watch: Watch) -> None:
    """A rollback is done."""
    watch.rolled_back()


def _close(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    state = state_before(watched.watch, watched.raw)
    result = call(*args, **kwargs)
    left(watched.watch, state)
    return result


def state_before(watch: Watch, connection: Any) -> str:
    """Of the connection's transaction; empty where it doesn't matter. Never raises."""
    try:
        return watch.state(connection) if watch.transaction else ""
    except Exception:  # noqa: BLE001 - a driver's answer
        warn_once("look at a connection")
        return ""


@guard
def left(watch: Watch, state: str) -> None:
    """A connection is closed."""
    watch.left(state)


def _execute(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(watched, call, args, kwargs, many=False)


def _executemany(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(watched, call, args, kwargs, many=True)


def _script(watched: _Watched, call: Any, *args: Any, **kwargs: Any) -> Any:
    commits = _before_script(watched)
    try:
        result = call(*args, **kwargs)
    except BaseException as error:
        _script_failed(watched, args, kwargs, error, commits)
        raise
    _script_done(watched, args, kwargs, commits)
    return result


def _before_script(watched: _Watched) -> bool:
    try:
        return watched.watch.before_script(watched.raw)
    except Exception:  # noqa: BLE001 - inside the application's script
        warn_once("look at a connection")
        return False


@guard
def _script_done(watched: _Watched, args: Any, kwargs: Any, commits: bool) -> None:  # noqa: FBT001 - as above
    if commits:
        watched.watch.committed_first(failed=False)
    sent = sent_of(text_of(args, kwargs), watched.style, (), {}, many=False)
    watched.watch.done(watched.raw, sent)


@guard
def _script_failed(
    watched: _Watched,
    args: Any,
    kwargs: Any,
    error: BaseException,
    commits: bool,  # noqa: FBT001 - as above
) -> None:
    if commits:
        watched.watch.committed_first(failed=True)
    sent = sent_of(text_of(args, kwargs), watched.style, (), {}, many=False)
    watched.watch.failed(watched.raw, sent, error)


_OF_CONNECTIONS: Final = {
    "commit": _commit,
    "rollback": _rollback,
    "close": _close,
    "execute": _execute,
    "executemany": _executemany,
    "executescript": _script,
}
_OF_CURSORS: Final = {"executescript": _script}


def _around_block(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def leave(self: Any, *args: Any, **kwargs: Any) -> Any:
        watched = _watched(self)
        state = state_before(watched.watch, watched.raw) if watched is not None else ""
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            if watched is not None:
                commit_failed(watched.watch, watched.raw, error)
            raise
        if watched is not None:
            _after_block(watched, state, args[0] if args else None)
        return result

    return leave


@guard
def _after_block(watched: _Watched, state: str, error: object) -> None:
    watched.watch.after_block(watched.raw, state, error)
