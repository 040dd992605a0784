"""From a request to the engine's table, with ClickHouse's own engine: once, whatever dies on the way."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from auditspan_collector.clickhouse import ClickHouseClient, Config
from auditspan_collector.errors import StoreRejected
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.drain import Config as DrainConfig
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.pipeline.intake import Intake
from auditspan_collector.record import Leaves, OtlpRequest, Selection, Sender
from auditspan_collector.schema import INSERT_COLUMNS, encode_leaf, leaf_sql, seal_row
from collector.durability.sealing import make_record, one_request

TESTS = Path(__file__).parents[2]
DEADLINE_S = 60
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS)}
SENDER = Sender("anonymous", "default", None, instrumented=True)
FAST = DrainConfig(linger_s=0, retry_min_s=0.01, retry_max_s=0.05)
_databases = itertools.count()


@contextmanager
def child(module, *arguments, lives_s=DEADLINE_S):
    """Run a module of this folder; it is killed after *lives_s*, or at the end, if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"collector.durability.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env=ENVIRONMENT,
    )
    watchdog = threading.Timer(lives_s, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        watchdog.cancel()


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the deadline passed"
        threading.Event().wait(0.01)


@pytest.fixture(scope="module")
def store_url(tmp_path_factory):
    # As long as all tests of this module may take together.
    with child("store_child", str(tmp_path_factory.mktemp("store")), "0", lives_s=600) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(DEADLINE_S)


@pytest.fixture
def database():
    return f"d{next(_databases)}"


@pytest.fixture
def client(store_url, database):
    client = ClickHouseClient(Config(url=store_url, database=database))
    yield client
    client.close()


@pytest.fixture
def start(client, database):
    started = []

    def start_(spool, *, client=client, **given):
        drain = Drain(spool, client, prepare=partial(migrate, client, database), config=FAST, **given)
        started.append(drain)
        drain.start()
        return drain

    yield start_
    for drain in started:
        drain.stop(0)
        drain._thread.join(DEADLINE_S)


def leaves(first, count):
    return [encode_leaf(make_record(n)) for n in range(first, first + count)]


def stored(client):
    """Index and number of every row, copies included."""
    return client.rows("SELECT ledger_index, sequence_number FROM records ORDER BY ledger_index")


def drained(spool):
    return lambda: spool.backlog().records == 0


def test_the_engine_has_every_record_under_its_index_and_with_its_leaf(spool, client, start):
    sealed = leaves(0, 500)
    for at in range(0, 500, 50):
        spool.commit(one_request(sealed[at : at + 50]))
    start(spool)
    until(drained(spool))
    assert stored(client) == [(n, n) for n in range(500)]
    hashes = client.rows(f"SELECT {leaf_sql()} FROM records ORDER BY ledger_index")
    assert [bytes(row[0]) for row in hashes] == [leaf.hash for leaf in sealed]
    assert client.rows("SELECT DISTINCT ledger_stream FROM records") == [(spool.stream,)]


def test_a_record_is_queryable_within_two_seconds_of_its_answer(spool, client, start, database):
    drain = Drain(spool, client, prepare=partial(migrate, client, database))
    intake = Intake(spool, lambda _: Selection(Leaves.of(leaves(0, 1)), spans=1, tagged=1))
    drain.start()
    intake.start()
    intake.submit(OtlpRequest(b"", "protobuf", SENDER, "", 1))
    answered = time.monotonic()
    until(drained(spool))
    assert stored(client) == [(0, 0)]
    elapsed_s = time.monotonic() - answered
    intake.stop()
    drain.stop(DEADLINE_S)
    assert elapsed_s < 2


def test_a_range_that_was_stored_and_not_released_is_stored_once(spool, client, start, database, open_spool):
    migrate(client, database)
    spool.commit(one_request(leaves(0, 20)))
    batch = spool.read(100, 1 << 20)
    spool.begin_insert(batch)
    client.insert_block("records", INSERT_COLUMNS, batch.rows, f"{batch.stream}:0-19:{batch.root.hex()}")
    spool.close()
    again = open_spool()
    start(again)
    until(drained(again))
    assert stored(client) == [(n, n) for n in range(20)]


def test_a_range_that_is_there_in_part_is_completed_when_its_token_is_old(spool, client, start, database):
    migrate(client, database)
    sealed = leaves(0, 20)
    spool.commit(one_request(sealed))
    in_flight = spool.begin_insert(spool.read(100, 1 << 20))
    some = b"".join(seal_row(spool.stream, n, sealed[n]) for n in (0, 3, 19))
    client.insert_block("records", INSERT_COLUMNS, some, "another token")
    start(spool, clock_ns=lambda: in_flight.started_unix_ns + 10**12)
    until(drained(spool))
    assert stored(client) == [(n, n) for n in range(20)]


def test_a_spool_restored_from_an_old_copy_stops_before_it_sends(spool, client, start, database):
    migrate(client, database)
    others = b"".join(seal_row(spool.stream, n, leaf) for n, leaf in enumerate(leaves(100, 5)))
    client.insert_block("records", INSERT_COLUMNS, others, "token")
    drain = start(spool)
    until(lambda: drain.status.state == "stopped")
    assert "index 4 of stream" in str(drain.status.error)


def test_a_table_that_is_dropped_stops_the_drain_and_retry_makes_it_again(spool, client, start):
    spool.commit(one_request(leaves(0, 5)))
    drain = start(spool)
    until(drained(spool))
    client.execute("DROP TABLE records", in_database=True)
    spool.commit(one_request(leaves(5, 5)))
    until(lambda: drain.status.state == "stopped")
    assert drain.status.error.code == 60
    drain.retry()
    until(drained(spool))
    assert stored(client) == [(n, n) for n in range(5, 10)]


def test_kill_9_of_the_store_loses_and_doubles_nothing(spool, tmp_path, start, database):
    folder, rng, committed = str(tmp_path / "store"), random.Random(7), 0
    with child("store_child", folder, "0") as process:
        url = process.stdout.readline().strip()
        client = ClickHouseClient(Config(url=url, database=database))
        drain = start(spool, client=client)
        spool.commit(one_request(leaves(0, 50)))
        until(drained(spool))
        committed = 50
    for _ in range(2):
        for _ in range(5):
            spool.commit(one_request(leaves(committed, 50)))
            committed += 50
        with child("store_child", folder, url.rpartition(":")[2]) as process:
            process.stdout.readline()
            for _ in range(rng.randint(1, 20)):
                spool.commit(one_request(leaves(committed, 50)))
                committed += 50
            threading.Event().wait(rng.random() * 0.05)
    with child("store_child", folder, url.rpartition(":")[2]) as process:
        process.stdout.readline()
        until(drained(spool))
        assert stored(client) == [(n, n) for n in range(committed)]
        drain.stop(DEADLINE_S)
        client.close()


def test_kill_9_of_the_collector_after_an_answer_loses_and_doubles_nothing(
    tmp_path, client, store_url, database
):
    rng, number, acked = random.Random(3), 0, 0
    for life in range(5):
        with child("collector_child", str(tmp_path / "spool"), store_url, database) as process:
            for _ in range(rng.randint(1, 12)):
                # As a sender would: again from the first record that was not acknowledged.
                count = rng.randint(1, 30)
                process.stdin.write(f"{acked} {count}\n")
                process.stdin.flush()
                first, indexes, duplicates = process.stdout.readline().split()
                assert int(first) == acked
                number = max(number, acked + count)
                if indexes != "-":
                    assert int(indexes.split("-")[1]) == acked + count - 1
                assert life or duplicates == "0"
                acked += count
            # One more, whose answer nobody waits for.
            process.stdin.write(f"{acked} 10\n")
            process.stdin.flush()
            threading.Event().wait(rng.random() * 0.01)
    with child("collector_child", str(tmp_path / "spool"), store_url, database) as process:
        process.stdin.write(f"{acked} 1\n")
        process.stdin.close()
        process.stdout.read()
        process.wait(DEADLINE_S)
    rows = stored(client)
    assert len(rows) > acked
    assert rows == [(n, n) for n in range(len(rows))]


# The client on the real engine


def test_parameters_are_bound_by_the_server(client, database):
    migrate(client, database)
    hostile = "'; DROP TABLE records; --\\\n\t{x}%s"
    assert client.rows("SELECT {text:String}", {"text": hostile}) == [(hostile,)]


def test_an_answer_streams_in_bounded_memory_with_names_and_types(client, database):
    migrate(client, database)
    with client.query("SELECT number AS n, toString(number) AS t FROM numbers(300000)") as result:
        assert (result.column_names, result.column_types) == (("n", "t"), ("UInt64", "String"))
        assert sum(row[0] for row in result) == sum(range(300_000))


def test_raw_bytes_come_in_the_format_that_was_asked_for(client, database):
    migrate(client, database)
    chunks = list(client.raw("SELECT number FROM numbers({n:UInt64})", {"n": 100_000}, "CSV"))
    assert len(chunks) > 1
    assert b"".join(chunks) == b"".join(b"%d\n" % n for n in range(100_000))


def test_a_failure_in_the_middle_of_an_answer_raises(client, database):
    migrate(client, database)
    sql = "SELECT throwIf(number = 2000000, 'in the middle'), number FROM numbers(3000000) SETTINGS max_block_size = 1000"
    with pytest.raises(StoreRejected, match="in the middle") as caught:
        for _ in client.raw(sql, fmt="CSV"):
            pass
    assert caught.value.code == 395
    with pytest.raises(StoreRejected, match="in the middle"), client.query(sql) as result:
        for _ in result:
            pass


@pytest.mark.parametrize(
    ("sql", "code"),
    [("SELECT * FROM nowhere", 60), ("SELEC 1", 62), ("SELECT no_such_column FROM system.one", 47)],
)
def test_the_engines_refusals_come_with_their_codes(client, database, sql, code):
    migrate(client, database)
    with pytest.raises(StoreRejected) as caught:
        client.rows(sql)
    assert caught.value.code == code


def test_a_database_that_is_not_there_is_a_refusal_and_no_obstacle_to_making_it(client, database):
    with pytest.raises(StoreRejected) as caught:
        client.rows("SELECT 1 FROM records")
    assert caught.value.code == 81
    migrate(client, database)
    assert client.rows("SELECT count() FROM records") == [(0,)]
