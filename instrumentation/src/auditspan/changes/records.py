"""Write one change of data as a record: a span of its own inside the request's, under the request's actor."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import logging
import time
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from auditspan import attributes as names
from auditspan import context
from auditspan.api import PROCESSOR
from auditspan.rules import SECRET_COLUMNS
from auditspan.spans import put

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.util.types import AttributeValue

    from auditspan.changes.transaction import Change
    from auditspan.processor import AuditSpanProcessor
    from auditspan.rules import Rule

_log = logging.getLogger(__name__)

_MAX_NAME: Final = 256  # characters of a table's name
MAX_KEY: Final = 128  # characters
MAX_VALUE: Final = 256  # characters
_SCALAR: Final = (
    *(str, int, float, decimal.Decimal, uuid.UUID),
    *(dt.date, dt.time, dt.timedelta),
)
# Besides those that no rule may name: what tables of sessions and tokens call their primary key.
_SECRET_KEYS: Final = SECRET_COLUMNS | {"key", "session_id", "sid"}
_warned: Final[set[str]] = set()


def rule_for(table: str) -> Rule | None:
    """The operator's word on changes of *table*; None where Auditspan does not run."""
    processor = getattr(trace.get_tracer_provider(), PROCESSOR, None)
    return processor.decisions.rule_for_table(table) if processor is not None else None


def are_secret(columns: Iterable[str]) -> bool:
    """Whether a key of these *columns* is one by which somebody could act as another: of sessions and tokens."""
    return any(column.lower() in _SECRET_KEYS for column in columns)


def as_text(value: object, limit: int = MAX_VALUE) -> str:
    """*value* of a column as it is recorded: plain types only, since another's text may be anything."""
    if value is None:
        return "null"
    if type(value) is int or type(value) is str:  # as most keys
        return plain(str(value), limit)
    if isinstance(value, enum.Enum):
        value = value.name
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value[: limit // 2]).hex()
    if type(value) in _SCALAR or isinstance(value, (bool, dt.datetime)):
        return plain(str(value), limit)
    return f"<{type(value).__name__}>"


def plain(text: str, limit: int = _MAX_NAME) -> str:
    """*text* without what can't be seen or encoded, cut at *limit* characters."""
    text = text[:limit]
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == " " else "?" for c in text.encode("utf-8", "replace").decode("utf-8")
    )


@lru_cache(maxsize=1024)
def plain_name(text: str) -> str:
    """``plain`` of a table's or a database's name; the same ones come again and again."""
    return plain(text)


def write(change: Change, outcome: str, reason: str) -> None:
    """Put the record into the spool. Never raises."""
    processor = getattr(trace.get_tracer_provider(), PROCESSOR, None)
    if processor is None:
        return
    try:
        _write(processor, change, outcome, reason)
    except Exception:  # noqa: BLE001 - runs inside the application's commit
        if not _warned:
            _warned.add("write")
            _log.warning("Auditspan could not record a change of data", exc_info=True)


def _write(processor: AuditSpanProcessor, change: Change, outcome: str, reason: str) -> None:
    """As ``api.record`` does, at the time and in the context of the change."""
    table, rule = plain_name(change.table), change.rule
    action = change.action
    span: Any = processor.tracer.start_span(
        f"{action} {table}".strip(), context.kept(change.context), start_time=change.started_ns
    )
    ended = time.time_ns()
    try:
        state = processor.begin_record_in(change.context, span, change.around)
        state.action = action
        state.target_type = rule.target_type or table
        state.target_id = _target_id(change)
        state.outcome = outcome
        state.reason = reason or rule.reason
        # Only now, so that nothing which came as baggage and was copied onto the new span stands in their place.
        put(span, _attributes(change, table))
        if outcome == names.FAILURE:
            span.set_status(Status(StatusCode.ERROR))
        # All is known: the record is written and the ordinary span marked in one go, and what it takes is no part of it.
        processor.concluding(span, state, ended)
    finally:
        span.end(ended)


def _target_id(change: Change) -> str:
    if change.rows > 1 or len(change.known) != 1:
        return ""
    row = change.known[0]
    if change.rule.target_id:
        values = [row.after.get(name, row.before.get(name, "")) for name in change.rule.target_id]
        return "/".join(values) if any(values) else ""
    return row.key


def _attributes(change: Change, table: str) -> dict[str, AttributeValue]:
    """What the span says of it: texts, integers and tuples of texts."""
    said: dict[str, AttributeValue] = {}
    if change.system:
        said["db.system.name"] = change.system
    if change.database:
        said["db.namespace"] = plain_name(change.database)
    if table:
        said["db.collection.name"] = table
    said["db.operation.name"] = change.verb
    if change.rows >= 0 and not change.failed:
        said[names.CHANGE_ROWS] = change.rows
    if change.statements > 1:
        said[names.CHANGE_STATEMENTS] = change.statements
    rows = change.known
    keys = tuple([row.key for row in rows])
    if any(keys):
        said[names.CHANGE_KEYS] = keys
    for name in change.rule.columns:
        for prefix, values in (
            (names.CHANGE_BEFORE, [row.before.get(name) for row in rows]),
            (names.CHANGE_AFTER, [row.after.get(name) for row in rows]),
        ):
            if any(value is not None for value in values):
                alone = values[0] if len(values) == 1 else None
                said[prefix + name] = alone if alone is not None else tuple([value or "" for value in values])
    return said
