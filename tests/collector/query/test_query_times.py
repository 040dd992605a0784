from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from auditspan_collector.errors import QueryError
from auditspan_collector.query.times import (
    NANOSECONDS,
    Window,
    format_iso,
    format_time,
    parse_time,
    parse_window,
)
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * NANOSECONDS
BERLIN = ZoneInfo("Europe/Berlin")


def ns(*parts, tz=UTC):
    return int(datetime(*parts, tzinfo=tz).timestamp()) * NANOSECONDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", NOW_NS),
        ("30s", NOW_NS - 30 * NANOSECONDS),
        ("15m", NOW_NS - 15 * 60 * NANOSECONDS),
        ("24h", ns(2026, 11, 23, 10, 30)),
        ("7d", ns(2026, 11, 17, 10, 30)),
        ("2w", ns(2026, 11, 10, 10, 30)),
        ("1h30m", ns(2026, 11, 24, 9, 0)),
        ("today", ns(2026, 11, 24)),
        ("Yesterday", ns(2026, 11, 23)),
        ("2026-11-24", ns(2026, 11, 24)),
        ("2026-11-24 09:15", ns(2026, 11, 24, 9, 15)),
        ("2026-11-24T09:15:30", ns(2026, 11, 24, 9, 15, 30)),
        ("2026-11-24T09:15:30Z", ns(2026, 11, 24, 9, 15, 30)),
        ("2026-11-24 09:15:30 UTC", ns(2026, 11, 24, 9, 15, 30)),
        ("2026-11-24T09:15:30+01:00", ns(2026, 11, 24, 8, 15, 30)),
        ("2026-11-24T09:15:30-0530", ns(2026, 11, 24, 14, 45, 30)),
        ("2026-11-24T09:15:30.123456789Z", ns(2026, 11, 24, 9, 15, 30) + 123_456_789),
        ("2026-11-24T09:15:30.5Z", ns(2026, 11, 24, 9, 15, 30) + 500_000_000),
        ("  2026-11-24  ", ns(2026, 11, 24)),
    ],
)
def test_a_time_is_read_to_the_nanosecond(text, expected):
    assert parse_time(text, now_ns=NOW_NS) == expected


@pytest.mark.parametrize(
    "text",
    ["", "soon", "15", "-15m", "15 m", "15min", "1.5h", "2026-13-01", "2026-02-30", "2026-11-24T25:00", "24.11.2026",
     "11/24/2026", "2026-11-24T10:00+99:00", "1700000000", "2026-11-24T10:00:00.1234567890Z", "٢٤h", "0001-01-01",
     "9999-12-31", "999999999w", "now; DROP TABLE records", "2026-11-24\x00"],
)  # fmt: skip
def test_anything_else_is_an_error_that_says_what_is_allowed(text):
    with pytest.raises(QueryError) as caught:
        parse_time(text, now_ns=NOW_NS)
    assert "allowed: an age" in str(caught.value) or "1900 to 2262" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_query_error(text):
    try:
        found = parse_time(text, now_ns=NOW_NS)
    except QueryError:
        return
    assert isinstance(found, int)


def test_times_without_a_zone_are_read_in_the_zone_that_is_given():
    assert parse_time("2026-11-24T09:15", now_ns=NOW_NS, zone=BERLIN) == ns(2026, 11, 24, 8, 15)
    assert parse_time("2026-11-24T09:15Z", now_ns=NOW_NS, zone=BERLIN) == ns(2026, 11, 24, 9, 15)
    near_midnight = ns(2026, 11, 24, 23, 30)
    assert parse_time("today", now_ns=near_midnight, zone=BERLIN) == ns(2026, 11, 24, 23, 0)


@pytest.mark.parametrize(
    ("day", "hours"),
    [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-24", 24)],
    ids=["short", "long", "usual"],
)
def test_a_day_ends_at_the_next_midnight_of_its_zone(day, hours):
    start = parse_time(day, now_ns=NOW_NS, zone=BERLIN)
    end = parse_time(day, now_ns=NOW_NS, zone=BERLIN, end_of_day=True)
    assert end - start == hours * 3600 * NANOSECONDS


def test_a_window_without_a_beginning_is_the_last_24_hours():
    assert parse_window(None, None, now_ns=NOW_NS) == Window(ns(2026, 11, 23, 10, 30), None)


def test_a_window_without_a_beginning_ends_24_hours_after_it_begins():
    assert parse_window(None, "2026-11-01T12:00", now_ns=NOW_NS) == Window(
        ns(2026, 10, 31, 12), ns(2026, 11, 1, 12)
    )


def test_a_day_as_the_end_is_inside_the_window():
    assert parse_window("2026-11-01", "2026-11-02", now_ns=NOW_NS) == Window(ns(2026, 11, 1), ns(2026, 11, 3))


def test_a_window_that_ends_before_it_begins_is_an_error():
    with pytest.raises(QueryError, match="swap --since and --until"):
        parse_window("1h", "2h", now_ns=NOW_NS)


@given(st.integers(-(2**31) * NANOSECONDS, 2**62))
def test_iso_text_reads_back_as_the_same_nanosecond(time_ns):
    assert parse_time(format_iso(time_ns), now_ns=0) == time_ns


def test_a_time_is_shown_in_the_zone_that_is_asked_for():
    moment = ns(2026, 11, 24, 9, 15, 30) + 123_456_789
    assert format_time(moment) == "2026-11-24 09:15:30"
    assert format_time(moment, BERLIN, digits=3) == "2026-11-24 10:15:30.123"
    assert format_time(moment, timezone(timedelta(hours=-5)), digits=9) == "2026-11-24 04:15:30.123456789"
