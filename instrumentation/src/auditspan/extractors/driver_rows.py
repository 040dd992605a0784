"""Which rows a statement changed, as far as its text, its parameters and the driver's count tell; asks no database.

Keys: what is bound to the key's columns by an INSERT, or compared with them by a WHERE, where as many rows were changed as it
names; what the driver says of the row that it inserted. A text doesn't say which columns the key has: a model of Django's
does, or a rule's ``target``; else a column ``id`` is taken for it. Values, only of columns that a rule names: what was bound.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from auditspan.changes.bindings import MAX_LENGTH, Bound, shape_of
from auditspan.changes.records import MAX_KEY, are_secret, as_text
from auditspan.changes.transaction import MAX_ROWS, UNKNOWN, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.changes.bindings import Shape, Slot
    from auditspan.changes.statements import Head
    from auditspan.rules import Rule

_ABSENT: Final = object()
_BY_CONVENTION: Final = ("id",)
_NO_MODELS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({})


@dataclass(slots=True)
class Sent:
    """One statement as it went to a driver. *sets* are its parameters, one for each time it ran, None where they can't be read.

    *counted* is the driver's row count, *last_id* the number that the database gave to the last row inserted; *certain_id* says
    that such a number is a key, *unseen* that the database has not answered yet, *refused* that it refused. *returned* gives
    the values of columns that the statement returned, row by row.
    """

    sql: str
    style: str
    sets: tuple[Any, ...] | list[Any] | None = None
    counted: int = UNKNOWN
    last_id: object = None
    certain_id: bool = False
    unseen: bool = False
    refused: bool = False
    returned: Callable[[tuple[str, ...]], list[dict[str, str]]] | None = None


class _Plan(NamedTuple):
    """What to read of one text under one *rule*, the same each time.

    The key's columns, *declared* by somebody who knows; all that may be shown; where the text binds what. It is a *plain*
    INSERT of one row where nothing is to be shown, and its key stands in the parameter number *at*, or in none (-1).
    """

    rule: Rule
    models: Mapping[str, tuple[str, ...]]
    keys: tuple[str, ...]
    declared: bool
    wanted: tuple[str, ...]
    shape: Shape
    plain: bool
    at: int


_plans: Final[dict[tuple[str, str, int], _Plan]] = {}  # by text, style and rule
_MAX_PLANS: Final = 512


def rows_of(head: Head, sent: Sent, rule: Rule) -> tuple[int, list[Row]]:
    """How many rows there were, and what is known of the first of them, where *head* is all that the text changes."""
    models = _keys_of_models()
    plan = _plans.get((sent.sql, sent.style, id(rule)))
    if plan is None or plan.rule is not rule or plan.models is not models:
        plan = _learn(head, sent, rule, models)
    sets = sent.sets
    if plan.plain and sent.counted == 1 and sent.returned is None and sets is not None and len(sets) == 1:
        bound = sets[0]
        if isinstance(bound, (tuple, list)) and len(bound) == plan.shape.bound:
            key = bound[plan.at] if plan.at >= 0 else None
            if key in (None, "") and sent.last_id and (plan.declared or sent.certain_id):
                key = sent.last_id
            return 1, [Row(as_text(key, MAX_KEY))] if key is not None else []
    return _read(head, sent, plan)


def _read(head: Head, sent: Sent, plan: _Plan) -> tuple[int, list[Row]]:
    _, _, keys, declared, wanted, shape, _, _ = plan
    inserts = head.verb in {"INSERT", "REPLACE"}
    rows, known = (_inserted if inserts else _found)(head, shape, sent, keys, wanted)
    if inserts and rows == 1 and len(keys) == 1 and len(known) <= 1:
        first = known[0] if known else Row()
        if not first.key and sent.last_id and (declared or sent.certain_id) and shape.columns:
            first.key = as_text(sent.last_id, MAX_KEY)
            known = [first]
            first.after.update({name: first.key for name in keys if name in plan.rule.target_id})
    if keys and sent.returned is not None and not all(row.key for row in known or [Row()]):
        known = _told_back(
            known, rows, sent.returned((*keys, *wanted)), keys, wanted, after=head.verb != "DELETE"
        )
    return rows, known


def _learn(head: Head, sent: Sent, rule: Rule, models: Mapping[str, tuple[str, ...]]) -> _Plan:
    keys, declared = _key_columns(head.table, rule, models)
    if are_secret(keys):
        keys = ()
    wanted = (*rule.columns, *rule.target_id)
    shape = shape_of(sent.sql, sent.style)
    slot = shape.columns.get(keys[0]) if len(keys) == 1 else None
    plain = head.verb == "INSERT" and bool(shape.columns) and not (wanted or shape.many or shape.bound < 0)
    plain = plain and len(keys) == 1 and (keys[0] not in shape.columns or isinstance(slot, Bound))
    at = slot.key if isinstance(slot, Bound) and isinstance(slot.key, int) else -1
    found = _Plan(rule, models, keys, declared, wanted, shape, plain, at)
    if len(sent.sql) <= MAX_LENGTH:
        if len(_plans) >= _MAX_PLANS:
            _plans.clear()
        _plans[sent.sql, sent.style, id(rule)] = found
    return found


def _key_columns(
    table: str, rule: Rule, models: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], bool]:
    """The key's columns, and whether somebody who knows said so."""
    of_model = models.get(table.rpartition(".")[2])
    if of_model:
        return of_model, True
    return (rule.target_id, True) if rule.target_id else (_BY_CONVENTION, False)


def _keys_of_models() -> Mapping[str, tuple[str, ...]]:
    apps = getattr(sys.modules.get("django.apps"), "apps", None)
    return _read_models(apps) if apps is not None and apps.models_ready else _NO_MODELS


@functools.lru_cache(maxsize=1)
def _read_models(apps: Any) -> Mapping[str, tuple[str, ...]]:
    """The key's columns by table, of all models of Django."""
    found = {}
    for model in apps.get_models(include_auto_created=True):
        meta = model._meta  # noqa: SLF001 - documented by Django under this name
        fields = getattr(meta, "pk_fields", None) or [meta.pk]
        found[str(meta.db_table)] = tuple(str(field.column) for field in fields)
    return found


def _inserted(
    head: Head, shape: Shape, sent: Sent, keys: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[int, list[Row]]:
    places = _places(shape, sent.sets) if shape.columns else None
    if places is None:
        return _honest(sent), []
    rows = len(places)
    if head.verb != "REPLACE":
        if (
            shape.certain and sent.counted <= 0
        ):  # not counted, or only when the rows that it returns have been read
            pass
        elif sent.counted != rows:
            return _honest(sent), []
    slots = [shape.columns.get(name) for name in keys]
    if not wanted and None in slots:
        return rows, []  # as most tables: the database makes the key
    known = [Row(_joined(slots, place), after=_shown(shape, place, wanted)) for place in places[:MAX_ROWS]]
    return rows, known if any(row.key or row.after for row in known) else []


def _places(shape: Shape, sets: Any) -> list[tuple[Any, int]] | None:
    """For each row, the parameters and where in them its own begin; None where they don't fit the text."""
    if sets is None:
        return None
    for each in sets[:MAX_ROWS]:
        if not _fits(each, shape):
            return None
    if not shape.many:
        return [(each, 0) for each in sets]
    (alone,) = sets if len(sets) == 1 else (None,)
    if not shape.width or not isinstance(alone, (list, tuple)) or len(alone) % shape.width:
        return None
    return [(alone, start) for start in range(0, len(alone), shape.width)]


def _fits(parameters: Any, shape: Shape) -> bool:
    if shape.bound < 0:
        return parameters is None or isinstance(parameters, (Mapping, list, tuple))
    return (
        len(parameters) == shape.bound
        if isinstance(parameters, (list, tuple))
        else not (shape.bound or parameters)
    )


def _found(
    head: Head, shape: Shape, sent: Sent, keys: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[int, list[Row]]:
    del head
    counted, sets = _honest(sent), sent.sets
    if sets is None or not all(_fits(each, shape) for each in sets[:MAX_ROWS]):
        return counted, []
    known: list[Row] = []
    for parameters in sets[:MAX_ROWS]:
        after = _shown(shape, (parameters, 0), wanted)
        before = {}
        for name in wanted:
            compared = shape.where.get(name, ())
            value = _value(compared[0], parameters, 0) if len(compared) == 1 else _ABSENT
            if value is not _ABSENT and not isinstance(value, (list, tuple)):
                before[name] = as_text(value)
        named = _keys(shape, parameters, keys)
        known += [Row(key, dict(before), after) for key in named] or [Row("", before, after)]
    if not sent.refused and counted != len(sets) * (len(known) // max(1, len(sets[:MAX_ROWS]))):
        for row in known:
            row.key = ""
    if not any(row.key or row.before or row.after for row in known):
        known = []
    elif not any(row.key for row in known):
        alike = len({(str(row.before), str(row.after)) for row in known}) == 1
        known = known[:1] if alike else []
    return counted, known[:MAX_ROWS]


def _keys(shape: Shape, parameters: Any, keys: tuple[str, ...]) -> list[str]:
    if not keys or any(name not in shape.where for name in keys):
        return []
    if len(keys) > 1:
        if any(len(shape.where[name]) > 1 for name in keys):
            return []
        joined = _joined([shape.where[name][0] for name in keys], (parameters, 0))
        return [joined] if joined else []
    values = [_value(slot, parameters, 0) for slot in shape.where[keys[0]]]
    if len(values) == 1 and isinstance(values[0], (list, tuple)):  # = ANY(%s)
        values = list(values[0])
    if _ABSENT in values or None in values:
        return []
    return list(dict.fromkeys(as_text(value, MAX_KEY) for value in values))


def _value(slot: Slot | None, parameters: Any, start: int) -> object:
    if slot is None:
        return _ABSENT
    if not isinstance(slot, Bound):
        return slot.value
    if isinstance(slot.key, str):
        return parameters.get(slot.key, _ABSENT) if isinstance(parameters, Mapping) else _ABSENT
    at = start + slot.key
    return parameters[at] if isinstance(parameters, (list, tuple)) and at < len(parameters) else _ABSENT


def _shown(shape: Shape, place: tuple[Any, int], wanted: tuple[str, ...]) -> dict[str, str]:
    if not wanted:
        return {}
    found = ((name, _value(shape.columns.get(name), *place)) for name in wanted)
    return {name: as_text(value) for name, value in found if value is not _ABSENT}


def _joined(slots: list[Slot | None], place: tuple[Any, int]) -> str:
    """The key whose columns' values are in *slots* of the parameters at *place*; empty where one is missing."""
    texts = []
    for slot in slots:
        value = _value(slot, *place)
        if value is _ABSENT or value is None:
            return ""
        texts.append(as_text(value, MAX_KEY))
    return "/".join(texts)


def _honest(sent: Sent) -> int:
    """The driver's count; a zero of a statement that returns rows only says that they have not been read."""
    return UNKNOWN if sent.counted == 0 and "RETURNING" in sent.sql.upper() else sent.counted


def _told_back(
    known: list[Row],
    rows: int,
    told: list[dict[str, str]],
    keys: tuple[str, ...],
    wanted: tuple[str, ...],
    *,
    after: bool,
) -> list[Row]:
    """*known* with what the statement returned of the same rows."""
    if not told or len(told) != min(rows, MAX_ROWS) or any(name not in told[0] for name in keys):
        return known
    alone = known[0] if len(known) == 1 else Row()
    found = (
        known if len(known) == len(told) else [Row("", dict(alone.before), dict(alone.after)) for _ in told]
    )
    for row, said in zip(found, told, strict=True):
        row.key = "/".join(said[name] for name in keys)
        shown = row.after if after else row.before
        shown.update({name: said[name] for name in wanted if name in said and name not in shown})
    return found
