"""The collector ends: at every point that has a name, at random moments, in the middle of an insert, when asked to."""

from __future__ import annotations

import random
import signal
import threading

import pytest
from auditspan_collector import crashpoint
from collector.service.otlp_peer import wait_until
from faults.proxy import Fault
from faults.verdict import finish, finish_workers, judge

pytestmark = pytest.mark.timeout(600)

BEFORE_THE_FIRST_RECORD = tuple(
    point for point in crashpoint.POINTS if point.startswith(("spool.", "migration."))
)
WITH_RECORDS = tuple(point for point in crashpoint.POINTS if point not in BEFORE_THE_FIRST_RECORD)


def crash(line, setting):
    """Start a collector that ends at a point, and see that it did; senders, if there are any, drive it there."""
    line.launch_collector(AUDITSPAN_CRASH_AT=setting)
    assert line.collector_ended() == -signal.SIGKILL, line.collector_log()
    # Another thread may have had the time for a line of its own.
    assert f"AUDITSPAN_CRASH_AT={setting}: ending this process\n" in line.collector_log()


def test_crashes_while_spool_and_table_are_made(line, judged):
    for point in BEFORE_THE_FIRST_RECORD:
        crash(line, point)
    line.start_collector()
    with line.senders() as senders:
        senders.progress(200)
    judged(
        "kill -9 while spool and table are made",
        judge(line, senders, finish(line)),
        f"{len(BEFORE_THE_FIRST_RECORD)} crash points in turn, then it starts",
    )


def test_crashes_at_every_step_of_intake_and_drain(line, judged):
    with line.senders() as senders:
        for point in WITH_RECORDS:
            crash(line, f"{point}:2")
        line.start_collector()
        senders.progress(200)
    judged(
        "kill -9 at every step of intake and drain",
        judge(line, senders, finish(line)),
        f"{len(WITH_RECORDS)} crash points in turn on one spool",
    )


@pytest.mark.long
@pytest.mark.parametrize("point", crashpoint.POINTS)
def test_many_crashes_at_one_point(line, judged, point):
    # A spool is made once; a later life of it gets past that point.
    lives = 1 if point in BEFORE_THE_FIRST_RECORD else 3
    with line.senders() as senders:
        for life in range(lives):
            crash(line, f"{point}:{1 + life * 3}")
        line.start_collector()
        senders.progress(200)
    judged(f"kill -9 at {point}", judge(line, senders, finish(line)), f"{lives} times")


@pytest.mark.parametrize(
    "kills", [pytest.param(3, id="some"), pytest.param(30, id="many", marks=pytest.mark.long)]
)
def test_kills_at_random_moments(line, judged, kills):
    rng = random.Random(kills)
    line.start_collector()
    line.keep_collector_alive()
    with line.senders() as senders:
        for _ in range(kills):
            senders.progress(rng.randint(1, 200))
            threading.Event().wait(rng.random() * 0.02)
            line.kill_now()
    judged("kill -9 at random moments", judge(line, senders, finish(line)), f"{kills} kills")


@pytest.mark.parametrize(
    "kills", [pytest.param(3, id="some"), pytest.param(24, id="many", marks=pytest.mark.long)]
)
def test_kills_of_workers_of_their_supervisor_and_of_all_at_random_moments(
    make_line, shared_store, judged, kills
):
    rng = random.Random(kills)
    line = make_line(shared_store, workers=2)
    line.start_collector()
    line.keep_collector_alive()
    ways = [lambda: line.kill_worker(rng.randrange(2)), line.kill_now, line.kill_everything_now]
    # Each sender has a connection of its own, and the kernel gives it to whichever worker is there.
    with line.senders(count=8) as senders:
        for kill in range(kills):
            senders.progress(rng.randint(1, 200))
            threading.Event().wait(rng.random() * 0.02)
            ways[kill % len(ways)]()
        senders.progress(50)
    verdict = judge(line, senders, finish_workers(line))
    judged(
        "kill -9 of a worker, of the supervisor, of all by turns",
        verdict,
        f"{kills} kills; {verdict.streams} streams; {verdict.copies} copies of records that were sent again "
        "without an answer",
    )


@pytest.mark.parametrize(
    "moment",
    ["answered", *(pytest.param(each, marks=pytest.mark.long) for each in ("arrived", "half", "sent"))],
)
def test_a_kill_in_the_middle_of_an_insert(line, judged, moment):
    line.start_collector()
    line.keep_collector_alive()
    with line.senders() as senders:
        for _ in range(3):
            senders.progress(50)
            ends = len(line.ends)
            line.proxy.next_inserts.append(Fault(moment, line.kill_now))
            wait_until(lambda: len(line.ends) > ends, limit_s=30, what="a kill")  # noqa: B023 - waited for here
        senders.progress(50)
    where = {
        "arrived": "before ClickHouse has a byte",
        "half": "when ClickHouse has half",
        "sent": "while ClickHouse works",
        "answered": "before the answer arrives",
    }[moment]
    judged(f"kill -9 in mid-insert, {where}", judge(line, senders, finish(line)), "3 kills")


@pytest.mark.long
def test_a_client_that_kills_the_collector_as_soon_as_it_hears_ok(line, judged):
    groups = []
    for life in range(5):
        line.start_collector()
        with line.senders(f"last-{life}", count=1, up_to=1) as senders:
            senders.each[0].join()
            line.kill_collector()
        groups.append(senders)
    line.start_collector()
    judged("kill -9 right after OK", judge(line, groups, finish(line)), "5 kills")


@pytest.mark.parametrize(
    "stops", [pytest.param(1, id="once"), pytest.param(8, id="often", marks=pytest.mark.long)]
)
def test_sigterm_under_load(line, judged, stops):
    line.start_collector()
    with line.senders() as senders:
        for _ in range(stops):
            senders.progress(200)
            assert line.end_collector(limit_s=20) == 0, line.collector_log()
            line.start_collector()
        senders.progress(50)
    verdict = judge(line, senders, finish(line))
    asked = [each for each in senders.refusals if each.retry_after_s is not None]
    assert len(asked) == len(senders.refusals), "a refusal that does not say when to come back"
    judged(
        "SIGTERM under load",
        verdict,
        f"exit status 0, {stops} times; {len(asked)} requests told to wait",
    )


@pytest.mark.long
def test_sigterm_while_clickhouse_hangs(line, judged):
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
        line.proxy.hang()
        senders.progress(100)
        assert line.end_collector(limit_s=20) == 0, line.collector_log()
        left = line.spool().backlog
        line.proxy.heal()
        line.start_collector()
        senders.progress(50)
    assert left
    judged(
        "SIGTERM while ClickHouse hangs", judge(line, senders, finish(line)), f"{left} records waited on disk"
    )
