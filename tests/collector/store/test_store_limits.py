"""Load, large results, impatient clients and the end: bounded memory, bounded waiting, nobody left hanging."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from collector.store.running_store import row_binary

MIB = 1 << 20
ENDLESS = "SELECT sum(cityHash64(number)) FROM numbers(1000000000000)"


def until(condition, seconds=15.0):
    """Wait for *condition*; fails the test when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def test_more_statements_than_allowed_wait_and_then_are_told_to_come_back(store):
    slow = "SELECT sleepEachRow(1.5) FROM numbers(1)"
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda _: store.ask(slow), range(9)))
    refused = [answer for answer in answers if answer.status != 200]
    assert 0 < len(refused) <= 5  # four run, the others wait half a second
    for answer in refused:
        assert (answer.status, answer.code) == (503, 202)
        assert answer.headers["retry-after"] == "1"
        assert "TOO_MANY_SIMULTANEOUS_QUERIES" in answer.text
    assert store.sql("SELECT 1") == "1"


@pytest.mark.parametrize("how", ["read-only user", "GET"])
def test_readers_can_not_take_the_last_turn(store, table, how):
    slow = "SELECT sleepEachRow(1.5) FROM numbers(1)"

    def read(_):
        if how == "GET":
            return store.ask(method="GET", query=slow)
        return store.ask(slow, user="reader", password="of books")

    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(read, number) for number in range(8)]
        until(
            lambda: (
                store.sql("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sleepEachRow(1.5)%'")
                == "3"
            )
        )
        assert store.ask(row_binary(0, 1), query=f"INSERT INTO {table} FORMAT RowBinary").status == 200
        statuses = sorted(one.result().status for one in reading)
    assert statuses == [200] * 3 + [503] * 5


def test_health_checks_need_no_turn(store):
    slow = "SELECT sleepEachRow(1) FROM numbers(1)"
    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(store.ask, slow) for _ in range(4)]
        began = time.monotonic()
        assert store.ask(method="GET", path="/ping").status == 200
        assert time.monotonic() - began < 0.9
        assert [one.result().status for one in running] == [200] * 4


def test_more_connections_than_allowed_are_told_to_come_back(start):
    store = start(max_connections=3)
    held = [socket.create_connection(("127.0.0.1", store.port), timeout=10) for _ in range(3)]
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as one_more:
        answer = one_more.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"X-ClickHouse-Exception-Code: 202" in answer
    for connection in held:
        connection.close()

    def served():
        try:
            return store.ask("SELECT 1").status == 200
        except (OSError, http.client.HTTPException):
            return False

    until(served)


def test_an_idle_connection_is_closed(start):
    store = start(idle_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        assert connection.recv(1) == b""


def test_readers_and_writers_work_side_by_side(store, table):
    def write(number):
        for batch in range(10):
            answer = store.ask(
                row_binary(number * 100_000 + batch * 100, 100), query=f"INSERT INTO {table} FORMAT RowBinary"
            )
            assert answer.status == 200, answer.text

    def read(_):
        last = 0
        for _ in range(10):
            seen = int(store.sql(f"SELECT count() FROM {table}"))
            assert seen >= last
            assert seen % 100 == 0, "a batch appears whole"
            last = seen

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, n) for n in range(2)] + [pool.submit(read, n) for n in range(2)]
        for job in jobs:
            job.result()
    assert store.sql(f"SELECT count(), uniqExact(a) FROM {table}") == "2000\t2000"


@pytest.mark.parametrize("held", [0, 1], ids=["streamed", "held on disk"])
@pytest.mark.parametrize("form", ["Native", "CSVWithNames"])
def test_a_large_result_takes_bounded_memory(start, held, form):
    store = start()
    store.sql("SELECT sum(number) FROM numbers(1000000)")
    before, peak, received = store.memory_bytes(), 0, 0
    connection = store.connection()
    connection.request(
        "POST",
        f"/?wait_end_of_query={held}&default_format={form}",
        body=b"SELECT number, repeat('x', 100) AS s FROM numbers(4000000)",
    )
    answer = connection.getresponse()
    assert answer.status == 200
    while piece := answer.read(4 * MIB):
        received += len(piece)
        peak = max(peak, store.memory_bytes())
    connection.close()
    assert received > 400 * MIB
    assert peak - before < 150 * MIB
    assert not list((store.path / "results").iterdir())


def test_a_statement_that_needs_too_much_memory_fails_alone(start):
    store = start(max_memory_bytes=512 * MIB)
    hungry = "SELECT groupArray(repeat('x', 1000)) FROM numbers(10000000)"
    for form in ("JSON", "TSV"):
        answer = store.ask(f"{hungry} FORMAT {form}")
        assert (answer.status, answer.code) == (500, 241)
    assert store.ask(hungry, max_memory_usage=0).code == 241
    assert store.sql("SELECT 1") == "1"


def test_a_statement_longer_than_allowed_is_refused(start):
    store = start(max_query_bytes=2048, max_form_bytes=4096)
    assert store.ask(f"SELECT '{'x' * 1900}'").status == 200
    answer = store.ask(f"SELECT '{'x' * 4000}'")
    assert (answer.status, answer.code) == (413, 62)
    assert "2048 bytes (store.max_query_bytes)" in answer.text
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert store.ask(b"x" * 10_000, headers=form).code == 307
    # The data of an INSERT does not count.
    store.sql("CREATE TABLE t (a String) ENGINE = Memory")
    assert store.ask(f"INSERT INTO t VALUES ('{'x' * 100_000}')").status == 200
    assert store.sql("SELECT max(length(a)) FROM t") == "100000"


def test_a_statement_longer_to_parse_than_it_looks_is_refused_at_once(store):
    """What the engine would parse for minutes or hours, with no time limit that applies."""

    def cpu_s():
        fields = Path(f"/proc/{store.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    began = cpu_s()
    assert store.ask("SELECT 1" + ", 1" * 40_000).status == 200
    benign = (cpu_s() - began) * MIB / 120_000
    for hostile in (";SELECT 1" * 100_000, "".join(f" ${n:x}$" for n in range(120_000))):
        began = cpu_s()
        assert store.ask(f"SELECT 1{hostile}", user="reader", password="of books").code == 62
        assert cpu_s() - began < 20 * benign


def test_a_query_of_a_client_that_left_is_stopped(store):
    connection = store.connection()
    connection.request("POST", "/?query_id=left", body=ENDLESS.encode())
    until(
        lambda: store.sql("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(city%'") == "1"
    )
    connection.close()
    until(
        lambda: store.sql("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(city%'") == "0",
        5,
    )


def test_a_query_ends_at_its_time_limit(store):
    began = time.monotonic()
    assert store.ask(ENDLESS, max_execution_time=1).code == 159
    assert time.monotonic() - began < 5


def test_what_runs_may_finish_when_the_store_stops(start):
    store = start()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.ask, "SELECT sleepEachRow(1) FROM numbers(1)")
        until(
            lambda: (
                store.sql("SELECT count() FROM system.processes WHERE query LIKE '%sleepEachRow(1)%'") == "2"
            )
        )
        assert store.stop() == 0
        assert running.result().body == b"0\n"


def test_what_would_not_end_is_stopped_with_the_store(start, monkeypatch):
    monkeypatch.setenv("STOP_S", "0.3")
    store = start()
    idle = socket.create_connection(("127.0.0.1", store.port), timeout=10)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(store.ask, ENDLESS)
        until(
            lambda: (
                store.sql("SELECT count() FROM system.processes WHERE query LIKE 'SELECT sum(city%'") == "1"
            )
        )
        began = time.monotonic()
        assert store.stop() == 0
        assert time.monotonic() - began < 8
        assert running.result().code == 394
    assert idle.recv(1) == b""
    idle.close()


def test_memory_stays_bounded_under_mixed_load(start):
    store = start(max_memory_bytes=768 * MIB)
    store.sql("CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    stop = threading.Event()

    def write(number):
        batch = 0
        while not stop.is_set():
            store.ask(row_binary(batch * 10_000, 10_000, b"v" * 60), query="INSERT INTO t FORMAT RowBinary")
            batch += 1
        return batch

    def read(number):
        done = 0
        while not stop.is_set():
            store.ask("SELECT b, count(), uniq(a) FROM t GROUP BY b", max_threads=1)
            store.ask("SELECT * FROM t ORDER BY b, a DESC LIMIT 100000 FORMAT Native")
            done += 1
        return done

    peak = 0
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(write, n) for n in range(2)] + [pool.submit(read, n) for n in range(4)]
        deadline = time.monotonic() + 6
        while time.monotonic() < deadline:
            peak = max(peak, store.memory_bytes())
            time.sleep(0.05)
        stop.set()
        assert all(job.result() > 0 for job in jobs)
    assert peak < 1100 * MIB
