"""Which rows a statement of SQLAlchemy's changed, as far as its parameters and its result tell; asks no database.

Keys: of an INSERT what the result says, of an UPDATE or DELETE the values that its WHERE compares the primary key with,
where as many rows were changed as it names. Values, only of columns that a rule names: what was bound to them, and
the history that the mapper keeps of an object.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from auditspan.changes.records import MAX_KEY, are_secret, as_text
from auditspan.changes.transaction import MAX_ROWS, UNKNOWN, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from auditspan.changes.transaction import Change
    from auditspan.rules import Rule


def table_of(execution: Any) -> Any:
    """The table that a compiled INSERT, UPDATE or DELETE changes."""
    table = getattr(getattr(execution.compiled, "compile_state", None), "dml_table", None)
    if table is None:
        table = execution.compiled.statement.table
    while (
        not hasattr(table, "fullname")
        and (inner := getattr(table, "element", getattr(table, "left", None))) is not None
    ):
        table = inner
    return table


def rows_of(execution: Any, table: Any, rule: Rule, counted: int) -> tuple[int, list[Row]]:
    """How many rows there were, and what is known of the first of them."""
    wanted = (*rule.columns, *rule.target_id)
    rows, known = (_inserted if execution.isinsert else _found)(execution, table, wanted, counted)
    if _key_of(table).secret:
        for row in known:
            row.key = ""
    return rows, known


class _Key(NamedTuple):
    """The primary key of a table: its columns by name and by what SQLAlchemy calls them; *secret* ones are in no record."""

    names: tuple[str, ...]
    keys: tuple[str, ...]
    secret: bool


@lru_cache(maxsize=1024)
def _key_of(table: Any) -> _Key:
    names = tuple(column.name for column in table.primary_key)
    return _Key(names, tuple(column.key for column in table.primary_key), are_secret(names))


def _inserted(execution: Any, table: Any, wanted: tuple[str, ...], counted: int) -> tuple[int, list[Row]]:
    statement, bound = execution.compiled.statement, execution.compiled_parameters
    many = getattr(getattr(execution.compiled, "compile_state", None), "_multi_parameters", None)
    if getattr(statement, "select", None) is not None:
        return counted, []
    if many:
        rows = len(many)
        known = [
            Row(_key(table, p), after=_named(p, wanted)) for p in islice(_unfolded(bound[0], rows), MAX_ROWS)
        ]
    else:
        rows = len(bound) if execution.executemany else 1
        known = [Row(_key(table, p), after=_named(p, wanted)) for p in bound[:MAX_ROWS]]
        made = not all(row.key for row in known)  # by the database
        keys = execution.inserted_primary_key_rows if made and not execution._is_explicit_returning else ()  # noqa: SLF001 - SQLAlchemy has no other word for it
        for row, key in zip(known, keys or (), strict=False):
            row.key = row.key or _joined(key)
    if getattr(statement, "_post_values_clause", None) is not None and (counted < rows):
        # ON CONFLICT DO NOTHING: which of them is nobody's to know.
        return counted, []
    return rows, known


def _unfolded(bound: dict[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """The parameters of each row of ``insert().values([...])``, whose names end in _m0, _m1."""
    for at in range(rows):
        end = f"_m{at}"
        yield {name.removesuffix(end): value for name, value in bound.items() if name.endswith(end)}


def _found(execution: Any, table: Any, wanted: tuple[str, ...], counted: int) -> tuple[int, list[Row]]:
    compiled, bound = execution.compiled, execution.compiled_parameters
    if counted == 0 and compiled.returning:
        counted = UNKNOWN  # SQLite counts only when the rows have been read
    where = _compared(compiled, table)
    written = _written(compiled) if execution.isupdate else frozenset()
    shown = tuple(name for name in wanted if name in written)
    known = []
    for parameters in bound[:MAX_ROWS]:
        after = _named(parameters, shown)
        known += [Row(key, after=after) for key in _keys(where, parameters, table)] or [Row(after=after)]
    expected = len(bound) * (len(known) // max(1, len(bound[:MAX_ROWS])))
    if counted != expected:
        for row in known:
            row.key = ""
    if not any(row.key or row.after for row in known):
        known = []
    elif len({str(row.after) for row in known}) == 1 and not any(row.key for row in known):
        del known[1:]
    return counted, known[:MAX_ROWS]


def _written(compiled: Any) -> frozenset[str]:
    """The columns that an UPDATE sets."""
    said = getattr(compiled.compile_state, "_dict_parameters", None) or {}
    keys = {getattr(column, "key", column) for column in said}
    return frozenset(str(key) for key in keys | set(compiled.column_keys or ()))


def _compared(compiled: Any, table: Any) -> dict[str, Any]:
    """The parameters' names by primary key column, for the equalities and IN of a WHERE that are joined by AND."""
    names = {bind.key: name for bind, name in compiled.bind_names.items()}
    keys = _key_of(table).names
    found, left = {}, [*getattr(compiled.statement, "_where_criteria", ())]
    while left:
        clause = left.pop()
        if getattr(clause, "operator", None) is operator.and_:
            left += list(clause.clauses)
            continue
        column: Any = getattr(clause, "left", None)
        bind: Any = getattr(clause, "right", None)
        how = getattr(getattr(clause, "operator", None), "__name__", "")
        if how in {"eq", "in_op"} and getattr(column, "name", None) in keys:
            owner = getattr(getattr(column, "table", None), "fullname", None)
            if owner == table.fullname and getattr(bind, "key", None) in names:
                found[column.name] = names[bind.key]
    return found


def _keys(where: dict[str, Any], parameters: dict[str, Any], table: Any) -> list[str]:
    columns = _key_of(table).names
    if not columns or any(name not in where for name in columns):
        return []
    values = [parameters.get(where[name]) for name in columns]
    if len(values) == 1 and isinstance(values[0], (list, tuple)):
        distinct = list(dict.fromkeys(values[0]))
        return [as_text(value, MAX_KEY) for value in distinct]
    return [] if any(isinstance(value, (list, tuple)) for value in values) else [_joined(values)]


def _key(table: Any, parameters: dict[str, Any]) -> str:
    return _joined([parameters.get(key) for key in _key_of(table).keys])


def _joined(values: Any) -> str:
    if not values or None in values:
        return ""
    if len(values) == 1:
        return as_text(values[0], MAX_KEY)
    return "/".join([as_text(value, MAX_KEY) for value in values])


def _named(values: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, str]:
    return {name: as_text(values[name]) for name in wanted if name in values} if wanted else {}


def complete(session: Any, changes: Iterable[Change]) -> None:
    """Add what the objects of a flush tell: keys that the database made, and values from before."""
    for change in changes:
        wanted = (*change.rule.columns, *change.rule.target_id)
        if change.ended or change.statements != 1:
            continue
        if change.verb == "INSERT" and not all(row.key for row in change.known):
            rows = list(_objects(session.new, change.table, wanted))
            if len(rows) == min(change.rows, MAX_ROWS):
                change.known = rows
        elif wanted and change.verb != "INSERT":
            there = session.dirty if change.verb == "UPDATE" else session.deleted
            befores = {row.key: row.before for row in _objects(there, change.table, wanted, change.known)}
            for row in change.known:
                row.before = befores.get(row.key, {})


def _objects(
    objects: Iterable[Any], table: str, wanted: tuple[str, ...], only: Iterable[Row] | None = None
) -> Iterator[Row]:
    from sqlalchemy import inspect  # noqa: PLC0415 - only where SQLAlchemy is
    from sqlalchemy.orm.attributes import get_history  # noqa: PLC0415 - as above
    from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE  # noqa: PLC0415 - as above

    keys = None if only is None else {row.key for row in only}
    left = MAX_ROWS
    for thing in objects:
        mapper = inspect(thing).mapper
        mapped = next((each for each in mapper.tables if each.fullname == table), None)
        if mapped is None:
            continue
        secret = are_secret(column.name for column in mapped.primary_key)
        row = Row("" if secret else _joined(mapper.primary_key_from_instance(thing)))
        if keys is not None and row.key not in keys:
            continue
        for name in wanted:
            column = mapped.c.get(name)
            if column is None or column not in mapper.columns.values():
                continue
            history = get_history(thing, mapper.get_property_by_column(column).key, PASSIVE_NO_INITIALIZE)
            before, after = history.deleted or history.unchanged, history.added or history.unchanged
            if before:
                row.before[name] = as_text(before[0])
            if after:
                row.after[name] = as_text(after[0])
        yield row
        left -= 1
        if not left:
            return
