"""Read a row of ``audit.records`` back as the record it was, complete and to the nanosecond.

Times come as integers, because Python's datetime has no nanoseconds; maps come as pairs, because a dict would
lose a key that a sender repeated.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from auditspan_collector.query.times import format_iso
from auditspan_collector.record import AuditRecord, SpanEvent, SpanLink
from auditspan_collector.schema import LEAF_COLUMNS, SEAL_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from auditspan_collector.schema import Column

_PAIRS: Final = "Array(Tuple(String, String))"
_FLAT: Final = tuple(column for column in LEAF_COLUMNS if "." not in column.name)
_GROUPS: Final[dict[str, tuple[type[SpanEvent | SpanLink], tuple[Column, ...]]]] = {
    group: (kind, tuple(column for column in LEAF_COLUMNS if column.name.startswith(f"{group}.")))
    for group, kind in (("events", SpanEvent), ("links", SpanLink))
}


def _expression(column: Column) -> str:
    """The SQL that reads *column*: times as integers, maps as pairs."""
    name, kind = column.name, column.type.sql
    if "DateTime64(9" in kind:
        convert = "toUnixTimestamp64Nano({})"
    elif "DateTime64(3" in kind:
        convert = "toUnixTimestamp64Milli({})"
    elif "Map(" in kind:
        convert = f"CAST({{}}, '{_PAIRS}')"
    else:
        return name
    if "." in name:
        return f"arrayMap(element -> {convert.format('element')}, {name})"
    return convert.format(name)


# What `read_row` takes, for a query on records. No expression has an alias: one named like a column would stand for
# it in WHERE.
SELECT: Final = ", ".join(
    [
        *(column.name for column in SEAL_COLUMNS),
        *(_expression(column) for column in _FLAT),
        *(_expression(column) for _, columns in _GROUPS.values() for column in columns),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record, and where the ledger has it."""

    ledger_stream: str
    ledger_index: int
    record: AuditRecord

    def as_json(self) -> dict[str, Any]:
        """The row under the names of its columns, times in ISO 8601 (UTC, nine digits).

        Ids are in hex, one that is all zeroes (no parent) is empty. A key that a sender repeated has the list of its
        values.
        """
        row: dict[str, Any] = {"ledger_stream": self.ledger_stream, "ledger_index": self.ledger_index}
        for column in _FLAT:
            row[column.name] = _plain(column, getattr(self.record, column.field))
        for group, (_, columns) in _GROUPS.items():
            row[group] = [
                {
                    _inner(column.name): _plain(column, getattr(element, _inner(column.field)))
                    for column in columns
                }
                for element in getattr(self.record, group)
            ]
        return row


def read_row(row: Sequence[Any]) -> StoredRecord:
    """The record in *row*, the values of SELECT as clickhouse-connect gives them."""
    stream, index, *values = row
    found = {column.field: _value(column, value) for column, value in zip(_FLAT, values, strict=False)}
    nested = iter(values[len(_FLAT) :])
    for group, (kind, columns) in _GROUPS.items():
        arrays = [next(nested) for _ in columns]
        names = [_inner(column.field) for column in columns]
        found[group] = tuple(
            kind(
                **{
                    name: _value(column, value)
                    for name, column, value in zip(names, columns, element, strict=True)
                }
            )
            for element in zip(*arrays, strict=True)
        )
    return StoredRecord(stream, index, AuditRecord(**found))


def _inner(name: str) -> str:
    return name.partition(".")[2]


def _value(column: Column, value: Any) -> Any:
    if "Map(" in column.type.sql:
        return _pairs(value)
    if column.type.sql == "UUID":
        return value.bytes if isinstance(value, uuid.UUID) else uuid.UUID(value).bytes
    return tuple(value) if isinstance(value, list) else value


def _pairs(value: Iterable[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((key, text) for key, text in value)


def _plain(column: Column, value: Any) -> Any:
    kind = column.type.sql
    if "DateTime64(9" in kind:
        return format_iso(value)
    if "DateTime64(3" in kind:
        return format_iso(value * 1_000_000)
    if "Map(" in kind:
        return _object(value)
    if kind == "UUID":
        return str(uuid.UUID(bytes=value))
    if isinstance(value, bytes):
        return value.hex() if any(value) else ""
    return list(value) if isinstance(value, tuple) else value


def _object(pairs: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    values: dict[str, list[str]] = {}
    for key, text in pairs:
        values.setdefault(key, []).append(text)
    return {key: texts[0] if len(texts) == 1 else texts for key, texts in values.items()}
