"""ClickHouse is down, ill, silent, cut off or restarted, for moments or for long: records wait, and none is doubled."""

from __future__ import annotations

import random
import signal
import threading

import loopback
import pytest
from collector.service.otlp_peer import wait_until
from faults.proxy import Fault, cut
from faults.verdict import finish, judge

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    "mode", ["500", *(pytest.param(each, marks=pytest.mark.long) for each in ("refuse", "hang"))]
)
def test_while_clickhouse_does_not_work_records_are_taken(make_line, shared_store, judged, mode):
    line = make_line(shared_store, insert_timeout_s=1)
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
        if mode == "hang":
            line.proxy.hang()
        else:
            line.proxy.mode = mode
        wait_until(
            lambda: line.metric("auditspan_drain_state", state="retrying") == 1, limit_s=30, what="a failure"
        )
        senders.progress(500)
        assert line.metric("auditspan_spool_records") >= 500
        line.proxy.heal()
        senders.progress(50)
    verdict = judge(line, senders, finish(line))
    assert not senders.refusals
    what = {
        "refuse": "ClickHouse cuts each connection",
        "500": "ClickHouse answers 500",
        "hang": "ClickHouse hangs",
    }[mode]
    judged(what, verdict, "500 records and more taken meanwhile, none refused")


@pytest.mark.parametrize(
    "moment",
    ["sent", *(pytest.param(each, marks=pytest.mark.long) for each in ("arrived", "half", "answered"))],
)
def test_the_connection_is_cut_in_the_middle_of_an_insert(line, judged, moment):
    line.start_collector()
    with line.senders() as senders:
        for _ in range(10):
            before = line.proxy.inserts
            line.proxy.next_inserts.append(Fault(moment, cut))
            wait_until(lambda: line.proxy.inserts >= before + 2, limit_s=30, what="an insert")  # noqa: B023
    where = {
        "arrived": "before ClickHouse has a byte",
        "half": "when ClickHouse has half",
        "sent": "while ClickHouse works",
        "answered": "before the answer arrives",
    }[moment]
    judged(f"connection cut in mid-insert, {where}", judge(line, senders, finish(line)), "10 cuts")


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "stop"])
def test_clickhouse_restarts_in_the_middle_of_an_insert(own_line, judged, how):
    line, rng, kills = own_line, random.Random(how), 5
    line.start_store()
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
        for _ in range(kills):

            def end_store():
                threading.Event().wait(rng.random() * 0.05)  # somewhere in its work
                line.store.process.send_signal(how)

            line.proxy.next_inserts.append(Fault(rng.choice(["half", "sent"]), end_store))
            line.store.process.wait(30)
            senders.progress(100)
            line.start_store()
    judged(
        f"ClickHouse restarts in mid-insert ({how.name})",
        judge(line, senders, finish(line)),
        f"{kills} times; records taken meanwhile",
    )


def insert_as_another(line, *, token, index):
    """Insert one row of another stream, copied from one that is there, under *token*."""
    table = f"{line.database}.records"
    sql = (
        f"INSERT INTO {table} SELECT * REPLACE ('another/collector' AS ledger_stream, {index} AS ledger_index) "
        f"FROM (SELECT * FROM {table} WHERE startsWith(ledger_stream, 'test/faults/') LIMIT 1)"
    )
    settings = {"insert_deduplication_token": token, "insert_deduplicate": "1", "async_insert": "0"}
    answer = loopback.post(
        f"http://127.0.0.1:{line.store_port}/", params=settings, content=sql, timeout=30, trust_env=False
    )
    assert answer.status_code == 200, answer.text


def others(line):
    return int(
        line.rows(f"SELECT count() FROM {line.database}.records WHERE ledger_stream = 'another/collector'")[
            0
        ][0]
    )


@pytest.mark.parametrize("part", ["all", pytest.param("none", marks=pytest.mark.long)])
def test_clickhouse_is_away_for_longer_than_it_remembers_tokens(make_line, shared_store, judged, part):
    line = make_line(shared_store, token_memory_s=1)
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
        line.wait_until_stored()
        line.rows(
            f"ALTER TABLE {line.database}.records MODIFY SETTING non_replicated_deduplication_window = 5"
        )
        # The store has the range, or it does not; the collector can't tell, and then the store is away.
        away = threading.Event()

        def cut_off():
            line.proxy.mode = "refuse"
            away.set()
            cut()

        line.proxy.next_inserts.append(Fault("answered" if part == "all" else "arrived", cut_off))
        senders.progress(100)
        assert away.wait(30)
        insert_as_another(line, token="probe", index=0)
        for index in range(1, 8):
            insert_as_another(line, token=f"another-{index}", index=index)
        insert_as_another(line, token="probe", index=8)
        assert others(line) == 9, (
            "the store forgot the oldest token, so it must have forgotten the collector's"
        )
        threading.Event().wait(1)  # until the collector must doubt it too
        line.proxy.heal()
        senders.progress(50)
    verdict = judge(line, senders, finish(line))
    seen = "was tried before: the store has"
    assert seen in line.collector_log()
    judged(
        f"ClickHouse away until it forgot the token; it had {part} of the range",
        verdict,
        "read back by index before it was sent again",
    )


@pytest.mark.long
def test_a_table_without_a_column_stops_the_drain_and_loses_nothing(line, judged):
    line.start_collector()
    with line.senders() as senders:
        senders.progress(100)
        line.wait_until_stored()
        line.rows(f"ALTER TABLE {line.database}.records RENAME COLUMN reason TO cause")
        senders.progress(200)
        wait_until(
            lambda: line.metric("auditspan_drain_state", state="stopped") == 1, limit_s=30, what="a stop"
        )
        line.collector.wait_for("STOPPED sending to ClickHouse")
        senders.progress(200)  # it goes on taking
        line.rows(f"ALTER TABLE {line.database}.records RENAME COLUMN cause TO reason")
        line.end_collector()
        line.start_collector()
        senders.progress(50)
    verdict = judge(line, senders, finish(line))
    judged(
        "a column dropped from the table",
        verdict,
        "STOPPED, records taken, goes on after mending and a restart",
    )


@pytest.mark.long
def test_a_table_that_is_gone_stops_the_drain_and_comes_back_with_the_next_start(line, judged):
    line.start_collector()
    with line.senders("before") as before:
        before.progress(100)
    line.wait_until_drained()
    lost = int(line.rows(f"SELECT count() FROM {line.database}.records")[0][0])
    line.rows(f"RENAME TABLE {line.database}.records TO {line.database}.records_aside")
    with line.senders("after") as senders:
        senders.progress(100)
        line.collector.wait_for("STOPPED sending to ClickHouse.*it is made again when the collector restarts")
        senders.progress(100)
        line.end_collector()
        line.start_collector()
        senders.progress(50)
    # What was stored before is where the operator moved it; with it, all is there.
    state = finish(line)
    line.rows(f"INSERT INTO {line.database}.records SELECT * FROM {line.database}.records_aside")
    judged(
        "the table is gone",
        judge(line, [before, senders], state),
        f"STOPPED, made again at the restart; {lost} rows were moved away and back",
    )
