"""An unmodified clickhouse-connect client finds everything that it uses on a server."""

from __future__ import annotations

import datetime as dt
import decimal
import gzip
import io
import ipaddress
import uuid
import zlib

import clickhouse_connect
import lz4.frame
import pytest
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError

COLUMNS = {
    "u8": "UInt8",
    "i64": "Int64",
    "u256": "UInt256",
    "f64": "Float64",
    "flag": "Bool",
    "dec": "Decimal(20, 6)",
    "s": "String",
    "fs": "FixedString(4)",
    "lc": "LowCardinality(String)",
    "n": "Nullable(String)",
    "day": "Date",
    "at": "DateTime64(9, 'UTC')",
    "id": "UUID",
    "ip": "IPv6",
    "e": "Enum8('a' = 1, 'b' = 2)",
    "arr": "Array(LowCardinality(String))",
    "m": "Map(LowCardinality(String), String)",
    "tup": "Tuple(a Int8, b String)",
}
ROW = (
    255,
    -(2**63),
    2**255,
    0.1,
    True,
    decimal.Decimal("12345678901234.567891"),
    "it's \\ \n ü",
    b"abcd",
    "low",
    None,
    dt.date(2026, 1, 2),
    dt.datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001 - what clickhouse-connect gives for UTC
    uuid.UUID(int=7),
    ipaddress.IPv6Address("2001:db8::1"),
    "b",
    ["x", "y", "x"],
    {"k": "v", "": ""},
    {"a": -1, "b": "z"},
)


@pytest.fixture(params=["lz4", "zstd", "gzip", False], ids=["lz4", "zstd", "gzip", "plain"])
def client(store, request):
    client = store.client(compress=request.param)
    yield client
    client.close()


@pytest.fixture
def everything(store):
    store.sql("DROP TABLE IF EXISTS everything SYNC")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    store.sql(f"CREATE TABLE everything ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    return "everything"


def test_what_goes_in_comes_out(client, everything):
    summary = client.insert(everything, [ROW, ROW], column_names=list(COLUMNS))
    assert summary.written_rows == 2
    result = client.query(f"SELECT * FROM {everything}")
    assert result.column_names == tuple(COLUMNS)
    assert list(result.result_rows) == [ROW, ROW]
    assert result.summary["result_rows"] == "2"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("UInt32", 5),
        ("Int64", -5),
        ("Float64", 1.5),
        ("String", "it's \\ \t\n {x:String} ü"),
        ("String", ""),
        ("Nullable(String)", None),
        ("Date", dt.date(2026, 1, 2)),
        ("DateTime('UTC')", dt.datetime(2026, 1, 2, 3, 4, 5)),  # noqa: DTZ001 - as above
        ("Array(String)", ["a", "b'c", "d\\e"]),
        ("Array(UInt8)", []),
        ("UUID", uuid.UUID(int=5)),
        ("Bool", True),
    ],
)
def test_parameters_of_every_type(client, kind, value):
    assert client.query(f"SELECT {{p:{kind}}}", parameters={"p": value}).result_rows[0][0] == value


def test_long_parameters_travel_as_a_form(store):
    client = store.client(form_encode_query_params=True)
    values = list(range(100_000))
    result = client.query(
        "SELECT length({p:Array(UInt32)}), {q:String}", parameters={"p": values, "q": "'\r\n--x"}
    )
    assert result.result_rows == [(100_000, "'\r\n--x")]


def test_commands(client, table):
    assert client.command("SELECT 1") == 1
    assert client.command("SELECT 'a', 'b'") == ["a", "b"]
    assert client.command("SELECT 'x' WHERE 0") == ""
    assert client.command(f"EXISTS {table}") == 1
    assert client.command(f"INSERT INTO {table} VALUES", data="(1, 'x'), (2, 'y')").written_rows == 2
    assert client.command(f"TRUNCATE TABLE {table}").query_id()


def test_settings_for_a_client_and_for_a_query(store):
    client = store.client(settings={"max_threads": 2})
    assert client.command("SELECT getSetting('max_threads')") == 2
    assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 3}).first_row == (3,)


def test_the_database_of_a_client(store):
    assert store.client(database="system").command("SELECT currentDatabase()") == "system"
    with pytest.raises(DatabaseError) as failed:
        store.client(database="not_there").query("SELECT 1")
    assert failed.value.code == 81


def test_names_without_rows(client, table):
    result = client.query(f"SELECT * FROM {table} LIMIT 0")
    assert result.column_names == ("a", "b")
    assert client.query(f"SELECT * FROM {table}").result_rows == []


def test_a_large_result_streams(client):
    with client.query_rows_stream("SELECT number, toString(number) FROM numbers(200000)") as rows:
        assert sum(n for n, _ in rows) == 199_999 * 100_000
    with client.raw_stream("SELECT number FROM numbers(200000)", fmt="CSV") as raw:
        assert raw.read().count(b"\n") == 200_000


def test_errors_carry_their_number_and_text(client, table):
    with pytest.raises(DatabaseError, match="Unknown expression identifier") as failed:
        client.query("SELECT nope")
    assert failed.value.code == 47
    with pytest.raises(DatabaseError) as failed:
        client.raw_insert(table, insert_block=b"1,x\nzz,y\n", fmt="CSV")
    assert failed.value.code == 27
    with pytest.raises(DatabaseError) as failed:
        client.insert("not_there", [[1]], column_names=["a"], column_type_names=["UInt8"])
    assert failed.value.code == 60


def test_a_stream_that_breaks_raises_what_the_engine_said(client):
    query = "SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)"
    with (
        pytest.raises((StreamFailureError, DatabaseError, OperationalError), match="too far"),
        client.query_rows_stream(query) as rows,
    ):
        list(rows)


PACKERS = {
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("form", ["RowBinary", "CSV", "JSONEachRow", "TabSeparated"])
def test_raw_inserts(store, table, form, compression):
    client = store.client()
    # The same rows four times; without a token they are known by their content.
    client.command(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
    data = {
        "RowBinary": b"\x0a"
        + bytes(7)
        + b"\x01\x0a"
        + b"\x09"
        + bytes(7)
        + b"\x01 ",  # begins with a line end
        "CSV": b'10,"\n"\n9," "\n',
        "JSONEachRow": b'{"a":10,"b":"\\n"}\n{"a":9,"b":" "}',
        "TabSeparated": b"10\t\\n\n9\t \n",
    }[form]
    packed = PACKERS[compression](data)
    client.raw_insert(table, ["a", "b"], data, fmt=form)
    client.raw_insert(table, ["a", "b"], packed, fmt=form, compression=compression)
    client.raw_insert(table, ["a", "b"], iter([data[:3], data[3:]]), fmt=form)
    client.raw_insert(table, ["a", "b"], io.BytesIO(data), fmt=form)
    assert client.query(f"SELECT a, b, count() FROM {table} GROUP BY ALL ORDER BY a").result_rows == [
        (9, " ", 4),
        (10, "\n", 4),
    ]


def test_arrow_both_ways(store, table):
    client = store.client()
    arrow = client.query_arrow("SELECT number AS a, toString(number) AS b FROM numbers(1000)")
    client.insert_arrow(table, arrow)
    assert client.command(f"SELECT sum(a) FROM {table}") == 499_500


def test_credentials(store):
    reader = store.client(username="reader", password="of books")
    assert reader.command("SELECT getSetting('readonly')") == 1
    with pytest.raises(DatabaseError) as failed:
        store.client(username="reader", password="wrong")
    assert failed.value.code == 516


def test_the_shared_default_client_works_too(store):
    with clickhouse_connect.get_client(
        dsn=f"http://reader:of%20books@127.0.0.1:{store.port}/system"
    ) as client:
        assert client.query("SELECT currentDatabase(), 1").first_row == ("system", 1)
        assert client.ping()
