"""ClickHouse's HTTP interface, byte by byte, as curl and other clients meet it."""

from __future__ import annotations

import gzip
import json
import socket
import zlib

import lz4.frame
import pytest
import zstandard


@pytest.mark.parametrize("path", ["/", "/ping", "/replicas_status"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_checks_say_ok(store, path, method):
    answer = store.ask(method=method, path=path)
    assert answer.status == 200
    assert answer.body == (b"Ok.\n" if method == "GET" else b"")
    assert answer.headers["content-length"] == "4"


def test_an_unknown_path_is_told_so(store):
    answer = store.ask(method="GET", path="/play")
    assert answer.status == 404
    assert answer.body.startswith(b"There is no handle /play\n")


def test_a_query_comes_in_the_url_in_the_body_or_half_and_half(store):
    assert store.ask(method="GET", query="SELECT 1 + 1").body == b"2\n"
    assert store.ask("SELECT 1 + 1").body == b"2\n"
    assert store.ask("1 + 1", query="SELECT").body == b"2\n"


def test_an_empty_query_is_a_syntax_error(store):
    answer = store.ask("  \n")
    assert (answer.status, answer.code) == (400, 62)
    assert "Empty query" in answer.text


def test_headers_describe_the_answer(store):
    answer = store.ask("SELECT number FROM numbers(3)", default_format="JSONEachRow", query_id="my-id")
    assert answer.body == b'{"number":0}\n{"number":1}\n{"number":2}\n'
    assert answer.headers["x-clickhouse-format"] == "JSONEachRow"
    assert answer.headers["content-type"] == "application/x-ndjson; charset=UTF-8"
    assert answer.headers["x-clickhouse-query-id"] == "my-id"
    assert answer.headers["x-clickhouse-timezone"] == store.sql("SELECT timezone()")
    assert answer.headers["x-clickhouse-server-display-name"] == store.sql("SELECT hostName()")
    summary = json.loads(answer.headers["x-clickhouse-summary"])
    assert (summary["result_rows"], summary["read_rows"]) == ("3", "3")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("query", "status", "code", "name"),
    [
        ("SELECT nope", 404, 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT * FROM nope", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT nope(1)", 404, 46, "UNKNOWN_FUNCTION"),
        ("SELECT * FROM nope.nope", 404, 81, "UNKNOWN_DATABASE"),
        ("SELEC 1", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1 FORMAT Nope", 404, 73, "UNKNOWN_FORMAT"),
        ("SELECT toUInt8('x')", 400, 6, "CANNOT_PARSE_TEXT"),
        ("SELECT throwIf(1)", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        (
            "SELECT sum(cityHash64(number)) FROM numbers(1e13) SETTINGS max_execution_time = 1",
            408,
            159,
            "TIMEOUT_EXCEEDED",
        ),
        ("SELECT 1 INTO OUTFILE 'x'", 500, 358, "INTO_OUTFILE_NOT_ALLOWED"),
        ("CREATE USER u", 403, 497, "ACCESS_DENIED"),
    ],
)
def test_an_error_has_clickhouses_number_name_and_status(store, query, status, code, name):
    answer = store.ask(query)
    assert (answer.status, answer.code) == (status, code)
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert f"({name})" in answer.text
    assert f"(version {store.sql('SELECT version()')})" in answer.text
    assert answer.text.count("version") == 1
    assert "formatQuery" not in answer.text


def test_settings_in_the_url_reach_the_statement(store):
    assert store.sql("SELECT getSetting('max_threads')") == "1"
    assert store.sql("SELECT getSetting('max_threads')", max_threads=2) == "2"
    assert store.sql("SELECT count() FROM numbers(10)", limit=1, offset=0) == "10"
    answer = store.ask("SELECT number FROM numbers(10)", max_result_rows=3, max_block_size=2)
    assert answer.code == 396


@pytest.mark.parametrize("name", ["no_such_setting", "max_threads=1,readonly", "a b", "x'y"])
def test_an_unknown_setting_is_clickhouses_own_error(store, name):
    answer = store.ask("SELECT 1", **{name: "1"})
    assert (answer.status, answer.code) == (404, 115)


@pytest.mark.parametrize("value", ["a'b", "a\\'; DROP TABLE x; --", "a\nb\0c", "ü", '`"'])
def test_a_settings_value_stays_a_value(store, value):
    assert (
        store.sql("SELECT hex(getSetting('log_comment'))", log_comment=value) == value.encode().hex().upper()
    )


def test_the_database_can_be_chosen(store):
    assert store.sql("SELECT currentDatabase()") == "default"
    assert store.sql("SELECT currentDatabase()", database="system") == "system"
    assert (
        store.ask("SELECT currentDatabase()", headers={"X-ClickHouse-Database": "system"}).body == b"system\n"
    )
    assert store.ask("SELECT 1", database="no`such").code == 81


def test_the_format_comes_from_the_query_then_the_header_then_the_url(store):
    header = {"X-ClickHouse-Format": "CSV"}
    assert (
        store.ask("SELECT 'x'", default_format="JSONEachRow").headers["x-clickhouse-format"] == "JSONEachRow"
    )
    assert store.ask("SELECT 'x'", headers=header, default_format="TSV").body == b'"x"\n'
    assert store.ask("SELECT 'x' FORMAT Values", headers=header).body == b"('x')"


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("CSVWithNames", b'"n","s"\n0,"0"\n1,"1"\n2,"2"\n3,"3"\n4,"4"\n'),
        ("TabSeparatedWithNamesAndTypes", b"n\ts\nUInt64\tString\n0\t0\n1\t1\n2\t2\n3\t3\n4\t4\n"),
        ("JSONCompactEachRowWithNames", b'["n", "s"]\n[0, "0"]\n[1, "1"]\n[2, "2"]\n[3, "3"]\n[4, "4"]\n'),
        (
            "RowBinaryWithNamesAndTypes",
            b"\x02\x01n\x01s\x06UInt64\x06String"
            + b"".join(bytes([n]) + bytes(7) + b"\x01" + str(n).encode() for n in range(5)),
        ),
        ("Values", b"(0,'0'),(1,'1'),(2,'2'),(3,'3'),(4,'4')"),
    ],
)
def test_a_result_of_many_blocks_is_one_document(store, form, body):
    query = f"SELECT number AS n, toString(n) AS s FROM numbers(5) FORMAT {form}"
    assert store.ask(query, max_block_size=1, output_format_json_quote_64bit_integers=0).body == body


def test_json_of_many_blocks_is_one_document(store):
    whole = json.loads(store.sql("SELECT number AS n FROM numbers(5) FORMAT JSON", max_block_size=1))
    assert [int(row["n"]) for row in whole["data"]] == [0, 1, 2, 3, 4]
    rows = json.loads(
        store.sql("SELECT number AS n FROM numbers(5) FORMAT JSONEachRow", output_format_json_array_of_rows=1)
    )
    assert len(rows) == 5


@pytest.mark.parametrize("name", ["format", "output_format"])
def test_a_format_that_a_setting_asks_for_is_one_document_too(store, name):
    answer = store.ask("SELECT number FROM numbers(3)", max_block_size=1, **{name: "JSON"})
    assert json.loads(answer.body)["rows"] == 3
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    answer = store.ask(f"SELECT number FROM numbers(3) SETTINGS {name} = 'JSON'", max_block_size=1)
    assert answer.body == b"0\n1\n2\n" or json.loads(answer.body)["rows"] == 3


def test_a_quoted_line_end_in_a_name_does_not_end_the_header(store):
    query = 'SELECT number AS "a\nb" FROM numbers(3) FORMAT CSVWithNames'
    assert store.ask(query, max_block_size=1).body == b'"a\nb"\n0\n1\n2\n'


def test_totals_come_after_the_rows_without_a_second_header(store):
    query = "SELECT number AS n, sum(number) AS s FROM numbers(2) GROUP BY n WITH TOTALS ORDER BY n FORMAT CSVWithNames"
    assert store.ask(query).body == b'"n","s"\n0,0\n1,1\n\n0,1\n'


def test_an_empty_result_keeps_its_header(store):
    assert store.ask("SELECT 1 AS x WHERE 0 FORMAT CSVWithNames").body == b'"x"\n'
    empty = store.ask("SELECT 1 AS x WHERE 0")
    assert (empty.body, empty.headers["x-clickhouse-format"]) == (b"", "TabSeparated")


def test_a_statement_without_a_result_names_no_format(store, table):
    assert "x-clickhouse-format" not in store.ask(f"OPTIMIZE TABLE {table}").headers
    assert "x-clickhouse-format" not in store.ask(f"INSERT INTO {table} VALUES (1, 'x')").headers


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SHOW DATABASES LIKE 'default'", "default"),
        ("DESCRIBE TABLE system.one", "dummy\tUInt8"),
        ("EXISTS system.one", "1"),
        ("SHOW CREATE DATABASE default", "ENGINE = Atomic"),
        ("EXPLAIN SELECT 1", "ReadFromSystemOne"),
        ("WITH 1 AS x SELECT x", "1"),
        ("(SELECT 1) UNION ALL (SELECT 1)", "1\n1"),
        ("FROM numbers(2) SELECT max(number)", "1"),
        ("/* c */ -- d\n SELECT 1 -- FORMAT JSON", "1"),
        ("SELECT 'FORMAT JSON'", "FORMAT JSON"),
        ("SELECT $x$it's$x$", "it\\'s"),
        ("SHOW SETTINGS LIKE 'max_threads'", "max_threads"),
    ],
)
def test_every_kind_of_reading_statement_is_served(store, query, expected):
    assert expected in store.sql(query)
    assert store.ask(method="GET", query=query).status == 200


ENCODINGS = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "lz4": lz4.frame.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("rows", [0, 1, 300_000], ids=["nothing", "small", "streamed"])
@pytest.mark.parametrize("held", [0, 1], ids=["streaming", "held"])
def test_results_are_compressed_as_the_client_accepts(store, encoding, rows, held):
    answer = store.ask(
        f"SELECT number FROM numbers({rows})",
        headers={"Accept-Encoding": encoding},
        enable_http_compression=1,
        wait_end_of_query=held,
    )
    body = ENCODINGS[encoding](answer.body) if rows else answer.body
    assert body == b"".join(b"%d\n" % n for n in range(rows))
    assert answer.headers.get("content-encoding") == (encoding if rows else None)
    assert ("content-length" in answer.headers) == (held or rows < 2)


@pytest.mark.parametrize("accepted", ["", "br", "identity", "gzip;q=0", "snappy"])
def test_what_the_client_can_not_read_is_not_compressed(store, accepted):
    assert store.ask("SELECT 1", headers={"Accept-Encoding": accepted}).body == b"1\n"


def test_compression_can_be_switched_off(store):
    assert (
        store.ask("SELECT 1", headers={"Accept-Encoding": "gzip"}, enable_http_compression=0).body == b"1\n"
    )


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        ("deflate", zlib.compress),
        ("lz4", lambda data: lz4.frame.compress(data[:5]) + lz4.frame.compress(data[5:])),
        ("zstd", lambda data: zstandard.compress(data[:5]) + zstandard.compress(data[5:])),
        ("identity", bytes),
    ],
)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut off"])
def test_a_compressed_body_is_read_and_a_cut_one_is_refused(store, table, encoding, pack, cut):
    data = b"".join(b"%d,x\n" % n for n in range(1000))
    packed = pack(data)
    cut = cut and encoding != "identity"
    body = packed[:-3] if cut else packed
    answer = store.ask(body, headers={"Content-Encoding": encoding}, query=f"INSERT INTO {table} FORMAT CSV")
    assert answer.status == (400 if cut else 200), answer.text
    assert store.sql(f"SELECT count() FROM {table}") == ("0" if cut else "1000")


def test_an_unknown_content_encoding_is_refused(store):
    answer = store.ask("SELECT 1", headers={"Content-Encoding": "br"})
    assert answer.status == 415
    assert "allowed: lz4, zstd, gzip, deflate" in answer.text


def test_parameters_may_come_as_a_form(store):
    boundary = "xyzzy"
    parts = {"query": "SELECT {x:String}, {y:UInt8}", "param_x": "a\\tb -- c'", "param_y": "7"}
    body = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    answer = store.ask(body + f"--{boundary}--\r\n", headers=kind)
    assert answer.status == 200, answer.text
    assert answer.body == b"a\\tb -- c\\'\t7\n"
    assert store.ask(body, headers=kind).code == 36


def test_external_tables_are_refused_in_words(store):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n1\n\r\n'
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT * FROM t\r\n--b--\r\n'
    )
    answer = store.ask(
        body, headers={"Content-Type": "multipart/form-data; boundary=b"}, t_structure="x UInt8"
    )
    assert answer.status == 501
    assert "External data ('t') is not served" in answer.text


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("String", "it's \\\\ \\t ü", "it\\'s \\\\ \\t ü"),
        ("String", "'; DROP TABLE x; --", "\\'; DROP TABLE x; --"),
        ("UInt64", "18446744073709551615", "18446744073709551615"),
        ("Nullable(Int8)", "\\N", "\\N"),
        ("Array(String)", "['a','b\\'c']", "['a','b\\'c']"),
        ("Map(String, UInt8)", "{'a':1}", "{'a':1}"),
        ("Tuple(String, Float64)", "('x',1.5)", "('x',1.5)"),
        ("DateTime64(9, 'UTC')", "2026-01-02 03:04:05.123456789", "2026-01-02 03:04:05.123456789"),
        ("UUID", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"),
        ("Bool", "true", "true"),
        ("Decimal(18, 4)", "1.2345", "1.2345"),
        ("IPv6", "::1", "::1"),
    ],
)
def test_parameters_are_bound_as_values(store, kind, value, expected):
    assert store.sql(f"SELECT {{p:{kind}}}", param_p=value) == expected


def test_a_parameter_can_name_a_table_also_for_an_insert(store, table):
    store.sql("INSERT INTO {t:Identifier} FORMAT CSV 1,x", param_t=table)
    assert store.sql("SELECT b FROM {t:Identifier}", param_t=table) == "x"


def test_a_missing_or_wrong_parameter_is_an_error(store):
    assert store.ask("SELECT {p:UInt8}").code == 456
    assert store.ask("SELECT {p:UInt8}", param_p="x").code in (41, 457)


def test_a_connection_serves_many_requests(store):
    connection = store.connection()
    for number in range(5):
        connection.request("POST", "/", body=f"SELECT {number}".encode())
        answer = connection.getresponse()
        assert answer.read() == b"%d\n" % number
        assert answer.headers["Connection"] == "Keep-Alive"
    used = connection.sock
    connection.request("POST", "/", body=b"SELECT nope")
    assert connection.getresponse().read().startswith(b"Code: 47.")
    connection.request("GET", "/ping")
    assert connection.getresponse().read() == b"Ok.\n"
    assert connection.sock is used
    connection.close()


def _raw(store, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
        return received


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400",
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 8\r\n\r\nSELECT 1", b"400"),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /?query=" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414"),
    ],
    ids=[
        "two lengths",
        "negative",
        "unknown framing",
        "bad chunk",
        "no host",
        "method",
        "not http",
        "long url",
    ],
)
def test_malformed_http_is_refused_and_harms_nobody(store, head, status):
    assert _raw(store, head).split(b" ")[1] == status
    assert store.sql("SELECT 1") == "1"


def test_a_client_of_http_1_0_gets_an_unchunked_answer(store):
    answer = _raw(store, b"GET /?query=SELECT+number+FROM+numbers(50000) HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding" not in head
    assert body.count(b"\n") == 50_000


def test_a_failure_in_the_middle_of_a_result_can_not_be_taken_for_its_end(store):
    query = b"SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)"
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(query), query)
    answer = _raw(store, request)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head
    assert not body.endswith(b"0\r\n\r\n")
    tag = next(
        line for line in head.split(b"\r\n") if line.startswith(b"X-ClickHouse-Exception-Tag")
    ).split()[1]
    marked = body[body.index(b"__exception__\r\n" + tag) :]
    assert b"Code: 395. DB::Exception: too far" in marked
    assert marked.rstrip(b"\r\n").endswith(tag + b"\r\n__exception__")


def test_a_held_result_fails_with_a_status(store):
    answer = store.ask(
        "SELECT throwIf(number = 900000, 'too far') FROM numbers(1000000)", wait_end_of_query=1
    )
    assert (answer.status, answer.code) == (500, 395)


def test_a_session_is_accepted_but_keeps_nothing(store):
    store.sql("SET max_threads = 7", session_id="s1")
    assert store.sql("SELECT getSetting('max_threads')", session_id="s1") == "1"
    assert store.ask("SELECT 1", session_id="s1", session_check=1).code == 372


def test_a_role_is_refused(store):
    assert store.ask("SELECT 1", role="boss").code == 511


def test_a_query_id_that_runs_is_refused(store):
    slow = store.connection()
    slow.request(
        "POST", "/?query_id=twice", body=b"SELECT sleepEachRow(0.2) FROM numbers(5) SETTINGS max_block_size=1"
    )
    running = "SELECT count() FROM system.processes WHERE position(query, 'sleepEach' || 'Row') > 0"
    while store.ask(running).body.strip() == b"0":
        assert slow.sock is not None
    assert store.ask("SELECT 1", query_id="twice").code == 216
    assert slow.getresponse().read().count(b"\n") == 5
    slow.close()
