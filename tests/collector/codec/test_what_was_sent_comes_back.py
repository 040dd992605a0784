"""The codec against ClickHouse's real engine: what SQL gives back is what was sent, and hashes to the same leaf."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.readable import encode
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
from auditspan_collector.schema import INSERT_COLUMNS, LEAF_COLUMNS, leaf_sql, seal_row
from collector.codec import otlp_strategies as otlp
from collector.codec import restore
from golden import regenerate as golden
from hypothesis import HealthCheck, Phase, given, settings
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import Span

DATABASE = "codec"
SENDER = Sender("anonymous", tenant="default", services=None, instrumented=True)
RECEIVED_UNIX_NS = 1_790_000_000_123_456_789
INSERT = f"INSERT INTO {DATABASE}.records ({', '.join(f'`{name}`' for name in INSERT_COLUMNS)})"
ROW_BINARY = f"formatRow('RowBinary', {', '.join(f'`{column.name}`' for column in LEAF_COLUMNS)})"
streams = itertools.count()


@pytest.fixture(scope="module")
def table(engine):
    migrate(engine, DATABASE)
    return engine


def store(table, body: bytes, encoding="protobuf"):
    """Encode and insert a request; returns its leaves and the name of the stream that holds them."""
    request = OtlpRequest(body, encoding, SENDER, "127.0.0.1", RECEIVED_UNIX_NS)
    selection = encode(request, Limits())
    stream = f"default/test/{next(streams)}"
    if selection.leaves:
        table.insert(INSERT, b"".join(seal_row(stream, i, leaf) for i, leaf in enumerate(selection.leaves)))
    return selection, stream


def stored(table, select: str, stream: str, output_format="JSONEachRow") -> bytes:
    sql = f"{select} FROM {DATABASE}.records WHERE ledger_stream = {{stream:String}} ORDER BY ledger_index"
    return table.raw(sql, output_format, {"stream": stream})


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # an insert for each step of shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(request=otlp.requests)
def test_what_comes_back_from_sql_is_what_was_sent(table, request):
    sent = otlp.tagged_with_context(request)
    selection, stream = store(table, request.SerializeToString())
    assert len(selection.leaves) == selection.tagged == len(sent)
    lines = (
        stored(table, restore.SELECT, stream).decode().split("\n")[:-1]
    )  # splitlines takes more for a line end
    assert len(lines) == len(sent)
    for line, (span, in_resource, in_scope) in zip(lines, sent, strict=True):
        row = restore.row_of(line)
        if not span.status.message and not span.status.code:
            span.ClearField("status")  # absent, or there and saying nothing: the same
        assert otlp.same(restore.span(row), span)
        assert otlp.same(restore.resource(row), in_resource.resource)
        assert otlp.same(restore.scope(row), in_scope.scope)
        assert (row["resource_schema_url"], row["scope_schema_url"]) == (
            in_resource.schema_url,
            in_scope.schema_url,
        )
    hashes = stored(table, f"SELECT {leaf_sql()}", stream, "RowBinary")
    assert hashes == b"".join(leaf.hash for leaf in selection.leaves)


def awkward_request() -> ExportTraceServiceRequest:
    """Each column with a value that is neither empty nor easy."""
    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.37.0")
    in_resource.resource.dropped_attributes_count = 4_294_967_295
    in_resource.resource.entity_refs.add(type="host", id_keys=["host.id"])
    in_resource.resource.attributes.add(key="service.name").value.string_value = "заказы 🧾"
    in_scope = in_resource.scope_spans.add(schema_url="ü")
    in_scope.scope.CopyFrom(InstrumentationScope(name="läuft", version="1\x00\n", dropped_attributes_count=1))
    in_scope.scope.attributes.add(key="k").value.bool_value = True
    span = in_scope.spans.add(
        trace_id=bytes(range(16)),
        span_id=b"\x00\xff" * 4,
        parent_span_id=b"\x00" * 7 + b"\x01",
        trace_state="a=b,c=\t",
        name="POST /💥/{id}",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=1_790_000_000_987_654_321,
        end_time_unix_nano=(1 << 64) - 1,
        flags=(1 << 32) - 1,
        dropped_attributes_count=1,
        dropped_events_count=2,
        dropped_links_count=3,
    )
    span.status.code, span.status.message = 2, "no\x00good"
    for key, text in {
        "audit.record.id": "01890a5d-ac96-774b-bcce-b302099a8057",
        "audit.actor.id": "alice\x00",
        "audit.actor.session_id": "s" * 200,
        "audit.reason": "because",
        "audit.parent.span_id": "00ff00ff00ff00ff",
        "audit.target.id": "x" * 70_000,
        "": "empty key",
    }.items():
        span.attributes.add(key=key).value.string_value = text
    roles = span.attributes.add(key="audit.actor.roles").value.array_value
    roles.values.add().string_value = "admin"
    roles.values.add().string_value = "é"
    span.attributes.add(key="audit.sequence.number").value.int_value = (1 << 63) - 1
    for number in range(3):  # one key three times, and long texts
        span.attributes.add(key="again").value.CopyFrom(AnyValue(int_value=number) if number else AnyValue())
        event = span.events.add(time_unix_nano=number, name="e" * number, dropped_attributes_count=number)
        event.attributes.add(key="again").value.double_value = number / 7
        event.attributes.add(key="again").value.string_value = "long" * 20_000
        link = span.links.add(trace_id=b"t" * 16, span_id=b"s" * 8, trace_state="x=y", flags=number)
        link.attributes.add(key="b").value.bytes_value = bytes(range(256))
    return request


@pytest.mark.parametrize("column", [column.name for column in LEAF_COLUMNS])
def test_the_engine_gives_back_the_very_bytes_of_each_column(table, column):
    request = awkward_request()
    selection, stream = store(table, request.SerializeToString())
    theirs = stored(table, f"SELECT formatRow('RowBinary', `{column}`)", stream, "RawBLOB")
    assert theirs
    before = stored(
        table,
        "SELECT formatRow('RowBinary', " + ", ".join(f"`{name}`" for name in names_up_to(column)) + ")",
        stream,
        "RawBLOB",
    )
    assert next(iter(selection.leaves)).content.startswith(before)
    assert before.endswith(theirs)


def names_up_to(column: str) -> list[str]:
    names = [one.name for one in LEAF_COLUMNS]
    return names[: names.index(column) + 1]


def test_the_whole_row_and_its_hash_come_back(table):
    selection, stream = store(table, awkward_request().SerializeToString())
    leaf = next(iter(selection.leaves))
    assert stored(table, f"SELECT {ROW_BINARY}", stream, "RawBLOB") == leaf.content
    assert stored(table, f"SELECT {leaf_sql()}", stream, "RawBLOB") == leaf.hash
    assert leaf.hash == hashlib.sha256(b"\x00" + leaf.content).digest()


def test_the_bytes_stay_the_same_when_parts_are_merged(table):
    kept = [store(table, awkward_request().SerializeToString()) for _ in range(3)]
    table.execute(f"OPTIMIZE TABLE {DATABASE}.records FINAL")
    for selection, stream in kept:
        assert (
            stored(table, f"SELECT {ROW_BINARY}", stream, "RawBLOB") == next(iter(selection.leaves)).content
        )


def test_a_key_that_repeats_reads_as_its_first_value(table):
    _, stream = store(table, awkward_request().SerializeToString())
    select = "SELECT length(attributes['audit.target.id']), attributes['again'], length(attributes)"
    row = stored(table, select, stream, "TSV")
    # Of the key that came three times the first is an empty value; 12 attributes came, and 1 is the collector's mark.
    assert row == b"65536\t\t13\n"


def test_json_and_protobuf_give_the_same_leaf(table):
    from google.protobuf import json_format

    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add()
    in_resource.resource.attributes.add(key="service.name").value.string_value = "orders"
    span = in_resource.scope_spans.add().spans.add(
        trace_id=b"t" * 16, span_id=b"s" * 8, start_time_unix_nano=5
    )
    span.attributes.add(key="audit.actor.id").value.string_value = "alice"
    document = json_format.MessageToJson(request, use_integers_for_enums=True)
    document = document.replace("dHR0dHR0dHR0dHR0dHR0dA==", "74" * 16).replace("c3Nzc3Nzc3M=", "73" * 8)
    from_json, _ = store(table, document.encode(), "json")
    assert from_json == store(table, request.SerializeToString())[0]


@pytest.mark.parametrize("path", golden.requests(), ids=lambda path: path.name)
def test_the_database_recomputes_the_leaves_of_the_golden_vectors(table, path):
    selection, stream = golden.encoded(path), f"golden/{path.name}"
    table.insert(INSERT, b"".join(seal_row(stream, i, leaf) for i, leaf in enumerate(selection.leaves)))
    assert stored(table, f"SELECT {leaf_sql()}", stream, "RowBinary") == b"".join(
        leaf.hash for leaf in selection.leaves
    )
