"""Nobody gets out of the folder, past read-only mode, or in from a web page."""

from __future__ import annotations

import base64

import pytest

READER = {"X-ClickHouse-User": "reader", "X-ClickHouse-Key": "of books"}
SECRET = "do not read me"


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A file that the store's owner can read."""
    path = tmp_path_factory.mktemp("private") / "secret.csv"
    path.write_text(SECRET + "\n")
    return path


def _refused(answer):
    """Refused, and nothing of the file came along."""
    assert answer.status != 200 or answer.code, answer.text
    assert SECRET not in answer.text
    return answer


# Read-only.


TARGET = "readonly_target"


def _try_to_write(store, by, query, **parameters):
    """Send *query* as somebody who may only read, and see that nothing has changed."""
    store.sql(f"CREATE TABLE IF NOT EXISTS {TARGET} (a UInt8, b String) ENGINE = MergeTree ORDER BY a")
    if by == "GET":
        answer = store.ask(method="GET", query=query, **parameters)
    else:
        answer = store.ask(query, headers=READER, **parameters)
    _refused(answer)
    assert store.sql(f"SELECT count() FROM {TARGET}") == "0"
    assert store.sql("EXISTS stolen") == "0"


@pytest.mark.parametrize("by", ["GET", "reader"])
@pytest.mark.parametrize(
    "query",
    [
        "CREATE TABLE stolen (a UInt8) ENGINE = Memory",
        "DROP TABLE IF EXISTS {table}",
        "INSERT INTO {table} VALUES (1, 'x')",
        "INSERT INTO {table} SETTINGS readonly = 0 VALUES (1, 'x')",
        "INSERT INTO {table} SELECT 1, 'x' SETTINGS readonly = 0",
        "ALTER TABLE {table} DELETE WHERE 1",
        "TRUNCATE TABLE {table}",
        "OPTIMIZE TABLE {table} FINAL",
        "SET readonly = 0; INSERT INTO {table} VALUES (1, 'x')",
        "SELECT 1; DROP TABLE {table}",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 0",
        "SET readonly = 0",
        "KILL QUERY WHERE 1",
        "\u2212\u2212 SET\nKILL QUERY WHERE 1",  # minus signs start a comment, too
        "\u00a0KILL QUERY WHERE 1",
        "SYSTEM FLUSH LOGS",
        "DROP TABLE {table} PARALLEL WITH DROP TABLE {table}",
        "EXECUTE AS default DROP TABLE {table}",
    ],
)
def test_read_only_stays_read_only(store, by, query):
    _try_to_write(store, by, query.format(table=TARGET))


@pytest.mark.parametrize("by", ["GET", "reader"])
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"readonly": 0},
        {"log_comment": "a&readonly=0"},
        {"log_comment": "a%26readonly%3D0"},
        {"log_comment": "a', readonly = '0"},
        {"database": "default` SETTINGS readonly = 0; --"},
        {"profile": "default"},
        {"readonly ": "0"},
        {"param_x": "0', readonly = '0"},
        {"session_id": "s", "close_session": 1},
    ],
    ids=str,
)
def test_no_parameter_undoes_read_only(store, by, parameters):
    _try_to_write(store, by, "CREATE TABLE stolen (a UInt8) ENGINE = Memory", **parameters)
    _try_to_write(store, by, f"INSERT INTO {TARGET} VALUES (1, 'x')", **parameters)
    _try_to_write(store, by, f"INSERT INTO {TARGET} SETTINGS readonly = 0 VALUES (1, 'x')", **parameters)


def test_a_put_of_a_reader_is_read_only_too(store):
    assert (
        store.ask("CREATE TABLE stolen (a UInt8) ENGINE = Memory", method="PUT", headers=READER).code == 164
    )


@pytest.mark.parametrize("asked", ["0", "1e9", "100000"])
def test_a_reader_can_not_take_more_time_than_everybody_gets(store, asked):
    time_limit = store.ask(
        "SELECT getSetting('max_execution_time')", headers=READER, max_execution_time=asked
    )
    assert float(time_limit.text) == 20
    assert (
        store.ask("SELECT getSetting('max_execution_time')", headers=READER, max_execution_time=3).text
        == "3\n"
    )


def test_everybody_can_ask_for_read_only(store):
    assert store.ask("CREATE TABLE stolen (a UInt8) ENGINE = Memory", readonly=1).code == 164
    assert store.ask("CREATE TABLE stolen (a UInt8) ENGINE = Memory", readonly=2).code == 164
    assert store.ask("KILL QUERY WHERE 1", readonly=1).code == 164


# Files, addresses and programs: refused for writers as well.

OUTWARD = [
    "SELECT file('{file}')",
    "SELECT file('{file}', 'x')",
    "SELECT file('{file}', NULL)",
    "SELECT `file`('{file}')",
    "SELECT \"f\\x69le\"('{file}')",
    "SELECT * APPLY file FROM (SELECT '{file}' AS x)",
    "SELECT arrayMap(file, ['{file}'])",
    "WITH x -> file(x) AS f SELECT f('{file}')",
    "SELECT (SELECT file('{file}'))",
    "SELECT * FROM view(SELECT file('{file}'))",
    "SELECT b FROM format(JSONEachRow, 'a Int, b String DEFAULT file(\\'{file}\\')', '{{\"a\":1}}')",
    "SELECT b FROM format(JSONEachRow, concat('a Int, b String DEFAULT fi', 'le(\\'{file}\\')'), '{{\"a\":1}}')",
    "SELECT * FROM values('b String', (file('{file}')))",
    "SELECT 1 SETTINGS additional_result_filter = 'throwIf(file(\\'{file}\\') != \\'\\')'",
    "SELECT 1 FROM system.one SETTINGS additional_table_filters = {{'system.one': 'throwIf(file(\\'{file}\\')!=\\'\\')'}}",
    "CREATE TABLE stolen ENGINE = MergeTree ORDER BY tuple() AS SELECT file('{file}') AS x",
    "INSERT INTO {table} VALUES (1, file('{file}'))",
    "INSERT INTO {table} FORMAT Values (1, file('{file}'))",
    "INSERT INTO {table} SELECT 1, file('{file}')",
    "SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT * FROM file('{file}')",
    "SELECT * FROM `{file}`",
    "SELECT * FROM default.`{file}`",
    "SELECT * FROM '{file}'",
    "DESCRIBE file('{file}', 'LineAsString')",
    "SELECT * FROM filesystem('/')",
    "SELECT * FROM fileCluster('default', '{file}', 'LineAsString')",
    "SELECT * FROM sqlite('{file}', 'x')",
    "SELECT * FROM icebergLocal('{file}')",
    "SELECT * FROM deltaLakeLocal('{file}')",
    "SELECT * FROM paimonLocal('{file}')",
    "SELECT * FROM url('http://127.0.0.1:{port}/ping', 'LineAsString')",
    "SELECT * FROM urlCluster('default', 'http://127.0.0.1:{port}/ping', 'LineAsString')",
    "SELECT * FROM remote('127.0.0.1', 'system.one')",
    "SELECT * FROM s3('http://127.0.0.1:{port}/bucket/x.csv', 'k', 's')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:{port}/x', 'TSV', 'a String')",
    "SELECT * FROM mysql('127.0.0.1:{port}', 'd', 't', 'u', 'p')",
    "SELECT * FROM postgresql('127.0.0.1:{port}', 'd', 't', 'u', 'p')",
    "SELECT * FROM mongodb('127.0.0.1:{port}', 'd', 't', 'u', 'p', 'a String')",
    "SELECT * FROM redis('127.0.0.1:{port}', 'a', 'a String')",
    "SELECT * FROM odbc('DSN=x', 'd', 't')",
    "SELECT * FROM jdbc('DSN=x', 'd', 't')",
    "SELECT * FROM executable('cat', 'LineAsString', 'l String', (SELECT 'x'))",
    "SELECT * FROM executable('../../../../../../bin/cat {file}', 'LineAsString', 'l String')",
    "SELECT * FROM python(parameters)",
    "SELECT * FROM Python('headers')",
    "SELECT * FROM python(x) SETTINGS allow_python_table_function = 1",
    "SELECT * FROM eval('SELECT 1') SETTINGS allow_experimental_eval_table_function = 1",
    "SELECT 'a' AS x FORMAT Template SETTINGS format_template_resultset = '{file}', format_template_row_format = '${{x:CSV}}'",
    "SELECT 1 FORMAT Protobuf SETTINGS output_format_schema='{folder}/written', format_protobuf_use_autogenerated_schema=1",
    "SELECT * FROM format(CSV, 'a Int', 'x,y') SETTINGS input_format_allow_errors_num=9, "  # noqa: ISC004
    "input_format_record_errors_file_path='{folder}/written'",
    "SELECT 1 FORMAT Protobuf SETTINGS format_schema = '{file}:X'",
    "SELECT aiGenerate('x') SETTINGS allow_experimental_ai_functions = 1",
    "SELECT 1 INTO OUTFILE '{folder}/written'",
    "SELECT 1 INTO OUTFILE '{folder}/written' TRUNCATE FORMAT CSV",
    "SHOW TABLES INTO OUTFILE '{folder}/written'",
    "EXPLAIN SELECT 1 INTO OUTFILE '{folder}/written'",
    "DESCRIBE system.one INTO/**/OUTFILE '{folder}/written'",
    "KILL QUERY WHERE 0 INTO OUTFILE '{folder}/written'",
    "DROP TABLE IF EXISTS not_there INTO OUTFILE '{folder}/written'",
    "INSERT INTO {table} (b) FROM INFILE '{file}' FORMAT LineAsString",
    "INSERT INTO {table} (b) FROM/**/INFILE '{file}' FORMAT LineAsString x",
    "INSERT INTO FUNCTION file('{folder}/written', 'CSV', 'a String') VALUES ('x')",
    "INSERT INTO FUNCTION file('{folder}/written', 'CSV', 'a String') SELECT 'x'",
    "INSERT INTO FUNCTION url('http://127.0.0.1:{port}/', 'CSV', 'a String') VALUES ('x')",
    "CREATE TABLE stolen (a String) ENGINE = File(LineAsString, '{file}')",
    "CREATE TABLE stolen (a String) ENGINE = FileLog('{folder}', 'LineAsString')",
    "CREATE TABLE stolen (a String) ENGINE = URL('http://127.0.0.1:{port}/', LineAsString)",
    "CREATE TABLE stolen (a String) ENGINE = S3('http://127.0.0.1:{port}/bucket/x', CSV)",
    "CREATE TABLE stolen (a String) ENGINE = Kafka('127.0.0.1:{port}', 't', 'g', 'CSV')",
    "CREATE TABLE stolen (a String) ENGINE = MySQL('127.0.0.1:{port}', 'd', 't', 'u', 'p')",
    "CREATE TABLE stolen (a String) ENGINE = EmbeddedRocksDB(0, '{folder}/written') PRIMARY KEY a",
    "\u2212\u2212 x\nCREATE TABLE stolen (a String) ENGINE = EmbeddedRocksDB(0, '{folder}/written') PRIMARY KEY a",
    "CREATE TABLE stolen (a String) ENGINE/**/=/**/`EmbeddedRocksDB`(0, '{folder}/written') PRIMARY KEY a",
    "CREATE MATERIALIZED VIEW stolen ENGINE = EmbeddedRocksDB(0, '{folder}/written') PRIMARY KEY a AS SELECT 'x' AS a",
    "CREATE TABLE stolen (a String) ENGINE = Executable('cat', TSV)",
    "CREATE TABLE stolen (a String) ENGINE = Buffer('default', '{table}', 1, 1, 1, 1, 1, 1, 1)",
    "CREATE TABLE stolen (a String) ENGINE = Python('x')",
    "CREATE TABLE stolen AS file('{file}', 'LineAsString')",
    "CREATE TABLE stolen (a String) ENGINE = MergeTree ORDER BY a SETTINGS disk = disk(type = local, path = '{folder}/')",
    "CREATE TABLE stolen (a String) ENGINE=MergeTree ORDER BY a SETTINGS disk=disk(type=web, endpoint='http://127.0.0.1:{port}/')",
    "ALTER TABLE {table} MODIFY SETTING disk = disk(type = web, endpoint = 'http://127.0.0.1:{port}/')",
    "CREATE DATABASE stolen ENGINE = Filesystem('{folder}')",
    "CREATE DATABASE stolen ENGINE = Overlay('{folder}')",
    "CREATE DATABASE stolen ENGINE = SQLite('{file}')",
    "CREATE DATABASE stolen ENGINE = MySQL('127.0.0.1:{port}', 'd', 'u', 'p')",
    "CREATE DATABASE stolen ENGINE = URL('http://127.0.0.1:{port}/')",
    "CREATE DATABASE stolen ENGINE = Remote('127.0.0.1:{port}', 'd', 'u', 'p')",
    "CREATE DATABASE stolen ENGINE = Backup('d', Disk('default', 'x'))",
    "CREATE DATABASE stolen ENGINE = Atomic SETTINGS disk = disk(type = web, endpoint = 'http://127.0.0.1:{port}/')",
    "CREATE/**/DATABASE stolen ENGINE = Atomic\nSETTINGS \"disk\" = 'default'",
    "CREATE DICTIONARY stolen (a String) PRIMARY KEY a SOURCE(FILE(path '{file}' format 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE DICTIONARY stolen (a String) PRIMARY KEY a SOURCE(EXECUTABLE(command 'id' format 'CSV')) LAYOUT(FLAT())",
    "CREATE FUNCTION stolen AS x -> x",
    "CREATE OR REPLACE FUNCTION file AS x -> x",
    "DROP FUNCTION file",
    "CREATE NAMED COLLECTION stolen AS a = 1",
    "CREATE USER stolen",
    "GRANT SOURCES ON *.* TO default",
    "BACKUP TABLE {table} TO File('{folder}/written')",
    "BACKUP TABLE {table} TO Disk('default', 'written')",
    "RESTORE TABLE {table} FROM File('{folder}/x')",
    "ATTACH TABLE stolen FROM '{folder}' (a String) ENGINE = MergeTree ORDER BY a",
    "ALTER TABLE {table} FREEZE",
    "SYSTEM SHUTDOWN",
    "SYSTEM RELOAD CONFIG",
    "SET allow_python_table_function = 1; SELECT * FROM python(x)",
    "SELECT * FROM system.one SETTINGS dialect = 'kusto'",
]


@pytest.mark.parametrize("query", OUTWARD)
def test_the_store_reaches_nothing_outside_its_folder(store, secret, query):
    table = "outward_target"
    store.sql(f"CREATE TABLE IF NOT EXISTS {table} (a UInt8, b String) ENGINE = MergeTree ORDER BY a")
    values = {"file": secret, "folder": secret.parent, "table": table, "port": store.port}
    _refused(store.ask(query.format(**values)))
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret.csv"]
    assert store.sql(f"SELECT count() FROM {table}") == "0"
    assert store.sql("SELECT count() FROM system.tables WHERE name = 'stolen'") == "0"
    assert store.sql("SELECT count() FROM system.databases WHERE name = 'stolen'") == "0"


@pytest.mark.parametrize(
    "definition",
    [
        "(a String, b String DEFAULT file(a)) ENGINE = MergeTree ORDER BY a",
        "(a String, b String MATERIALIZED file(a)) ENGINE = MergeTree ORDER BY a",
        "(a String, b String ALIAS file(a)) ENGINE = MergeTree ORDER BY a",
        "(a String, INDEX i file(a) TYPE set(0)) ENGINE = MergeTree ORDER BY a",
        "(a String, CONSTRAINT c CHECK throwIf(file(a) != '')) ENGINE = MergeTree ORDER BY a",
        "(a String) ENGINE = MergeTree ORDER BY file(a)",
        "(a String) ENGINE = MergeTree ORDER BY a PARTITION BY file(a)",
        "(a String, PROJECTION p (SELECT a, file(a) ORDER BY a)) ENGINE = MergeTree ORDER BY a",
    ],
)
def test_a_table_that_would_read_files_reads_none(store, secret, definition):
    store.sql("DROP TABLE IF EXISTS reading SYNC")
    store.ask(f"CREATE TABLE reading {definition}")
    store.ask(f"INSERT INTO reading (a) VALUES ('{secret}')")
    for query in (
        "SELECT *, b FROM reading",
        "SELECT * FROM reading",
        "SELECT _partition_value FROM reading",
        "SELECT * FROM mergeTreeProjection('default', 'reading', 'p')",
        "SELECT * FROM mergeTreeIndex('default', 'reading')",
    ):
        assert SECRET not in store.ask(query).text
    store.sql("DROP TABLE IF EXISTS reading SYNC")


HARMLESS = [
    "column_names_for_schema_inference",
    "distributed_cache_file_cache_name",
    "filesystem_cache_name",
    "format_schema_message_name",
    "format_template_resultset_format",
    "format_template_row_format",
    "format_template_rows_between_delimiter",
    "local_filesystem_read_method",
    "remote_filesystem_read_method",
    "rename_files_after_processing",  # those of file(), which nobody can call
    "s3queue_default_zookeeper_path",
    "schema_inference_hints",
    "temporary_files_codec",
    "trace_profile_events_list",
]


def test_a_setting_can_not_open_what_is_pinned(store, secret):
    for name, value in {
        "allow_python_table_function": 1,
        "allow_experimental_eval_table_function": 1,
        "allow_introspection_functions": 1,
        "dialect": "prql",
        "implicit_select": 1,
        "format_avro_schema_registry_url": f"http://127.0.0.1:{store.port}/",
        "format_schema": "/etc/passwd:X",
        "format_schema_source": "query",
        "format_template_resultset": secret,
        "format_template_row": secret,
        "input_format_record_errors_file_path": secret.parent / "written",
        "output_format_schema": secret.parent / "written",
        "url_base": "http://127.0.0.1/",
    }.items():
        for headers in (READER, {}):
            assert store.ask("SELECT 1", headers=headers, **{name: value}).code in (392, 452), name
    assert sorted(path.name for path in secret.parent.iterdir()) == ["secret.csv"]


def test_no_setting_that_names_a_file_or_an_address_is_left_open(store):
    """A version of chDB that brings a new one fails here, so that somebody looks at it."""
    settings = store.sql(
        "SELECT name FROM system.settings WHERE type = 'String' AND readonly = 0 AND "
        "match(name, 'path|file|url|schema|template|registry|endpoint|director') ORDER BY name"
    )
    assert settings.splitlines() == HARMLESS


def test_words_in_data_and_names_are_not_taken_for_clauses(store, table):
    assert store.sql("SELECT 'INTO OUTFILE', 'FROM INFILE x'") == "INTO OUTFILE\tFROM INFILE x"
    store.sql(f"INSERT INTO {table} SELECT 1, 'FROM INFILE x'")
    store.sql(f"INSERT INTO {table} VALUES (2, 'FROM INFILE \\'x\\''), (3, 'INTO OUTFILE')")
    assert store.sql(f"SELECT count() FROM {table} WHERE b LIKE '%FILE%'") == "3"


# Who is asking.


def _basic(name, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        (_basic("reader", "of books"), {}),
        (READER, {}),
        ({}, {"user": "reader", "password": "of books"}),
    ],
    ids=["basic", "headers", "url"],
)
def test_credentials_are_taken_in_three_places(store, headers, parameters):
    assert store.ask("SELECT getSetting('readonly')", headers=headers, **parameters).body == b"1\n"


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        (_basic("reader", "wrong"), {}),
        (_basic("reader", ""), {}),
        (_basic("nobody", "of books"), {}),
        ({"X-ClickHouse-User": "reader"}, {}),
        ({"X-ClickHouse-Key": "x"}, {}),
        ({}, {"user": "reader"}),
        ({}, {"user": "default", "password": "x"}),
        ({"Authorization": "Bearer abc"}, {}),
        ({"Authorization": "Basic ???"}, {}),
        (READER, {"user": "default"}),
        ({**READER, **_basic("default", "")}, {}),
    ],
)
def test_wrong_credentials_are_refused(store, headers, parameters):
    answer = store.ask("SELECT 1", headers=headers, **parameters)
    assert (answer.status, answer.code) == (403, 516)
    assert "of books" not in answer.text


def test_without_a_default_user_a_name_is_asked_for(start):
    closed = start(users=[{"name": "alice", "password": "a secret"}])
    answer = closed.ask("SELECT 1")
    assert (answer.status, answer.code) == (401, 516)
    assert answer.headers["www-authenticate"].startswith("Basic")
    assert closed.ask(method="GET", path="/ping").status == 200
    assert closed.ask("SELECT 1", headers=_basic("alice", "a secret")).body == b"1\n"


# Web pages.


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8123", "127.0.0.1.evil.example", "10.0.0.1", "[", ""]
)
def test_a_name_that_is_not_this_machine_is_refused(store, host):
    answer = store.ask("SELECT 1", headers={"Host": host})
    assert answer.status == 421
    assert store.ask(method="GET", path="/ping", headers={"Host": host}).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8123", "127.0.0.1", "127.8.8.8:1", "[::1]:8123"])
def test_this_machine_has_several_names(store, host):
    assert store.ask("SELECT 1", headers={"Host": host}).body == b"1\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_requests_of_web_pages_are_refused_and_never_allowed_to_read(store, table, headers):
    answer = store.ask(f"INSERT INTO {table} VALUES (1, 'x')", headers=headers)
    assert answer.status == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert store.ask(method="OPTIONS", headers=headers).status == 501
    assert store.sql(f"SELECT count() FROM {table}") == "0"


def test_headers_of_an_answer_can_not_be_split(store):
    answer = store.ask("SELECT 1", query_id="a\r\nX-Evil: 1")
    assert "x-evil" not in answer.headers
