"""An INSERT that was answered is stored once, whatever happens; one that was not is stored whole or not at all."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time

import pytest
from collector.store.running_store import row_binary

MIB = 1 << 20


def count(store, table) -> int:
    return int(store.sql(f"SELECT count() FROM {table}"))


def test_the_same_token_stores_once_also_with_other_spelling(store, table):
    insert = f"INSERT INTO {table} FORMAT RowBinary"
    for _ in range(3):
        answer = store.ask(
            row_binary(0, 10), query=insert, insert_deduplication_token="s:0-9:root", async_insert=0
        )
        assert answer.status == 200
    store.sql(f"INSERT INTO {table} SETTINGS insert_deduplication_token = 's:0-9:root' VALUES (1, 'x')")
    assert count(store, table) == 10
    store.ask(row_binary(10, 10), query=insert, insert_deduplication_token="s:10-19:root")
    assert count(store, table) == 20


def test_a_token_is_remembered_over_a_restart(start, tmp_path):
    first = start(tmp_path / "s")
    first.sql(
        "CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    for _ in range(2):
        first.ask(row_binary(0, 5), query="INSERT INTO t FORMAT RowBinary", insert_deduplication_token="one")
    assert first.stop() == 0
    second = start(tmp_path / "s")
    second.ask(row_binary(0, 5), query="INSERT INTO t FORMAT RowBinary", insert_deduplication_token="one")
    assert count(second, "t") == 5


def test_inserts_are_synchronous_whatever_is_asked(store, table):
    assert store.sql("SELECT getSetting('async_insert')") == "false"
    store.sql(f"INSERT INTO {table} VALUES (1, 'x')")
    assert count(store, table) == 1
    store.ask("(2, 'y')", query=f"INSERT INTO {table} VALUES", async_insert=1, wait_for_async_insert=1)
    assert count(store, table) == 2
    store.ask("(3, 'z')", query=f"INSERT INTO {table} VALUES", async_insert=1, wait_for_async_insert=0)
    assert count(store, table) == 3


@pytest.mark.parametrize(
    ("statement", "data"),
    [
        ("INSERT INTO {t} VALUES", b"(1, 'x'), (2, lower('Y'))"),
        ("INSERT INTO {t} FORMAT Values", b"(1, 'x'), (2, 'y')"),
        ("INSERT INTO {t} (b, a) FORMAT CSV", b"x,1\ny,2\n"),
        ("insert into table {t} (a, b) settings async_insert = 0 format TSV", b"1\tx\n2\ty\n"),
        ("INSERT INTO {t} FORMAT JSONEachRow", b'{"a": 1, "b": "x"}\n{"a": 2, "b": "y"}'),
        ("INSERT INTO {t} -- FORMAT Nope\n/* VALUES */ FORMAT CSV", b"1,x\n2,y\n"),
        ('INSERT INTO `{t}`(`a`, "b")FORMAT CSV', b"1,x\n2,y\n"),
        ("INSERT INTO default.{t} FORMAT RowBinary", row_binary(1, 1) + row_binary(2, 1, b"y")),
    ],
)
@pytest.mark.parametrize("where", ["in the url", "in the body", "in one line"])
def test_the_statement_and_its_data_come_together_or_apart(store, table, statement, data, where):
    statement = statement.format(t=table)
    if where == "in the url":
        answer = store.ask(data, query=statement)
    else:
        answer = store.ask(statement.encode() + (b"\n" if where == "in the body" else b" ") + data)
    assert answer.status == 200, answer.text
    assert store.sql(f"SELECT * FROM {table} ORDER BY a") == "1\tx\n2\ty"
    assert answer.headers["x-clickhouse-summary"].startswith('{"read_rows":"0"')
    assert '"written_rows":"2"' in answer.headers["x-clickhouse-summary"]


def test_a_table_may_be_called_values(store):
    store.sql("DROP TABLE IF EXISTS values SYNC")
    store.sql("CREATE TABLE values (format UInt8) ENGINE = Memory")
    store.sql("INSERT INTO values VALUES (1)")
    store.sql("INSERT INTO values (format) SELECT 2")
    store.ask("3\n", query="INSERT INTO default.values FORMAT CSV")
    assert store.sql("SELECT sum(format) FROM values") == "6"


def test_insert_select(store, table):
    store.sql(f"INSERT INTO {table} SELECT number, 'x' FROM numbers(100)")
    store.sql(f"INSERT INTO {table} WITH 5 AS n SELECT n, 'FORMAT CSV'")
    store.sql(f"INSERT INTO {table} (SELECT 6, 'x')")
    assert count(store, table) == 102


def test_an_empty_insert_stores_nothing(store, table):
    assert store.ask(b"", query=f"INSERT INTO {table} FORMAT CSV").status == 200
    assert count(store, table) == 0


@pytest.mark.parametrize(
    ("form", "data", "code"),
    [("CSV", b"1,x\nzz,y\n", 27), ("RowBinary", row_binary(0, 3)[:-1], 33), ("Native", b"nonsense", 33)],
)
def test_bad_data_is_an_error_and_nothing_of_it_is_stored(store, table, form, data, code):
    answer = store.ask(data, query=f"INSERT INTO {table} FORMAT {form}")
    assert answer.code == code, answer.text
    assert count(store, table) == 0


def test_a_bad_row_at_the_start_of_a_long_stream_is_told(store, table):
    def body():
        yield b"zz,x\n"
        for _ in range(200):
            yield b"1,x\n" * 16384

    answer = store.ask(body(), query=f"INSERT INTO {table} FORMAT CSV", chunked=True)
    assert answer.code == 27
    assert count(store, table) == 0


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_insert_whose_client_vanishes_is_not_stored(store, table, framing):
    data = row_binary(0, 1000)
    head = f"POST /?query=INSERT+INTO+{table}+FORMAT+RowBinary HTTP/1.1\r\nHost: localhost\r\n".encode()
    if framing == "length":
        request = head + b"Content-Length: %d\r\n\r\n%s" % (len(data) + 10, data)
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(data), data)
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1 << 16)
    assert b"X-ClickHouse-Exception-Code: 210" in answer
    assert count(store, table) == 0


def test_a_client_that_stops_sending_is_not_waited_for(start):
    store = start(idle_timeout_s=0.3)
    store.sql("CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(
            b"POST /?query=INSERT+INTO+t+FORMAT+CSV HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n1,x\n"
        )
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"X-ClickHouse-Exception-Code: 209" in answer
    assert count(store, "t") == 0


def test_expect_continue_is_answered(store, table):
    head = (
        f"POST /?query=INSERT+INTO+{table}+FORMAT+CSV HTTP/1.1\r\nHost: localhost\r\n"
        "Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"1,x\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


def _insert_until_it_dies(
    port: int, worker: int, acknowledged: list[tuple[int, int]], stop: threading.Event
) -> None:
    """Insert batches of 100 rows, and note each that was answered."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    batch = 0
    with contextlib.suppress(OSError, http.client.HTTPException):
        while not stop.is_set():
            first = worker * 10_000_000 + batch * 100
            token = f"{worker}:{batch}"
            connection.request(
                "POST",
                f"/?query=INSERT+INTO+t+FORMAT+RowBinary&insert_deduplication_token={token}",
                body=row_binary(first, 100),
            )
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                return
            acknowledged.append((worker, batch))
            batch += 1
    connection.close()


def test_kill_9_during_inserts_loses_nothing_that_was_answered(start, tmp_path):
    store = start(tmp_path / "s")
    store.sql(
        "CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 10000, fsync_after_insert = 1, fsync_part_directory = 1"
    )
    acknowledged: list[tuple[int, int]] = []
    stop = threading.Event()
    workers = [
        threading.Thread(target=_insert_until_it_dies, args=(store.port, number, acknowledged, stop))
        for number in range(3)
    ]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 20
    while len(acknowledged) < 30 and time.monotonic() < deadline:
        time.sleep(0.01)
    store.kill()
    stop.set()
    for worker in workers:
        worker.join(20)
    assert len(acknowledged) >= 30

    again = start(tmp_path / "s")
    batches = again.sql(
        "SELECT intDiv(a, 10000000), intDiv(a % 10000000, 100), count(), uniq(a) FROM t GROUP BY 1, 2"
    )
    stored = {(int(w), int(b)): (int(n), int(u)) for w, b, n, u in map(str.split, batches.splitlines())}
    assert set(acknowledged) <= set(stored)
    assert set(stored.values()) == {(100, 100)}, "a batch is there whole or not at all"
    # Those in flight: the same token again stores each once.
    for worker in range(3):
        batch = max((b for w, b in acknowledged if w == worker), default=-1) + 1
        for _ in range(2):
            again.ask(
                row_binary(worker * 10_000_000 + batch * 100, 100),
                query="INSERT INTO t FORMAT RowBinary",
                insert_deduplication_token=f"{worker}:{batch}",
            )
    assert again.sql("SELECT count() = uniqExact(a) FROM t") == "1"


def test_a_long_insert_stream_takes_bounded_memory(start):
    store = start()
    store.sql("CREATE TABLE t (a UInt64, b String) ENGINE = Null")
    store.sql(
        "CREATE MATERIALIZED VIEW sums ENGINE = SummingMergeTree ORDER BY tuple() AS SELECT count() AS n FROM t"
    )
    piece = row_binary(0, 8192, b"x" * 119)  # a megabyte
    before, peak = store.memory_bytes(), 0
    total = 400

    def body():
        nonlocal peak
        for number in range(total):
            if not number % 16:
                peak = max(peak, store.memory_bytes())
            yield piece

    answer = store.ask(
        body(), query="INSERT INTO t FORMAT RowBinary", chunked=True, max_insert_block_size=65536,
        min_insert_block_size_bytes=8 * MIB, min_insert_block_size_rows=65536,
    )  # fmt: skip
    assert answer.status == 200, answer.text
    assert store.sql("SELECT sum(n) FROM sums") == str(8192 * total)
    assert peak - before < 220 * MIB
