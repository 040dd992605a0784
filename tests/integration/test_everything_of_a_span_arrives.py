"""Through the receivers, the spool and the drain: all of a tagged span is in SQL, and nothing of another one."""

from __future__ import annotations

import base64
import uuid
from hashlib import sha256

import grpc
import loopback
import pytest
from auditspan_collector.ledger.merkle import Frontier
from auditspan_collector.schema import leaf_sql
from collector.codec import otlp_strategies as otlp
from collector.codec import restore
from collector.service.otlp_peer import wait_until
from hypothesis import HealthCheck, Phase, given, settings
from integration.whole_line import EXPORT, request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def sent_by_grpc(line, body: bytes) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{line.grpc}") as channel:
        channel.unary_unary(EXPORT)(body, timeout=10)


def sent_by_http(line, body: bytes) -> None:
    headers = {"content-type": "application/x-protobuf"}
    answer = loopback.post(f"http://127.0.0.1:{line.http}/v1/traces", content=body, headers=headers)
    assert answer.status_code == 200, answer.text


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # each step of shrinking would wait for the drain
    suppress_health_check=list(HealthCheck),
)
@given(sent=otlp.requests)
@pytest.mark.parametrize(
    "send",
    [pytest.param(sent_by_grpc, id="grpc"), pytest.param(sent_by_http, id="http", marks=pytest.mark.long)],
)
def test_random_spans_come_back_from_sql_as_they_were_sent(running_line, send, sent):
    # One example may send what another sent, and the collector would know it again: a mark makes each its own.
    mark = str(uuid.uuid4())
    for in_resource in sent.resource_spans:
        in_resource.resource.attributes.insert(
            0, otlp.KeyValue(key="mark", value=otlp.AnyValue(string_value=mark))
        )
    tagged = otlp.tagged_with_context(sent)
    send(running_line, sent.SerializeToString())
    where = f"FROM audit.records WHERE resource_attributes['mark'] = '{mark}'"
    wait_until(
        lambda: int(running_line.rows(f"SELECT count() {where}")[0][0]) >= len(tagged),
        limit_s=20,
        what=f"{len(tagged)} records",
    )
    answer = loopback.post(
        f"http://127.0.0.1:{running_line.store_port}/",
        content=f"{restore.SELECT} {where} ORDER BY ledger_index FORMAT JSONEachRow",
    )
    lines = answer.content.decode().split("\n")[:-1]
    assert len(lines) == len(tagged)
    for line, (span, in_resource, in_scope) in zip(lines, tagged, strict=True):
        row = restore.row_of(line)
        if not span.status.message and not span.status.code:
            span.ClearField("status")
        assert otlp.same(restore.span(row), span)
        assert otlp.same(restore.resource(row), in_resource.resource)
        assert otlp.same(restore.scope(row), in_scope.scope)


def test_a_span_without_audit_attributes_never_reaches_the_store(running_line):
    message = ExportTraceServiceRequest.FromString(request([str(uuid.uuid4())]))
    spans = message.resource_spans[0].scope_spans[0].spans
    tagged = spans[0].span_id
    for number in range(50):
        span = spans.add(
            trace_id=spans[0].trace_id, span_id=number.to_bytes(8, "big", signed=False)[:7] + b"\1"
        )
        span.attributes.add(
            key="user.id"
        ).value.string_value = "alice"  # an alias fills a record, it never makes one
        span.attributes.add(key="xaudit.actor.id").value.string_value = "alice"
    trace = spans[0].trace_id.hex()
    sent_by_grpc(running_line, message.SerializeToString())
    sql = f"SELECT span_id_hex FROM audit.records WHERE trace_id_hex = '{trace}'"
    wait_until(lambda: running_line.rows(sql), limit_s=20, what="the record")
    assert running_line.rows(sql) == [[tagged.hex()]]


def test_sql_alone_recomputes_each_leaf_and_with_them_the_ledgers_root(line):
    line.start_store()
    line.start_collector()
    record_ids = [str(uuid.uuid4()) for _ in range(300)]
    for at in range(0, 300, 7):
        sent_by_grpc(line, request(record_ids[at : at + 7]))
    line.wait_for_records(record_ids)
    leaves = [
        base64.b64decode(row[0])
        for row in line.rows(f"SELECT base64Encode({leaf_sql()}) FROM audit.records ORDER BY ledger_index")
    ]
    content = line.rows(
        f"SELECT base64Encode({leaf_sql().removeprefix('SHA256(').removesuffix(')')}) "
        "FROM audit.records ORDER BY ledger_index"
    )
    assert leaves == [sha256(base64.b64decode(row[0])).digest() for row in content]
    line.collector.end()
    assert Frontier().append(b"".join(leaves)).root() == ledger_root(line.folder / "spool", size=300)


def ledger_root(spool_folder, *, size: int) -> bytes:
    """What the stopped collector's spool says its ledger's root is."""
    from auditspan_collector.spool import Config, Spool

    spool = Spool.open(
        Config(path=str(spool_folder), max_bytes=512 << 20, allow_memory_filesystem=True), "test", "line"
    )
    try:
        assert spool.next_index == size
        return spool._ledger.frontier.root()
    finally:
        spool.close()
