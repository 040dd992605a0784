"""Promises 1 and 2: what a client heard OK for is stored, once, whatever ends in between."""

from __future__ import annotations

import shutil
import signal
import time
import uuid

import grpc
import pytest
from collector.service.otlp_peer import wait_until
from integration.whole_line import EXPORT, Client, anonymous_memory_mb, request

OUTAGE_S = 10.0  # of which the collector tries twenty times
OUTAGE_RECORDS = 20_000
NOTE = {"note": "n" * 2_000}  # so that this many are 40 MB


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def send(line, body: bytes) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{line.grpc}") as channel:
        channel.unary_unary(EXPORT)(body, timeout=10)


def test_a_record_whose_collector_is_killed_right_after_the_answer_is_stored_once(line):
    line.start_store()
    line.start_collector()
    (record,) = ids(1)
    send(line, request([record]))
    line.kill_collector()
    line.start_collector()
    line.wait_for_records([record])
    assert line.stored_ids() == [record]


@pytest.mark.timeout(180)
def test_under_load_no_kill_of_the_collector_loses_or_doubles_a_record(line):
    line.start_store()
    line.start_collector()
    clients = [Client(line.grpc) for _ in range(4)]
    for client in clients:
        client.__enter__()
    try:
        for _ in range(4):
            enough = sum(len(client.acknowledged) for client in clients) + 300
            wait_until(
                lambda enough=enough: sum(len(client.acknowledged) for client in clients) >= enough,
                limit_s=30,
                what="acknowledged records",
            )
            line.kill_collector()
            line.start_collector()
    finally:
        for client in clients:
            client.__exit__()
    acknowledged = [record for client in clients for record in client.acknowledged]
    line.wait_for_records(acknowledged)
    stored = line.stored_ids()
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)
    gaps = line.rows(
        "SELECT ledger_stream, count(), min(ledger_index), max(ledger_index) FROM audit.records GROUP BY ledger_stream"
    )
    assert [(int(count), int(first), int(last)) for _, count, first, last in gaps] == [
        (len(stored), 0, len(stored) - 1)
    ]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_while_clickhouse_is_away_records_wait_on_disk_and_memory_stays_flat(line):
    line.start_store()
    line.start_collector()
    with Client(line.grpc, records_per_request=50, pause_s=0.02, attributes=NOTE) as client:
        wait_until(lambda: len(client.acknowledged) > 500, limit_s=30, what="a start")
        line.store.end(signal.SIGKILL)
        before_mb = most_mb = anonymous_memory_mb(line.collector.process.pid)
        up_again = time.monotonic() + OUTAGE_S
        enough = len(client.acknowledged) + OUTAGE_RECORDS  # it goes on taking records all the time
        while time.monotonic() < up_again or len(client.acknowledged) < enough:
            time.sleep(0.2)
            most_mb = max(most_mb, anonymous_memory_mb(line.collector.process.pid))
        line.start_store()
    # None of what waited may be in memory, and what is remembered of it has a bound.
    assert most_mb - before_mb < 25, (before_mb, most_mb)
    line.wait_for_records(client.acknowledged, limit_s=60)
    stored = line.stored_ids()
    assert len(stored) == len(set(stored))


def test_after_the_spool_folder_was_deleted_new_records_are_stored_and_none_is_taken_for_a_repeat(line):
    line.start_store()
    line.start_collector()
    before = ids(20)
    send(line, request(before))
    line.wait_for_records(before)
    line.collector.end()
    shutil.rmtree(line.folder / "spool")
    line.start_collector()
    after = ids(20)
    # The same indexes as before, and even one record that the lost spool had taken already.
    send(line, request(after))
    line.wait_for_records(after)
    assert sorted(line.stored_ids()) == sorted(before + after)
    streams = line.rows("SELECT ledger_stream, count() FROM audit.records GROUP BY ledger_stream")
    assert [int(count) for _, count in streams] == [20, 20]


def test_a_restart_of_both_in_any_order_stores_what_was_taken_meanwhile(line):
    line.start_collector()  # before there is any store
    first = ids(10)
    send(line, request(first))
    line.start_store()
    line.wait_for_records(first)
    line.store.end(signal.SIGKILL)
    second = ids(10)
    send(line, request(second))
    line.collector.end()
    line.start_store()
    line.start_collector()
    line.wait_for_records(second)
    assert sorted(line.stored_ids()) == sorted(first + second)


def test_a_record_that_is_sent_again_is_stored_once(line):
    line.start_store()
    line.start_collector()
    record, last = ids(2)
    for _ in range(3):
        send(line, request([record]))
    line.collector.end()
    line.start_collector()
    send(line, request([record]))  # over a restart too
    send(line, request([last]))
    line.wait_for_records([record, last])
    assert sorted(line.stored_ids()) == sorted([record, last])


def test_the_same_record_id_with_other_content_is_kept_so_that_nobody_can_make_a_record_vanish(line):
    line.start_store()
    line.start_collector()
    record, last = ids(2)
    send(line, request([record], **{"audit.target.id": "1"}))
    send(line, request([record], **{"audit.target.id": "2"}))
    send(line, request([last]))
    line.wait_for_records([last])
    assert sorted(line.stored_ids()) == sorted([record, record, last])
