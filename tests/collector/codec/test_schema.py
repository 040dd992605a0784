"""schema: one definition from which row, DDL and document follow; and what the table's layout is for."""

from __future__ import annotations

import dataclasses
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from auditspan_collector import record as records
from auditspan_collector.migrations import migrate
from auditspan_collector.record import AuditRecord, Leaf
from auditspan_collector.schema import (
    COLUMNS,
    FILLED_FROM,
    INSERT_COLUMNS,
    LEAF_COLUMNS,
    SEAL_COLUMNS,
    ddl,
    encode_leaf,
    seal_row,
)
from auditspan_collector.schema import rowbinary as rb

ROOT = Path(__file__).parents[3]
DATABASE = "layout"
ROWS = 400_000


def fields(kind) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def test_leaf_columns_are_the_fields_of_a_record_in_their_order():
    expected = []
    for name in fields(AuditRecord):
        inner = {"events": records.SpanEvent, "links": records.SpanLink}.get(name)
        expected += [f"{name}.{field}" for field in fields(inner)] if inner else [name]
    assert [column.field for column in LEAF_COLUMNS] == expected


def test_columns_are_named_once_and_the_seal_comes_first():
    assert tuple(column.name for column in SEAL_COLUMNS + LEAF_COLUMNS) == INSERT_COLUMNS
    assert len(set(INSERT_COLUMNS)) == len(INSERT_COLUMNS)
    assert all(column.comment for column in COLUMNS)


def test_a_sealed_row_is_stream_index_and_content():
    leaf = Leaf(content=b"content", hash=b"", identity=b"")
    stream = "s" * 200
    assert seal_row(stream, 7, leaf) == b"\xc8\x01" + stream.encode() + struct.pack("<Q", 7) + b"content"


def a_record(**changes) -> AuditRecord:
    empty = {"int": 0, "str": "", "bytes": b""}
    values = {field.name: empty.get(str(field.type), ()) for field in dataclasses.fields(AuditRecord)}
    widths = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "audit_parent_span_id": 8, "record_id": 16}
    values |= {name: bytes(width) for name, width in widths.items()}
    return AuditRecord(**(values | changes))


def test_the_identity_is_the_same_whenever_the_record_was_received():
    one, other = (
        encode_leaf(a_record(received_time_unix_ms=1)),
        encode_leaf(a_record(received_time_unix_ms=2)),
    )
    assert one.identity == other.identity
    assert one.hash != other.hash
    assert len(one.identity) == 16


@pytest.mark.parametrize("field", [name for name in fields(AuditRecord) if name != "received_time_unix_ms"])
def test_the_identity_differs_with_every_other_field(field):
    kind = next(str(one.type) for one in dataclasses.fields(AuditRecord) if one.name == field)
    event = records.SpanEvent(0, "e", (), (), 0)
    link = records.SpanLink(bytes(16), bytes(8), "", 0, (), (), 0)
    changed = {
        "int": 1,
        "str": "x",
        "bytes": b"\x01" + bytes(len(getattr(a_record(), field)) - 1) if kind == "bytes" else b"",
        "tuple[str, ...]": ("x",),
        "tuple[tuple[str, str], ...]": (("k", "v"),),
        "tuple[SpanEvent, ...]": (event,),
        "tuple[SpanLink, ...]": (link,),
    }[kind]
    assert encode_leaf(a_record(**{field: changed})).identity != encode_leaf(a_record()).identity


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (rb.TRACE_ID, b"short"),
        (rb.SPAN_ID, bytes(9)),
        (rb.UUID, bytes(15)),
        (rb.UINT32, 1 << 32),
        (rb.UINT64, -1),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_an_error_not_a_shifted_row(kind, value):
    with pytest.raises((ValueError, struct.error)):
        kind.encode(value)


def test_the_document_is_current():
    printed = subprocess.run(
        [sys.executable, "-m", "auditspan_collector.schema"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "schema.md").read_text() == printed, (
        "run: python -m auditspan_collector.schema > docs/schema.md"
    )


def test_the_document_names_every_column_and_attribute():
    document = (ROOT / "docs" / "schema.md").read_text()
    for name in [*INSERT_COLUMNS, *ddl.ALIAS_COLUMNS, *ddl.OTEL_TRACES, *sum(FILLED_FROM.values(), ())]:
        assert f"`{name}`" in document


@pytest.mark.parametrize("name", ["", "a b", "a`; DROP TABLE x", "1a", "a.b", "ä", "a" * 64])
def test_a_database_name_is_never_more_than_a_name(name):
    with pytest.raises(ValueError, match="no name of a database"):
        ddl.create_table(name)


@pytest.mark.parametrize("cluster", ["a b", "a'", "a`", "-a", "{cluster}"])
def test_a_cluster_name_is_never_more_than_a_name(cluster):
    with pytest.raises(ValueError, match="no name of a cluster"):
        ddl.create_table("audit", cluster)


def test_on_a_cluster_each_statement_parses_and_goes_to_all_its_servers(engine):
    creators = (ddl.create_table, ddl.create_views, ddl.create_conflicts)
    statements = [statement for create in creators for statement in create("audit", "prod-1")]
    for statement in statements:
        formatted = engine.rows("SELECT formatQuery({sql:String})", {"sql": statement})[0][0]
        assert "ON CLUSTER `prod-1`" in formatted
    stored, distributed = statements[0], statements[1]
    assert "ENGINE = ReplicatedMergeTree" in stored
    assert "replicated_deduplication_window_seconds" in stored
    assert "`records_local`" in stored
    assert "ENGINE = Distributed('prod-1', 'audit', 'records_local'" in distributed


def test_conflicts_are_records_under_one_key_that_differ_in_more_than_their_received_time(engine):
    migrate(engine, "conflicting")
    one = {"service_name": "shop", "sequence_stream": "s", "record_id": bytes(15) + b"\x01"}
    records = [
        a_record(**one, sequence_number=1),
        a_record(**one, sequence_number=1, received_time_unix_ms=9),  # the same by way of another collector
        a_record(**one | {"record_id": bytes(15) + b"\x02"}, sequence_number=2),
        a_record(**one | {"record_id": bytes(15) + b"\x03"}, sequence_number=2, actor_id="mallory"),
        a_record(record_id=bytes(15) + b"\x04", actor_id="alice"),
        a_record(record_id=bytes(15) + b"\x04", actor_id="mallory"),
        a_record(record_id=bytes(15) + b"\x04", actor_id="elsewhere", tenant="other"),
    ]
    rows = b"".join(seal_row("s", index, encode_leaf(record)) for index, record in enumerate(records))
    engine.insert(
        f"INSERT INTO conflicting.records ({', '.join(f'`{name}`' for name in INSERT_COLUMNS)})", rows
    )
    found = engine.rows(
        "SELECT same, ledger_index, actor_id FROM conflicting.conflicts ORDER BY ledger_index"
    )
    assert [(same, index) for same, index, _ in found] == [
        ("sequence number", 2),
        ("sequence number", 3),
        ("record id", 4),
        ("record id", 5),
    ]
    assert engine.rows("SELECT count() FROM conflicting.conflicts WHERE service_name = 'shop'") == [(2,)]


@pytest.fixture(scope="module")
def filled(engine):
    """A table of 28 days, 40 services, a user in a thousand rows and a trace in four, made by the engine itself."""
    migrate(engine, DATABASE)
    engine.execute(f"""
        INSERT INTO {DATABASE}.records (ledger_stream, ledger_index, start_time, received_time, trace_id, service_name,
            action, actor_id, target_id, record_id, span_id)
        SELECT 's', number, toDateTime64('2026-01-01 00:00:00', 9, 'UTC') + number * 6, '2026-01-31 00:00:00',
            unhex(hex(sipHash128(intDiv(number, 4)))), 'service' || toString(number % 40), 'READ',
            'user' || toString(intDiv(number, 1000)), '/orders/' || toString(number) || '/items',
            generateUUIDv4(), reinterpretAsFixedString(number)
        FROM numbers({ROWS}) SETTINGS max_insert_block_size = {ROWS}, max_threads = 1
    """)
    engine.execute(f"OPTIMIZE TABLE {DATABASE}.records FINAL")
    return engine


def granules(engine, query: str) -> tuple[int, int]:
    """How many granules the query reads in the end, of how many, by the engine's own plan."""
    # ClickHouse leaves a projection aside in tables of less than a million rows.
    query = f"{query} SETTINGS min_table_rows_to_use_projection_index = 0"
    plan = engine.raw(f"EXPLAIN indexes = 1, projections = 1 {query}", "TSVRaw").decode(errors="replace")
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"Granules: (\d+)/(\d+)", plan)]
    projected = [int(count) for count in re.findall(r"Marks: (\d+)", plan)]
    return min([kept for kept, _ in pairs] + projected), pairs[0][1]


TRACE = "lower(hex(sipHash128(toUInt64(1000))))"
QUESTIONS = {
    "one day": (
        "records",
        "start_time >= '2026-01-10 00:00:00' AND start_time < '2026-01-11 00:00:00'",
        0.15,
    ),
    "one service in six hours": (
        "records",
        "start_time >= '2026-01-10 00:00:00' AND start_time < '2026-01-10 06:00:00' AND service_name = 'service7'",
        0.15,
    ),
    "a trace by its bytes": ("records", "trace_id = unhex('00112233445566778899aabbccddeeff')", 0.05),
    "a trace by its hex": ("records", "trace_id_hex = '00112233445566778899aabbccddeeff'", 0.05),
    "a trace in the view": ("otel_traces", "TraceId = '00112233445566778899aabbccddeeff'", 0.05),
    "a trace's time range": ("otel_traces_trace_id_ts", "TraceId = '00112233445566778899aabbccddeeff'", 0.05),
    "an actor": ("records", "actor_id = 'user77'", 0.1),
    "a part of a target": ("records", "target_id LIKE '%/12345/%'", 0.05),
    "a range of the ledger": ("records", "ledger_index BETWEEN 5000 AND 5100", 0.25),
}


@pytest.mark.parametrize(("table", "condition", "share"), QUESTIONS.values(), ids=QUESTIONS)
def test_the_layout_spares_what_a_question_does_not_ask_for(filled, table, condition, share):
    read, of = granules(filled, f"SELECT * FROM {DATABASE}.{table} WHERE {condition}")
    assert of >= 45
    assert read <= max(share * of, 1)


def test_the_view_has_the_columns_of_the_opentelemetry_exporter(filled):
    # exporter/clickhouseexporter/internal/sqltemplates/traces_table.sql in opentelemetry-collector-contrib
    lc = "LowCardinality(String)"
    expected = {
        "Timestamp": "DateTime64(9, 'UTC')",
        "TraceId": "String",
        "SpanId": "String",
        "ParentSpanId": "String",
        "TraceState": "String",
        "SpanName": lc,
        "SpanKind": lc,
        "ServiceName": lc,
        "ResourceAttributes": f"Map({lc}, String)",
        "ScopeName": lc,  # String there; a reader gets strings either way
        "ScopeVersion": lc,
        "SpanAttributes": f"Map({lc}, String)",
        "Duration": "UInt64",
        "StatusCode": lc,
        "StatusMessage": "String",
        "Events.Timestamp": "Array(DateTime64(9, 'UTC'))",
        "Events.Name": f"Array({lc})",
        "Events.Attributes": f"Array(Map({lc}, String))",
        "Links.TraceId": "Array(String)",
        "Links.SpanId": "Array(String)",
        "Links.TraceState": "Array(String)",
        "Links.Attributes": f"Array(Map({lc}, String))",
    }
    described = filled.rows(f"DESCRIBE TABLE {DATABASE}.otel_traces")
    assert {row[0]: row[1] for row in described} == expected


def test_grafanas_query_for_a_trace_finds_it(filled):
    rows = filled.rows(f"""
        WITH {TRACE} AS trace_id,
            (SELECT min(Start) FROM {DATABASE}.otel_traces_trace_id_ts WHERE TraceId = trace_id) AS trace_start,
            (SELECT max(End) + 1 FROM {DATABASE}.otel_traces_trace_id_ts WHERE TraceId = trace_id) AS trace_end
        SELECT TraceId AS traceID, SpanId AS spanID, ParentSpanId AS parentSpanID, ServiceName AS serviceName,
            Duration * 0.000001 AS duration, arrayMap(key -> map('key', key, 'value', SpanAttributes[key]),
            mapKeys(SpanAttributes)) AS tags
        FROM {DATABASE}.otel_traces WHERE traceID = trace_id AND Timestamp >= trace_start AND Timestamp <= trace_end
        LIMIT 1000
    """)
    assert len(rows) == 4
    assert {row[2] for row in rows} == {""}


def test_a_batch_sent_again_under_its_token_is_stored_once_also_when_split_by_month(engine):
    migrate(engine, "tokens")
    insert = f"INSERT INTO tokens.records ({', '.join(f'`{name}`' for name in INSERT_COLUMNS)})"
    months = [1_790_000_000_000, 1_793_000_000_000]
    rows = b"".join(
        seal_row("s", i, encode_leaf(a_record(received_time_unix_ms=time))) for i, time in enumerate(months)
    )
    for _ in range(3):
        engine.insert(f"{insert} SETTINGS insert_deduplication_token = 's:0-1:root', async_insert = 0", rows)
    assert engine.rows("SELECT count(), uniqExact(_partition_id) FROM tokens.records") == [(2, 2)]
