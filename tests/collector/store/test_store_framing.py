"""ClickHouse's binary framings: compressed blocks with their checksum, and Native for later protocol revisions."""

from __future__ import annotations

import struct

import lz4.block
import pytest
import zstandard
from auditspan_collector.store.blocks import compressed, decompressed
from auditspan_collector.store.cityhash import cityhash128
from auditspan_collector.store.failures import QueryFailed
from auditspan_collector.store.native import reframed
from hypothesis import given, settings
from hypothesis import strategies as st


class Pieces:
    """A source that gives as little at a time as it may."""

    def __init__(self, data: bytes, size: int = 7) -> None:
        self._data = data
        self._size = size

    def read(self, size: int) -> bytes:
        piece, self._data = self._data[: min(size, self._size)], self._data[min(size, self._size) :]
        return piece


def frames(data: bytes):
    """The checksum and the rest of each block in *data*."""
    while data:
        (size,) = struct.unpack_from("<I", data, 17)
        yield data[:16], data[16 : 16 + size]
        data = data[16 + size :]


def test_the_checksum_is_that_of_the_blocks_that_the_engine_writes(start):
    """Golden vectors of many lengths: columns that do not compress, from one value to many."""
    store = start()
    store.sql(
        "CREATE TABLE t (n UInt32, s String) ENGINE = MergeTree ORDER BY n SETTINGS min_bytes_for_wide_part = 0"
    )
    store.sql("SYSTEM STOP MERGES t")
    for length in [*range(40), 60, 100, 127, 128, 129, 150, 190, 255, 256, 300, 1000, 70_000]:
        store.sql(f"INSERT INTO t SELECT {length}, randomString({length})")
    lengths = set()
    for file in store.path.glob("data/store/*/*/all_*/*.bin"):
        for checksum, block in frames(file.read_bytes()):
            assert cityhash128(block) == checksum, len(block)
            lengths.add(len(block))
    assert len(lengths) > 45
    assert min(lengths) < 16
    assert max(lengths) > 65_536


@given(st.binary(max_size=5000), st.integers(1, 64))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_blocks_come_back_as_they_were(data, size):
    assert b"".join(decompressed(Pieces(compressed(data), size))) == data


def test_large_data_is_cut_into_blocks():
    data = bytes(range(256)) * 10_000
    assert len(list(frames(compressed(data)))) == 3
    assert b"".join(decompressed(Pieces(compressed(data), 1 << 16))) == data


@pytest.mark.parametrize(
    ("method", "packed"),
    [
        (0x82, lz4.block.compress(b"hello", store_size=False)),
        (0x90, zstandard.compress(b"hello")),
        (0x02, b"hello"),
    ],
    ids=["lz4", "zstd", "none"],
)
def test_every_method_of_clients_is_read(method, packed):
    block = struct.pack("<BII", method, len(packed) + 9, 5) + packed
    assert list(decompressed(Pieces(cityhash128(block) + block))) == [b"hello"]


def _block(method=0x82, packed=b"x", packed_size=None, size=5):
    block = (
        struct.pack("<BII", method, len(packed) + 9 if packed_size is None else packed_size, size) + packed
    )
    return cityhash128(block) + block


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (compressed(b"hello")[:-1], "ends inside"),
        (compressed(b"hello")[:10], "ends inside"),
        (b"\0" * 16 + compressed(b"hello")[16:], "Checksum doesn't match"),
        (_block(packed=b"\xff" * 9), "damaged"),
        (_block(method=0x90, packed=b"\xff" * 9), "damaged"),
        (_block(method=0x91), "0x91 is unknown"),
        (_block(packed_size=1 << 31), "impossible size"),
        (_block(size=1 << 31), "impossible size"),
        (_block(packed_size=3), "impossible size"),
        (_block(method=0x02, packed=b"hell"), "another size"),
    ],
)
def test_damaged_blocks_are_refused(data, problem):
    with pytest.raises(QueryFailed, match=problem):
        list(decompressed(Pieces(data)))


def test_clickhouses_own_framing_both_ways(store, table):
    rows = b"".join(b"%d,x\n" % n for n in range(1000))
    for body in (compressed(rows), compressed(rows[:100]) + compressed(rows[100:])):
        answer = store.ask(
            body, query=f"INSERT INTO {table} FORMAT CSV", decompress=1, insert_deduplication_token=len(body)
        )
        assert answer.status == 200, answer.text
    assert store.sql(f"SELECT count() FROM {table}") == "2000"
    answer = store.ask(f"SELECT a, b FROM {table} ORDER BY a FORMAT CSV", compress=1)
    assert b"".join(decompressed(Pieces(answer.body, 1000))).count(b"\n") == 2000
    assert store.ask(b"1,x\n" * 10, query=f"INSERT INTO {table} FORMAT CSV", decompress=1).code in (40, 271)
    assert store.sql(f"SELECT count() FROM {table}") == "2000"


TYPES = [
    "UInt8", "Int256", "Float64", "Bool", "Date", "Date32", "DateTime", "DateTime64(9, 'UTC')", "UUID", "IPv4", "IPv6",
    "Decimal(9, 2)", "Decimal(18, 2)", "Decimal(38, 2)", "Decimal(76, 2)", "Enum8('a, (' = 1, 'b\\'c' = 2)",
    "Enum16('x' = 1000)", "String", "FixedString(3)", "Nullable(String)", "Nullable(UInt32)", "Array(String)",
    "Array(Array(UInt16))", "Array(Nullable(String))", "Map(String, UInt64)", "Map(LowCardinality(String), String)",
    "Tuple(UInt8, String)", "Tuple(a UInt8, `b c` Array(String))", "LowCardinality(String)",
    "LowCardinality(Nullable(String))", "Array(LowCardinality(String))", "Array(Map(LowCardinality(String), String))",
    "Tuple(LowCardinality(String), Array(LowCardinality(Nullable(String))))", "Point", "Polygon", "IntervalDay",
    "Array(Tuple(x UInt8, y LowCardinality(String)))",
    "SimpleAggregateFunction(sum, UInt64)", "Nested(x UInt8, y LowCardinality(String))", "Time64(3)", "BFloat16",
]  # fmt: skip
INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
REVISION = 54460  # clickhouse-go's


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def column(block: bytes) -> tuple[bytes, bytes]:
    """Name and type, and the values, of the only column of a block of revision 0."""
    count, at = varint(block, 0)
    assert count == 1
    _, at = varint(block, at)
    start = at
    for _ in range(2):
        size, at = varint(block, at)
        at += size
    return block[start:at], block[at:]


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_a_later_revision_gets_a_byte_behind_each_type_and_nothing_else_changes(store, rows):
    """Each column alone tells its own length; all of them together must be cut at the same places."""
    store.sql("DROP TABLE IF EXISTS shapes SYNC")
    columns = ", ".join(f"`c {n}` {kind}" for n, kind in enumerate(TYPES))
    settings = "allow_suspicious_low_cardinality_types = 1, enable_time_time64_type = 1, flatten_nested = 0"
    store.sql(f"CREATE TABLE shapes ({columns}) ENGINE = Memory SETTINGS min_bytes_to_keep = 0", **dict(
        pair.split(" = ") for pair in settings.split(", ")
    ))  # fmt: skip
    generated = [
        n for n, kind in enumerate(TYPES) if not kind.startswith(("Interval", "BFloat16", "Time64", "Nested"))
    ]
    if rows:
        names = ", ".join(f"`c {n}`" for n in generated)
        structure = (
            ", ".join(f"`c {n}` {TYPES[n]}" for n in generated).replace("\\", "\\\\").replace("'", "\\'")
        )
        store.sql(
            f"INSERT INTO shapes ({names}) SELECT * FROM generateRandom('{structure}', 7, 200, 4) LIMIT {rows}",
            allow_suspicious_low_cardinality_types=1,
        )
    alone = [store.ask(f"SELECT `c {n}` FROM shapes FORMAT Native").body for n in range(len(TYPES))]
    together = store.ask("SELECT * FROM shapes FORMAT Native", client_protocol_version=REVISION).body
    if not rows:
        assert together == b""
        return
    expected = INFO + bytes([len(TYPES), rows])
    for block in alone:
        head, values = column(block)
        expected += head + b"\x00" + values
    assert not together.startswith(b"Code"), together
    assert together == expected


def test_every_block_of_a_long_result_is_reframed(store):
    body = store.ask(
        "SELECT number, toString(number) FROM numbers(10) FORMAT Native",
        max_block_size=3,
        client_protocol_version=REVISION,
    ).body
    assert body.count(INFO) == 4
    shown = store.ask("SHOW DATABASES FORMAT Native", client_protocol_version=REVISION).body
    assert shown.startswith(INFO + b"\x01")


def test_an_earlier_revision_is_not_reframed(store):
    plain = store.ask("SELECT 1 FORMAT Native").body
    assert store.ask("SELECT 1 FORMAT Native", client_protocol_version=54405).body == plain
    assert store.ask("SELECT 1 FORMAT CSV", client_protocol_version=REVISION).body == b"1\n"


def test_a_type_that_can_not_be_measured_is_an_error(store):
    answer = store.ask("SELECT '{}'::JSON AS j FORMAT Native", client_protocol_version=REVISION)
    assert (answer.status, answer.code) == (501, 48)
    assert "The type JSON can't be sent" in answer.text


def test_what_clickhouse_go_asks_first(store):
    """Its handshake: database, default_format and client_protocol_version in the URL, gzip accepted, POST."""
    answer = store.ask(
        "SELECT displayName(), version(), revision(), timezone()",
        headers={"Accept-Encoding": "gzip", "Authorization": "Basic ZGVmYXVsdDo="},
        database="default",
        default_format="Native",
        client_protocol_version=REVISION,
    )
    assert answer.status == 200
    assert answer.headers["content-encoding"] == "gzip"


def test_reframing_needs_whole_blocks_only(store):
    block = store.ask("SELECT number, [toString(number)] FROM numbers(3) FORMAT Native").body
    assert reframed(block + block) == reframed(block) * 2
    assert reframed(b"") == b""
