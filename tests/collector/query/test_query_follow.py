import uuid
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import pytest
from auditspan_collector.errors import QueryError, StoreUnavailable
from auditspan_collector.query import follow as follow_module
from auditspan_collector.query.copies import Copies
from auditspan_collector.query.filter import Filter, Match
from auditspan_collector.query.follow import Follower, follow
from auditspan_collector.query.search import search
from auditspan_collector.query.times import Window

EVERYTHING = Filter()
OTHER = "default/other/00"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def numbered(make_record):
    """Records with the numbers given, a second apart; they reach the collector in that order."""

    def build(*numbers, **changes):
        return [
            make_record(
                record_id=uuid.UUID(int=number).bytes,
                start_time_unix_ns=make_record().start_time_unix_ns + number * 10**9,
                received_time_unix_ms=make_record().received_time_unix_ms + number * 1000,
                **changes,
            )
            for number in numbers
        ]

    return build


def numbers(rows):
    return [uuid.UUID(bytes=row.record.record_id).int for row in rows]


def never_look_again(follower):
    """Leave the follower to what the cheap questions find."""
    follower._next_look = float("inf")


def test_what_was_there_before_is_not_new(shelf, numbered):
    shelf.add(*numbered(1, 2))
    follower = Follower(shelf.client, EVERYTHING)
    assert numbers(follower.poll()) == []


def test_each_new_record_comes_once_in_the_order_of_arrival(shelf, numbered):
    follower = Follower(shelf.client, EVERYTHING)
    shelf.add(*numbered(1, 2, 3))
    assert numbers(follower.poll()) == [1, 2, 3]
    shelf.add(*numbered(4))
    shelf.add(*numbered(5))
    assert numbers(follower.poll()) == [4, 5]
    assert numbers(follower.poll()) == []


@pytest.mark.parametrize("look", [True, False], ids=["a look at the table", "its first record"])
def test_a_stream_that_appears_later_is_new_from_its_first_record(shelf, numbered, look):
    shelf.add(*numbered(1))
    follower = Follower(shelf.client, EVERYTHING)
    if not look:
        never_look_again(follower)
    shelf.add(*numbered(2, 3), stream=OTHER)
    assert numbers(follower.poll()) == [2, 3]


def test_a_record_that_is_stored_hours_late_is_not_missed(shelf, numbered, make_record):
    shelf.add(*numbered(100))
    follower = Follower(shelf.client, EVERYTHING)
    hour_ms = 3_600_000
    late = make_record(received_time_unix_ms=make_record().received_time_unix_ms - 5 * hour_ms)
    shelf.add(late)
    assert [row.record for row in follower.poll()] == [late]


def test_only_what_the_filter_wants_comes_and_the_rest_is_not_asked_for_again(shelf, numbered):
    follower = Follower(shelf.client, Filter(actor=(Match.exact("bob"),)))
    shelf.add(*numbered(1, 2), *numbered(3, actor_id="bob"), *numbered(4))
    assert numbers(follower.poll()) == [3]
    assert [stream.cursor for stream in follower._streams.values()] == [3]


def test_a_copy_in_another_collectors_stream_comes_once(shelf, numbered):
    follower = Follower(shelf.client, EVERYTHING)
    (record,) = numbered(1)
    shelf.add(record)
    assert numbers(follower.poll()) == [1]
    shelf.add(replace(record, received_time_unix_ms=record.received_time_unix_ms + 60_000), stream=OTHER)
    assert numbers(follower.poll()) == []


def test_what_a_search_showed_does_not_come_again(shelf, numbered):
    follower = Follower(shelf.client, EVERYTHING)
    shelf.add(*numbered(1, 2))
    for row in search(shelf.client, EVERYTHING):
        follower.note(row)
    shelf.add(*numbered(3))
    assert numbers(follower.poll()) == [3]


def test_rows_behind_a_gap_come_at_once_and_the_gap_when_it_fills(shelf, numbered):
    follower = Follower(shelf.client, EVERYTHING)
    shelf.add(*numbered(0, 1))
    shelf.add(*numbered(4, 5), first=4)
    assert numbers(follower.poll()) == [0, 1, 4, 5]
    assert numbers(follower.poll()) == []
    shelf.add(*numbered(2, 3), first=2)
    assert numbers(follower.poll()) == [2, 3]
    shelf.add(*numbered(6), first=6)
    assert numbers(follower.poll()) == [6]
    assert [(stream.cursor, stream.handed_out) for stream in follower._streams.values()] == [(6, set())]


def test_a_gap_that_nobody_fills_is_passed_after_a_while(shelf, numbered):
    clock = Clock()
    follower = Follower(shelf.client, EVERYTHING, gap_patience_s=60, clock=clock)
    shelf.add(*numbered(0))
    shelf.add(*numbered(4), first=4)
    assert numbers(follower.poll()) == [0, 4]
    clock.now = 61
    assert numbers(follower.poll()) == []
    assert [(stream.cursor, stream.handed_out) for stream in follower._streams.values()] == [(4, set())]


def test_a_stream_whose_first_records_are_missing_is_found_by_the_look(shelf, numbered):
    clock = Clock()
    follower = Follower(shelf.client, EVERYTHING, clock=clock)
    never_look_again(follower)
    shelf.add(*numbered(7), stream=OTHER, first=7)
    assert numbers(follower.poll()) == []
    follower._next_look = 0
    assert numbers(follower.poll()) == [7]


def test_a_stream_that_wakes_up_among_many_is_found_by_the_look(shelf, numbered, monkeypatch):
    monkeypatch.setattr(follow_module, "_MOST_ACTIVE", 1)
    shelf.add(*numbered(1), stream="default/a/00")
    shelf.add(*numbered(2), stream="default/b/00")
    follower = Follower(shelf.client, EVERYTHING)
    for stream, number in (("default/a/00", 3), ("default/b/00", 4), ("default/a/00", 5)):
        shelf.add(*numbered(number), stream=stream)
        follower._next_look = 0
        assert numbers(follower.poll()) == [number]


def test_an_outage_in_the_middle_of_a_poll_loses_and_repeats_nothing(shelf, numbered):
    follower = Follower(shelf.client, EVERYTHING)
    shelf.add(*numbered(1, 2, 3))

    class CutAfter:
        """The client, except that the answer breaks off after *most* rows."""

        def __init__(self, most):
            self.most = most

        def rows(self, sql, parameters):
            return shelf.client.rows(sql, parameters)

        @contextmanager
        def query(self, sql, parameters):
            with shelf.client.query(sql, parameters) as answer:
                yield self.cut(answer)

        def cut(self, answer):
            yield from islice(answer, self.most)
            raise StoreUnavailable("cut")

    seen = []
    for most in (0, 2):
        follower._client = CutAfter(most)
        with pytest.raises(StoreUnavailable):
            deque(map(seen.append, follower.poll()), maxlen=0)
    follower._client = shelf.client
    seen.extend(follower.poll())
    assert numbers(seen) == [1, 2, 3]


def test_a_question_that_can_not_be_asked_is_an_error_at_once(shelf):
    with pytest.raises(QueryError):
        Follower(shelf.client, Filter(outcome=(Match.exact("nope"),)))


def test_the_window_of_a_filter_still_holds(shelf, numbered, make_record):
    start = make_record().start_time_unix_ns
    follower = Follower(shelf.client, Filter(window=Window(start + 2 * 10**9)))
    shelf.add(*numbered(1, 2, 3))
    assert numbers(follower.poll()) == [2, 3]


def test_following_waits_between_its_looks_and_goes_on(shelf, numbered):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        shelf.add(*numbered(len(waits)))

    rows = follow(shelf.client, EVERYTHING, poll_s=0.25, wait=wait)
    assert numbers(next(rows) for _ in range(3)) == [1, 2, 3]
    assert set(waits) == {0.25}
    rows.close()


def test_what_was_shown_is_remembered_within_bounds(make_stored):
    copies = Copies(most=10)
    rows = [make_stored(record_id=uuid.UUID(int=number).bytes) for number in range(25)]
    assert not any(copies.seen(row) for row in rows)
    assert len(copies._shown) == 10
    assert copies.seen(rows[-1])
    assert not copies.seen(rows[0])
