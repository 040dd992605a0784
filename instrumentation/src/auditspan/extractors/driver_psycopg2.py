"""Hear what is done by psycopg2's connections and cursors.

The cursors of OpenTelemetry's instrumentation call ours. psycopg2's connections are written in C, so
the application gets one of a class made from the one that it asked for, with ``commit``, ``rollback`` and ``close`` watched.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from auditspan.extractors import warn_once
from auditspan.extractors.driver_connections import Watch
from auditspan.extractors.driver_proxies import (
    before,
    commit_failed,
    committed,
    left,
    rolled_back,
    state_before,
)
from auditspan.extractors.driver_psycopg import around_statement

if TYPE_CHECKING:
    from collections.abc import Callable


_SLOT: Final = "_auditspan"  # attribute of a connection


def hook(instrumentation: Any) -> None:
    """Wrap what OpenTelemetry's module *instrumentation* gives, and the driver's own. Again does nothing."""
    tracer = instrumentation.CursorTracer
    if hasattr(tracer, _SLOT):
        return
    integration = instrumentation.DatabaseApiIntegration
    integration.wrapped_connection = _watching(integration.wrapped_connection)
    tracer.traced_execution = around_statement(tracer.traced_execution, _watch_of)
    setattr(tracer, _SLOT, True)


def _watch_of(connection: Any) -> Watch | None:
    return getattr(connection, _SLOT, None)


def _watching(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def connect(self: Any, method: Any, args: Any, kwargs: Any) -> Any:
        if len(args) > 1:  # connect(dsn, connection_factory, cursor_factory)
            args = (args[0], _factory(args[1]), *args[2:])
        else:
            kwargs = {**kwargs, "connection_factory": _factory(kwargs.get("connection_factory"))}
        connection = original(self, method, args, kwargs)
        _watch(connection)
        return connection

    return connect


def _factory(given: Any) -> Any:
    from psycopg2.extensions import connection  # noqa: PLC0415 - only where psycopg2 is

    given = given or connection
    return _watched(given) if isinstance(given, type) else given


def _watch(connection: Any) -> None:
    if not hasattr(connection, _SLOT):  # of a factory that is no class
        return
    try:
        watch = Watch(connection, "postgresql", str(connection.info.dbname or ""), keep=False)
        setattr(connection, _SLOT, watch)
    except Exception:  # noqa: BLE001 - inside the application's connect
        warn_once("watch of a connection")


@functools.lru_cache(maxsize=64)
def _watched(kind: Any) -> Any:
    """A class of connections like *kind*."""

    def commit(self: Any) -> None:
        watch = _watch_of(self)
        if watch is None:
            kind.commit(self)
            return
        before(watch, self)
        try:
            kind.commit(self)
        except BaseException as error:
            commit_failed(watch, self, error)
            raise
        committed(watch)

    def rollback(self: Any) -> None:
        watch = _watch_of(self)
        try:
            kind.rollback(self)
        finally:  # where it fails, the connection is lost, and the transaction with it
            if watch is not None:
                rolled_back(watch)

    def close(self: Any) -> None:
        watch = _watch_of(self)
        state = state_before(watch, self) if watch is not None else ""
        kind.close(self)
        if state and watch is not None:
            left(watch, state)

    methods = {"commit": commit, "rollback": rollback, "close": close, _SLOT: None}
    return type(kind.__name__, (kind,), {**methods, "__module__": kind.__module__, "__doc__": kind.__doc__})
