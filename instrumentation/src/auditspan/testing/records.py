"""Captured records, and assertions that say what was there instead."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_SHOWN: Final = ("action", "actor", "outcome", "target_type", "target_id")  # of each record, in a message
_MOST_SHOWN: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record. Texts are empty, and *roles* is, where the record does not say; *attributes* has everything.

    *session* is hashed, as it is stored. *number* counts this process's records. *parent_span_id* is that of the
    nearest record upstream. Ids are hex.
    """

    action: str
    actor: str
    outcome: str
    target_type: str = ""
    target_id: str = ""
    reason: str = ""
    actor_type: str = ""
    actor_origin: str = ""
    roles: tuple[str, ...] = ()
    session: str = ""
    auth_method: str = ""
    delegate: str = ""
    rejected: str = ""
    parent_span_id: str = ""
    number: int = 0
    span_name: str = ""
    trace_id: str = ""
    span_id: str = ""
    service: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def audit(self) -> dict[str, Any]:
        """Its ``audit.*`` attributes, by their names in the contract."""
        return {name: value for name, value in self.attributes.items() if name.startswith(names.PREFIX)}

    def __str__(self) -> str:
        """What an assertion shows of it."""
        shown = " ".join(f"{name}={getattr(self, name)!r}" for name in _SHOWN if getattr(self, name))
        return f"{shown} ({self.span_name})"


# Where each field of a record comes from.
FIELDS: Final = {
    "action": names.ACTION,
    "actor": names.ACTOR_ID,
    "outcome": names.OUTCOME,
    "target_type": names.TARGET_TYPE,
    "target_id": names.TARGET_ID,
    "reason": names.REASON,
    "actor_type": names.ACTOR_TYPE,
    "actor_origin": names.ACTOR_ORIGIN,
    "roles": names.ACTOR_ROLES,
    "session": names.ACTOR_SESSION,
    "auth_method": names.ACTOR_AUTH_METHOD,
    "delegate": names.ACTOR_DELEGATE,
    "rejected": names.CONTEXT_REJECTED,
    "parent_span_id": names.PARENT_SPAN_ID,
    "number": names.SEQUENCE_NUMBER,
}
_NAMES: Final = tuple(each.name for each in fields(Record) if each.name != "attributes")


class Records:
    """The records of one capture, in the order in which they were written. Any thread may look and wait."""

    def __init__(self, watch: Callable[[Any], None]) -> None:
        self._records: list[Record] = []
        self._changed = threading.Condition()
        self._watch = watch

    def watch(self, app: Any) -> None:
        """Audit the application *app* until the capture ends, as ``capture(app)`` does from its start."""
        self._watch(app)

    def add(self, record: Record) -> None:
        """Take one more."""
        with self._changed:
            self._records.append(record)
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget what was captured so far."""
        with self._changed:
            self._records.clear()

    def __iter__(self) -> Iterator[Record]:
        """Over a copy."""
        with self._changed:
            return iter(list(self._records))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """By position; -1 is the latest."""
        return self._records[index]

    def matching(self, **expected: Any) -> list[Record]:
        """The records whose fields equal *expected*. *roles* is any iterable, its order does not matter.

        Raises TypeError for a name that is no field of a record.
        """
        _check_names(expected)
        return [record for record in self if not _differences(record, expected)]

    def expect(self, *, count: int = 1, within_s: float = 0.0, **expected: Any) -> Record:
        """Assert that exactly *count* records have the fields *expected*, and return the first of them.

        *within_s* is how long to wait for them, for work that goes on after the response.
        """
        __tracebackhide__ = True
        _check_names(expected)
        if count < 1:
            raise ValueError("count must be 1 or more; for none there is expect_none()")
        found = self._wait_for(count, expected, within_s)
        if len(found) != count:
            raise AssertionError(self._unexpected(found, count, expected))
        return found[0]

    def expect_none(self, **expected: Any) -> None:
        """Assert that no record has the fields *expected*; without any, that there are no records."""
        __tracebackhide__ = True
        found = self.matching(**expected)
        if found:
            raise AssertionError(
                f"expected no record{_with(expected)}, and there "
                f"{'is one' if len(found) == 1 else f'are {len(found)}'}:\n{_listed(found)}"
            )

    def _wait_for(self, count: int, expected: Mapping[str, Any], within_s: float) -> list[Record]:
        until = time.monotonic() + within_s
        with self._changed:
            while True:
                found = [record for record in self._records if not _differences(record, expected)]
                left = until - time.monotonic()
                if len(found) >= count or left <= 0:
                    return found
                self._changed.wait(left)

    def _unexpected(self, found: list[Record], count: int, expected: Mapping[str, Any]) -> str:
        there = list(self)
        wanted = "a record" if count == 1 else f"{count} records"
        if found:
            return (
                f"expected {wanted}{_with(expected)}, and there {'is one' if len(found) == 1 else f'are {len(found)}'}; "
                f"say count={len(found)} if that is right, or name more fields:\n{_listed(found)}"
            )
        if not there:
            return (
                f"expected {wanted}{_with(expected)}, and there are no records at all. Is the application given to "
                "capture() or watch()? Reads are records only when OTEL_AUDITSPAN_READS names their route or the "
                "application calls auditspan.describe()."
            )
        closest = sorted(there, key=lambda record: len(_differences(record, expected)))[:_MOST_SHOWN]
        lines = [
            f"  {record}\n    differs in {', '.join(f'{name}: {value!r}' for name, value in _differences(record, expected).items())}"
            for record in closest
        ]
        more = f"\n  and {len(there) - len(closest)} more" if len(there) > len(closest) else ""
        head = "there is one" if len(there) == 1 else f"there are {len(there)}, the closest first"
        return f"expected {wanted}{_with(expected)}; {head}:\n" + "\n".join(lines) + more


def _check_names(expected: Mapping[str, Any]) -> None:
    unknown = sorted(set(expected) - set(_NAMES))
    if unknown:
        raise TypeError(
            f"a record has no field {', '.join(unknown)}; it has {', '.join(_NAMES)}. "
            "Other attributes are in Record.attributes."
        )


def _differences(record: Record, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Of the fields in *expected*, those that are otherwise in *record*, with what they are there."""
    found = {}
    for name, value in expected.items():
        there = getattr(record, name)
        wanted = (
            tuple(sorted(value))
            if name == "roles" and isinstance(value, list | tuple | set | frozenset)
            else value
        )
        if there != wanted:
            found[name] = there
    return found


def _with(expected: Mapping[str, Any]) -> str:
    return f" with {', '.join(f'{name}={value!r}' for name, value in expected.items())}" if expected else ""


def _listed(records: list[Record]) -> str:
    return "\n".join(f"  {record}" for record in records)
