"""Turn what a person types for a point in time into nanoseconds since 1970, or say clearly that it is none.

Everything is exact to the nanosecond, as ``start_time`` is; Python's datetime stops at microseconds, so times
are integers here and the fraction is read as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

from auditspan_collector.errors import QueryError

if TYPE_CHECKING:
    from datetime import tzinfo

NANOSECONDS: Final = 1_000_000_000
DEFAULT_WINDOW_S: Final = 24 * 3600
ALLOWED: Final = (
    "allowed: an age (30s, 15m, 24h, 7d, 2w, 1h30m), now, today, yesterday, "
    "a date (2026-11-24) or a time (2026-11-24T10:30:00, with Z or +01:00 for a zone)"
)

# DateTime64(9) counts nanoseconds in an Int64 (ClickHouse docs, "DateTime64"), so it ends in 2262.
_LATEST_NS: Final = 2**63 - 1
_EARLIEST_NS: Final = -2_208_988_800 * NANOSECONDS  # 1900-01-01, where DateTime64 begins

_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(?:[0-9]{1,9}[smhdw])+", re.ASCII)
_AGE_PART = re.compile(r"([0-9]+)([smhdw])", re.ASCII)
_INSTANT = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?P<clock>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?P<fraction>\d{1,9}))?\s?(?P<zone>[Zz]|UTC|[+-]\d{2}:?\d{2})?)?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Window:
    """From *since_ns* (inside) to *until_ns* (outside), nanoseconds since 1970; None is open."""

    since_ns: int | None = None
    until_ns: int | None = None


def parse_window(since: str | None, until: str | None, *, now_ns: int, zone: tzinfo | None = UTC) -> Window:
    """The window that *since* and *until* name; without *since* it begins 24 hours before its end.

    A day given as *until* is inside the window. Times without a zone are read in *zone*; None is the system's.
    Raises QueryError when a text is no time, or when the window ends before it begins.
    """
    until_ns = parse_time(until, now_ns=now_ns, zone=zone, end_of_day=True) if until is not None else None
    if since is not None:
        since_ns = parse_time(since, now_ns=now_ns, zone=zone)
    else:
        since_ns = (until_ns if until_ns is not None else now_ns) - DEFAULT_WINDOW_S * NANOSECONDS
    if until_ns is not None and until_ns <= since_ns:
        raise QueryError(
            f"the window ends ({format_time(until_ns)}) before it begins ({format_time(since_ns)}); swap --since and --until"
        )
    return Window(since_ns, until_ns)


def parse_time(text: str, *, now_ns: int, zone: tzinfo | None = UTC, end_of_day: bool = False) -> int:
    """Nanoseconds since 1970 of *text*: an age before *now_ns*, a named day, a date, or an ISO 8601 time.

    With *end_of_day* a day stands for the first instant after it. Raises QueryError for anything else.
    """
    word = text.strip()
    if word.lower() == "now":
        return now_ns
    if _AGE.fullmatch(word):
        age_s = sum(int(count) * _UNIT_S[unit] for count, unit in _AGE_PART.findall(word))
        return _bounded(now_ns - age_s * NANOSECONDS, text)
    if word.lower() in ("today", "yesterday"):
        today = datetime.fromtimestamp(now_ns // NANOSECONDS, zone or UTC)
        if zone is None:
            today = today.astimezone()
        day = datetime.combine(today.date(), time()) - timedelta(days=word.lower() == "yesterday")
        return _whole_day(day, zone, end_of_day=end_of_day)
    if (match := _INSTANT.fullmatch(word)) is None:
        raise QueryError(f"{text!r} is not a time; {ALLOWED}")
    return _instant(match, text, zone, end_of_day=end_of_day)


def format_time(time_ns: int, zone: tzinfo | None = UTC, *, digits: int = 0) -> str:
    """*time_ns* as ``2026-11-24 10:30:00`` in *zone* (None: the system's) with *digits* (0 to 9) of the second."""
    seconds, nanos = divmod(time_ns, NANOSECONDS)
    # Adding to an epoch works for years before 1970 and after 2038 on every platform; fromtimestamp does not.
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).astimezone(zone)
    text = moment.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{f'{nanos:09d}'[:digits]}" if digits else text


def format_iso(time_ns: int) -> str:
    """*time_ns* as ``2026-11-24T10:30:00.123456789Z``: always UTC, always nine digits, so that text sorts as time."""
    return format_time(time_ns, UTC, digits=9).replace(" ", "T") + "Z"


def _instant(match: re.Match[str], text: str, zone: tzinfo | None, *, end_of_day: bool) -> int:
    try:
        if match["clock"] is None:
            return _whole_day(datetime.fromisoformat(match["day"]), zone, end_of_day=end_of_day)
        moment = datetime.fromisoformat(f"{match['day']}T{match['clock']}")
        if (offset := match["zone"]) is not None:
            moment = datetime.fromisoformat(
                moment.isoformat() + ("+00:00" if offset.upper() in ("Z", "UTC") else offset)
            )
            seconds = _unix_s(moment)
        else:
            seconds = _unix_s(_placed(moment, zone))
    except (ValueError, OverflowError) as error:
        raise QueryError(f"{text!r} is not a time ({error}); {ALLOWED}") from error
    return _bounded(seconds * NANOSECONDS + int((match["fraction"] or "").ljust(9, "0")), text)


def _whole_day(midnight: datetime, zone: tzinfo | None, *, end_of_day: bool) -> int:
    # The next midnight by the calendar, not 24 hours on: a day may have 23 or 25 hours.
    moment = midnight + timedelta(days=1) if end_of_day else midnight
    return _bounded(_unix_s(_placed(moment, zone)) * NANOSECONDS, midnight.date().isoformat())


def _placed(naive: datetime, zone: tzinfo | None) -> datetime:
    return naive.astimezone() if zone is None else naive.replace(tzinfo=zone)


def _unix_s(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)


def _bounded(time_ns: int, text: str) -> int:
    if not _EARLIEST_NS <= time_ns <= _LATEST_NS:
        raise QueryError(f"{text!r} is outside the years that the store can hold (1900 to 2262)")
    return time_ns
