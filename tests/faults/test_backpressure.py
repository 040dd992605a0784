"""More comes than ClickHouse takes: some are told when to come back, the others are answered as quickly as ever."""

from __future__ import annotations

import pytest
from collector.service.otlp_peer import wait_until
from faults.senders import DEADLINE_S
from faults.verdict import finish, judge

pytestmark = pytest.mark.timeout(600)

LARGE = {"records": (8, 12), "value_bytes": 50_000}


def full(line):
    return line.metric("auditspan_commit_refused_requests_total", reason="spool_full")


def test_a_load_that_clickhouse_cannot_take_is_pushed_back_to_the_senders(make_line, shared_store, judged):
    line = make_line(shared_store, spool_mb=64, window=10_000, max_rows=100)
    line.proxy.bytes_per_s = 2e6  # a fraction of what four senders offer
    line.start_collector()
    with line.senders(pause_s=0, **LARGE) as senders:
        wait_until(lambda: len(senders.refusals) >= 40, limit_s=60, what="refusals")
        at_first = len(senders.acknowledged)
        # Full, it still takes what ClickHouse makes room for.
        senders.progress(100)
        under_pressure = len(senders.acknowledged) - at_first
        line.proxy.heal()
        senders.progress(300)
    verdict = judge(line, senders, finish(line))
    assert under_pressure
    for each in senders.refusals:
        assert "is full" in each.message
        assert each.retry_after_s
        assert 0 < each.retry_after_s <= 60
    # Nobody waited for room: an answer comes well before the deadline that an exporter gives it, whichever it is.
    slowest_refusal_s = max(each.elapsed_s for each in senders.refusals)
    slowest_ok_s = max(each.elapsed_s for each in senders.acknowledged)
    assert senders.unreachable == []
    assert slowest_refusal_s < DEADLINE_S / 2
    assert slowest_ok_s < DEADLINE_S / 2
    judged(
        "more than ClickHouse takes (2 MB/s), spool full",
        verdict,
        f"{len(senders.refusals)} requests told to wait, after {slowest_refusal_s:.1f} s at most; "
        f"OK took {slowest_ok_s:.1f} s at most",
    )


@pytest.mark.long
def test_a_start_with_a_full_spool_answers_at_once_and_sends_behind(make_line, shared_store, judged):
    line = make_line(shared_store, spool_mb=64, window=10_000)
    line.proxy.mode = "refuse"
    line.start_collector()
    with line.senders("before", pause_s=0, **LARGE) as before:
        wait_until(lambda: before.refusals, limit_s=60, what="a refusal")
    line.kill_collector()
    line.start_collector()
    waiting = line.metric("auditspan_spool_records")
    with line.senders("small", count=1) as small:
        # What is small still fits, before ClickHouse has taken anything.
        wait_until(lambda: small.acknowledged or small.refusals, limit_s=10, what="an answer")
        line.proxy.heal()
        small.progress(50)
    assert line.metric("auditspan_spool_records") is not None
    assert waiting
    judged(
        "restart with a full spool",
        judge(line, [before, small], finish(line)),
        f"{waiting:.0f} records waited; answered before the first was sent",
    )
