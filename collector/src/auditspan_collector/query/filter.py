r"""Say which records are wanted, and turn that into SQL whose values are all bound, never written into the text.

A **pattern** is what a person types for one field:

    alice          exactly this, case included
    alice*         anything that begins so; ``*`` stands for any run of characters, anywhere
    !alice         everything but this; works with ``*`` too
    \!x  \*  \\    the characters themselves; a backslash before anything else is a backslash

Several patterns of one field are alternatives, except that each negated one excludes; fields are combined with
"and". Actions are found as typed or in upper case, outcomes and origins as typed or in lower case; every other
field minds case. Code that has the exact value uses ``Match.exact``, which gives no character a meaning.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from auditspan import attributes as names

from auditspan_collector.errors import QueryError
from auditspan_collector.query.times import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_TRACE_PREFIX_MIN_DIGITS: Final = 6
_TRACE_DIGITS: Final = 32

Value = str | int | list[str] | list[int]
Parameters = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Match:
    """One pattern: *parts* are literal texts, with "any run of characters" between them; one part is exact."""

    parts: tuple[str, ...]
    negated: bool = False

    @classmethod
    def exact(cls, value: str, *, negated: bool = False) -> Match:
        """Only *value*, whatever characters it has."""
        return cls((value,), negated)

    @classmethod
    def parse(cls, text: str) -> Match:
        """Read *text* by the rules in the module's docstring; every text means something."""
        negated = text.startswith("!")
        parts = [""]
        rest = iter(text[negated:])
        for character in rest:
            if character == "*":
                parts.append("")
            elif character == "\\":
                following = next(rest, "")
                parts[-1] += following if following in ("*", "!", "\\") and following else "\\" + following
            else:
                parts[-1] += character
        return cls(tuple(parts), negated)

    @property
    def like(self) -> str:
        """The pattern for SQL's LIKE (ClickHouse docs, "LIKE": % and _ are special, backslash escapes)."""
        return "%".join(re.sub(r"([%_\\])", r"\\\1", part) for part in self.parts)

    def map(self, change: Callable[[str], str]) -> Match:
        """The same pattern with *change* applied to its literal texts."""
        return Match(tuple(change(part) for part in self.parts), self.negated)

    def split(self, separator: str) -> tuple[Match, Match] | None:
        """The patterns before and after the first *separator* in a literal part; None when there is none."""
        for position, part in enumerate(self.parts):
            before, found, after = part.partition(separator)
            if found:
                return (
                    Match((*self.parts[:position], before)),
                    Match((after, *self.parts[position + 1 :])),
                )
        return None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; the default wants all of them.

    *target* is an id or ``type:id``. *client_address* is an address or a network (``10.0.0.0/8``). Every one of
    *text* must occur, in any case, in the target, the reason, the span's name, the status message or an attribute's
    value. *trace_id* is 6 to 32 hex digits, the beginning of the ids wanted.
    """

    actor: tuple[Match, ...] = ()
    role: tuple[Match, ...] = ()
    action: tuple[Match, ...] = ()
    outcome: tuple[Match, ...] = ()
    target: tuple[Match, ...] = ()
    service: tuple[Match, ...] = ()
    tenant: tuple[Match, ...] = ()
    origin: tuple[Match, ...] = ()
    client_address: tuple[Match, ...] = ()
    text: tuple[str, ...] = ()
    trace_id: str = ""
    window: Window = field(default_factory=Window)


class Conditions:
    """Collect SQL conditions and the values bound in them; *sql* and *parameters* are what a query needs.

    Every piece of SQL is a constant of this package; a value only ever becomes a parameter ``{p0:String}``, which
    ClickHouse parses as data (ClickHouse docs, "Queries with parameters").
    """

    def __init__(self) -> None:
        self.parameters: Parameters = {}
        self._conditions: list[str] = []

    @property
    def sql(self) -> str:
        """The conditions, all of which must hold; ``1`` when there are none."""
        return " AND ".join(f"({condition})" for condition in self._conditions) or "1"

    def bind(self, value: Value, type_name: str = "String") -> str:
        """Bind *value* and return its placeholder; *type_name* is a constant of the caller's.

        Raises QueryError for bytes that were no UTF-8 when they came in (Python keeps them as lone surrogates).
        """
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            raise QueryError(f"{value!r} is not text in UTF-8")
        name = f"p{len(self.parameters)}"
        self.parameters[name] = value
        return f"{{{name}:{type_name}}}"

    def bind_time(self, time_ns: int) -> str:
        """Bind a time in nanoseconds since 1970, comparable with start_time."""
        return f"fromUnixTimestamp64Nano({self.bind(time_ns, 'Int64')}, 'UTC')"

    def require(self, condition: str) -> None:
        """Add *condition*; its values are placeholders from `bind`."""
        self._conditions.append(condition)

    def require_any(self, matches: Iterable[Match], condition: Callable[[Match], str]) -> None:
        """Require that one of the plain *matches* holds, and none of the negated ones."""
        wanted = []
        for match in matches:
            if match.negated:
                self.require(f"NOT ({condition(match)})")
            else:
                wanted.append(condition(match))
        if wanted:
            self.require(" OR ".join(wanted))

    def compare(self, column: str, match: Match) -> str:
        """*column* is as *match* says, negation aside."""
        if len(match.parts) == 1:
            return f"{column} = {self.bind(match.parts[0])}"
        return f"{column} LIKE {self.bind(match.like)}"


def conditions(wanted: Filter) -> Conditions:
    """*wanted* in SQL on the columns of ``audit.records``. Raises QueryError for a value that can't be asked for."""
    found = Conditions()
    found.require_any(wanted.actor, lambda match: found.compare("actor_id", match))
    found.require_any(wanted.service, lambda match: found.compare("service_name", match))
    found.require_any(wanted.tenant, lambda match: found.compare("tenant", match))
    found.require_any(wanted.action, lambda match: _either_case(found, "action", match, str.upper))
    found.require_any(
        (_known(match, names.OUTCOMES, "outcome") for match in wanted.outcome),
        lambda match: _either_case(found, "outcome", match, str.lower),
    )
    found.require_any(
        (_known(match, names.ORIGINS, "origin") for match in wanted.origin),
        lambda match: _either_case(found, "actor_origin", match, str.lower),
    )
    found.require_any(wanted.role, lambda match: _role(found, match))
    found.require_any(wanted.target, lambda match: _target(found, match))
    found.require_any(wanted.client_address, lambda match: _client_address(found, match))
    for text in wanted.text:
        found.require(_text(found, text))
    if wanted.trace_id:
        found.require(trace_condition(found, wanted.trace_id))
    if wanted.window.since_ns is not None:
        found.require(f"start_time >= {found.bind_time(wanted.window.since_ns)}")
    if wanted.window.until_ns is not None:
        found.require(f"start_time < {found.bind_time(wanted.window.until_ns)}")
    return found


def trace_condition(found: Conditions, prefix: str) -> str:
    """The trace id begins with the hex digits *prefix*. Raises QueryError when they are no beginning of one.

    A whole id is asked for twice: as bytes for the projection ordered by trace_id, and as text for the bloom
    filter, which also prunes tables that are too small for ClickHouse to use the projection.
    """
    digits = prefix.strip().lower()
    if not re.fullmatch(r"[0-9a-f]+", digits) or not _TRACE_PREFIX_MIN_DIGITS <= len(digits) <= _TRACE_DIGITS:
        raise QueryError(
            f"{prefix!r} is not a trace id; give all {_TRACE_DIGITS} hex digits or the first "
            f"{_TRACE_PREFIX_MIN_DIGITS} or more, as `auditspan search` shows them"
        )
    if len(digits) == _TRACE_DIGITS:
        placeholder = found.bind(digits)
        return f"trace_id = unhex({placeholder}) AND lower(hex(trace_id)) = {placeholder}"
    lowest = found.bind(digits.ljust(_TRACE_DIGITS, "0"))
    highest = found.bind(digits.ljust(_TRACE_DIGITS, "f"))
    return f"trace_id >= unhex({lowest}) AND trace_id <= unhex({highest})"


def _either_case(found: Conditions, column: str, match: Match, change: Callable[[str], str]) -> str:
    spellings = dict.fromkeys((match, match.map(change)))
    return " OR ".join(found.compare(column, spelling) for spelling in spellings)


def _known(match: Match, allowed: tuple[str, ...], what: str) -> Match:
    # A misspelt outcome would find nothing and look like good news.
    if len(match.parts) == 1 and match.parts[0].lower() not in allowed:
        raise QueryError(f"{match.parts[0]!r} is no {what}; allowed: {', '.join(allowed)}")
    return match


def _role(found: Conditions, match: Match) -> str:
    if len(match.parts) == 1:
        return f"has(actor_roles, {found.bind(match.parts[0])})"
    return f"arrayExists(role -> role LIKE {found.bind(match.like)}, actor_roles)"


def _target(found: Conditions, match: Match) -> str:
    whole = found.compare("target_id", match)
    if (halves := match.split(":")) is None:
        return whole
    # An id may hold a colon itself (urn:isbn:1), so the text is looked for as an id as well.
    kind, identifier = halves
    return f"({found.compare('target_type', kind)} AND {found.compare('target_id', identifier)}) OR {whole}"


def _client_address(found: Conditions, match: Match) -> str:
    value = match.parts[0]
    if len(match.parts) > 1 or "/" not in value:
        return found.compare("client_address", match)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise QueryError(
            f"{value!r} is no network ({error}); allowed: an address, or a network such as 10.0.0.0/8"
        ) from error
    # isIPAddressInRange fails the whole query on a text that is no address, an empty one for instance.
    valid = "isIPv4String(client_address) OR isIPv6String(client_address)"
    address = f"if({valid}, client_address, '::')"
    return f"({valid}) AND isIPAddressInRange({address}, {found.bind(str(network))})"


def _text(found: Conditions, text: str) -> str:
    needle = found.bind(text)
    columns = ("target_id", "target_type", "reason", "span_name", "status_message")
    places = [f"positionCaseInsensitiveUTF8({column}, {needle}) > 0" for column in columns]
    places.append(
        f"arrayExists(value -> positionCaseInsensitiveUTF8(value, {needle}) > 0, mapValues(attributes))"
    )
    return " OR ".join(places)
