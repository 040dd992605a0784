"""OK means stored: whatever keeps the rows out of the table at the last moment, the client hears of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from functools import partial
from itertools import count

import pytest
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClientConfig
from auditspan_collector.errors import StoreRejected, StoreUnavailable
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.drain import Config as DrainConfig
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.schema import encode_leaf
from auditspan_collector.spool import Config as SpoolConfig
from auditspan_collector.spool import Spool
from clickhouse_connect.driver.exceptions import DatabaseError
from collector.durability.sealing import make_record, one_request
from collector.store.running_store import row_binary
from collector.store.test_store_limits import until

MIB = 1 << 20
TOO_MANY_PARTS, VIOLATED_CONSTRAINT, THROWN = 252, 469, 395
_names = count()

# What refuses its rows (a UInt64, b String) when they are written, and with which code.
REFUSING = {
    "constraint": (
        (
            "CREATE TABLE {t} (a UInt64, b String, CONSTRAINT no CHECK a > 1000) ENGINE = MergeTree ORDER BY a",
        ),
        VIOLATED_CONSTRAINT,
    ),
    "constraint in memory": (
        ("CREATE TABLE {t} (a UInt64, b String, CONSTRAINT no CHECK 0) ENGINE = Memory",),
        VIOLATED_CONSTRAINT,
    ),
    "more than 100 partitions": (
        ("CREATE TABLE {t} (a UInt64, b String) ENGINE = MergeTree ORDER BY a PARTITION BY a",),
        TOO_MANY_PARTS,
    ),
    "view": (
        (
            "CREATE TABLE {t} (a UInt64, b String) ENGINE = MergeTree ORDER BY a",
            "CREATE MATERIALIZED VIEW {t}_v ENGINE = Memory AS SELECT throwIf(1) AS never FROM {t}",
        ),
        THROWN,
    ),
}
ROWS = 200


@pytest.fixture(params=REFUSING.values(), ids=REFUSING)
def refusing(store, request):
    """Name of a table that refuses, and the code."""
    statements, code = request.param
    name = f"refusing_{next(_names)}"
    for statement in statements:
        store.sql(statement.format(t=name))
    return name, code


def test_refused_rows_are_an_error(store, refusing):
    table, code = refusing
    answer = store.ask(row_binary(0, ROWS), query=f"INSERT INTO {table} FORMAT RowBinary")
    assert answer.code == code, answer.text
    values = ", ".join(f"({n}, 'x')" for n in range(ROWS))
    assert store.ask(f"INSERT INTO {table} VALUES {values}").code == code
    assert store.ask(f"INSERT INTO {table} SELECT number, 'x' FROM numbers({ROWS})").code == code
    asynchronous = {"async_insert": 1, "wait_for_async_insert": 0}
    assert store.ask(f"INSERT INTO {table} VALUES {values}", **asynchronous).code == code


def test_refused_rows_are_an_error_to_clickhouse_connect(store, refusing):
    table, code = refusing
    client = store.client()
    with pytest.raises(DatabaseError, match=f"Code: {code}\\."):
        client.insert(table, [[n, "x"] for n in range(ROWS)], ["a", "b"])
    with pytest.raises(DatabaseError, match=f"Code: {code}\\."):
        client.raw_insert(table, ["a", "b"], row_binary(0, ROWS), fmt="RowBinary")


def test_refused_rows_of_a_collector_are_an_error(store, refusing):
    table, code = refusing
    client = ClickHouseClient(ClientConfig(url=store.url, database="default"))
    # Too many parts may be merged a moment later, so that one is worth another try; the others need a person.
    with pytest.raises(StoreUnavailable if code == TOO_MANY_PARTS else StoreRejected, match=f"Code: {code}"):
        client.insert_block(table, ["a", "b"], row_binary(0, ROWS), "token")
    client.close()


def test_data_is_never_read_as_a_statement(store, table):
    """A blank line ends the data of an INSERT where an engine takes several statements at once."""
    value = b"\n\n;DROP TABLE " + table.encode() + b";\n\n"
    data = row_binary(0, 3, value)
    assert store.ask(data, query=f"INSERT INTO {table} FORMAT RowBinary").status == 200
    text = b"1,x\n\n2,y\n\nDROP TABLE " + table.encode()
    assert store.ask(b"INSERT INTO " + table.encode() + b" FORMAT CSV\n" + text).code != 0
    assert store.sql(f"SELECT count(), countIf(startsWith(b, '\\n\\n;')) FROM {table}") == "3\t3"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, 64 MiB large."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=4000", "tmpfs", place],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place, *, leave=0):
    """Take all space but *leave* bytes; the file to remove again."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"0" * (64 << 10)):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - leave))
    return ballast


def take_all_files(place):
    """Make empty files until no more can be made."""
    taken = []
    with contextlib.suppress(OSError):
        while True:
            (place / f"file{len(taken)}").touch()
            taken.append(place / f"file{len(taken)}")
    return taken


@pytest.mark.parametrize("leave", [0, 2 * MIB], ids=["full", "room for the data and not for the part"])
def test_an_insert_on_a_full_disk_is_an_error_that_may_be_retried(start, small_disk, leave):
    store = start(small_disk / "store")
    store.sql("CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    client = ClickHouseClient(ClientConfig(url=store.url, database="default"))
    client.ping()
    ballast = fill(small_disk, leave=leave)
    rows = row_binary(0, 10_000, os.urandom(120))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="Code: 243"):
            client.insert_block("t", ["a", "b"], rows, "token")
    ballast.unlink()
    client.insert_block("t", ["a", "b"], rows, "token")
    assert store.sql("SELECT count(), uniqExact(a) FROM t") == "10000\t10000"
    client.close()


def test_a_disk_that_takes_no_further_file_is_an_error_that_may_be_retried(start, small_disk):
    store = start(small_disk / "store")
    store.sql("CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    client = ClickHouseClient(ClientConfig(url=store.url, database="default"))
    client.ping()
    taken = take_all_files(small_disk)
    acknowledged = 0
    # With one file more at a time, the engine fails at each of its steps, until none is left to fail at.
    while taken:
        taken.pop().unlink()
        try:
            client.insert_block("t", ["a", "b"], row_binary(acknowledged, 1), f"token {acknowledged}")
        except StoreUnavailable:
            assert store.sql("SELECT count() FROM t") == str(acknowledged)
            continue
        acknowledged += 1
        if acknowledged == 2:
            break
    assert store.sql("SELECT count() FROM t") == "2"
    client.close()


def test_the_drain_keeps_its_records_while_the_disk_is_full(start, small_disk, tmp_path):
    store = start(small_disk / "store")
    client = ClickHouseClient(ClientConfig(url=store.url, database="audit"))
    prepare = partial(migrate, client, "audit")
    prepare()
    spool = Spool.open(
        SpoolConfig(
            path=str(tmp_path / "spool"),
            max_bytes=64 * MIB,
            dedup_window_records=1000,
            allow_memory_filesystem=True,
        ),
        "test",
        "collector",
    )
    ballast = fill(small_disk)
    drain = Drain(
        spool, client, prepare=prepare, config=DrainConfig(linger_s=0, retry_min_s=0.05, retry_max_s=0.1)
    )
    spool.commit(one_request([encode_leaf(make_record(number)) for number in range(300)]))
    drain.start()
    try:
        until(lambda: drain.status.state == "retrying")
        assert spool.backlog().records == 300
        assert client.rows("SELECT count() FROM records") == [(0,)]
        ballast.unlink()
        until(lambda: spool.backlog().records == 0)
        assert drain.status.state == "running"
        assert client.rows("SELECT count(), uniqExact(ledger_index) FROM records") == [(300, 300)]
    finally:
        drain.stop(5)
        spool.close()
        client.close()
