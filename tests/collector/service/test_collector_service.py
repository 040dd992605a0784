"""The collector's rooms put together, before ClickHouse: what is answered, kept, counted and left behind."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import loopback
import pytest
from auditspan_collector import config, service
from auditspan_collector.errors import ConfigError, SpoolFull, SpoolInUse
from auditspan_collector.spool import Spool
from collector.service.otlp_peer import request_bytes, wait_until
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client.parser import text_string_to_metric_families

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TOKEN = "a-token-of-32-characters-exactly"
STOCK_APP = Path(__file__).with_name("stock_sdk_app.py")
SETTINGS = """
receiver:
  grpc: {listen: "127.0.0.1:0"}
  http: {listen: "127.0.0.1:0"}
telemetry: {metrics_listen: "127.0.0.1:0"}
clickhouse: {url: "http://127.0.0.1:9"}  # nobody: what is kept stays in the spool
spool: {max_bytes: 64MiB, dedup_window_records: 10000, allow_memory_filesystem: true}
"""


@pytest.fixture
def collector(tmp_path):
    """Start a collector: ``collector(more_settings)``."""
    running = []

    def start(more=""):
        made = service.build(config.parse(SETTINGS + more, data=tmp_path, environ={}))
        made.start()
        running.append(made)
        return made

    yield start
    for each in running:
        each.stop(1)


class Answer:
    """What a client got, the same for both transports."""

    def __init__(self, code, message, body, receipt, retry):
        self.code = code
        self.message = message
        self.body = body
        self.receipt = receipt
        self.retry = retry


def send_grpc(collector, body, token=None, media_type=None):
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(
        f"127.0.0.1:{collector.grpc_port}", options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        try:
            answer, call = channel.unary_unary(EXPORT).with_call(body, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            return Answer(error.code().name, error.details(), None, None, _retry(status) if status else None)
        receipt = dict(call.trailing_metadata()).get("auditspan-receipt")
        return Answer("OK", "", answer, json.loads(receipt) if receipt else None, None)


def send_http(collector, body, token=None, media_type="application/x-protobuf"):
    headers = {"content-type": media_type} | ({"authorization": f"Bearer {token}"} if token else {})
    answer = loopback.post(
        f"http://127.0.0.1:{collector.http_port}/v1/traces", content=body, headers=headers, timeout=30
    )
    receipt = answer.headers.get("auditspan-receipt")
    if answer.status_code == 200:
        return Answer("OK", "", answer.content, json.loads(receipt) if receipt else None, None)
    status = status_pb2.Status()
    if media_type == "application/json":
        message = answer.json()["message"]
    else:
        status.ParseFromString(answer.content)
        message = status.message
    names = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        413: "RESOURCE_EXHAUSTED",
        503: "UNAVAILABLE",
    }
    retry = answer.headers.get("retry-after")
    return Answer(names[answer.status_code], message, None, None, float(retry) if retry else None)


def _retry(status):
    info = error_details_pb2.RetryInfo()
    return info.retry_delay.ToSeconds() if any(detail.Unpack(info) for detail in status.details) else None


both = pytest.mark.parametrize("send", [send_grpc, send_http], ids=["grpc", "http"])


def metrics(collector):
    text = loopback.get(f"http://127.0.0.1:{collector.metrics_port}/metrics").text
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@both
def test_a_valid_request_without_audit_spans_is_ok_and_only_counted(collector, send):
    running = collector()
    answer = send(running, request_bytes(spans=5, attributes=(("http.route", "/"),)))
    assert (answer.code, answer.body, answer.receipt) == ("OK", b"", None)
    found = metrics(running)
    assert found["auditspan_spans_received_total",] == 5
    assert found["auditspan_spans_tagged_total",] == 0
    assert found["auditspan_spool_records",] == 0


@both
def test_a_valid_request_is_on_disk_when_it_is_answered_and_a_retry_is_a_duplicate(collector, send):
    running = collector()
    body = request_bytes(spans=3)
    first, second = send(running, body), send(running, body)
    assert first.receipt == {
        "stream": running.stream,
        "ranges": [{"first": "0", "last": "2"}],
        "duplicates": "0",
    }
    assert second.receipt == {"stream": running.stream, "ranges": [], "duplicates": "3"}
    found = metrics(running)
    assert found["auditspan_spool_records",] == 3
    assert found["auditspan_records_kept_total",] == 3
    assert found["auditspan_records_duplicate_total",] == 3
    assert found["auditspan_spool_oldest_age_seconds",] > 0


@both
def test_the_ordinary_copy_of_a_spooled_record_is_counted_and_not_kept(collector, send):
    running = collector()
    copy = request_bytes(spans=2, attributes=(("audit.action", "DELETE"), ("audit.delivery", "spool")))
    assert send(running, copy).receipt is None
    found = metrics(running)
    assert found["auditspan_spans_copies_total",] == 2
    assert found["auditspan_spool_records",] == 0


@both
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff\xff\xff\xff", " at byte "),
        (request_bytes(spans=3)[:-5], " at byte "),
        (b"\x0a\x05hello", " at byte "),
        (b"\x08\x01", "resource_spans"),
    ],
    ids=["noise", "truncated", "no message", "wrong wire type"],
)
def test_what_is_not_otlp_is_refused_with_its_place_and_nothing_is_kept(collector, send, body, words):
    running = collector()
    answer = send(running, body)
    assert answer.code == "INVALID_ARGUMENT"
    assert words in answer.message
    assert answer.retry is None
    assert metrics(running)["auditspan_spool_records",] == 0
    assert send(running, request_bytes()).code == "OK"


@both
def test_a_span_without_a_valid_id_is_named_and_the_others_are_kept(collector, send):
    running = collector()
    request = ExportTraceServiceRequest.FromString(request_bytes(spans=3))
    request.resource_spans[0].scope_spans[0].spans[1].trace_id = bytes(16)
    answer = send(running, request.SerializeToString())
    partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert partial.rejected_spans == 1
    assert "trace_id" in partial.error_message
    assert answer.receipt["ranges"] == [{"first": "0", "last": "1"}]
    assert metrics(running)["auditspan_spans_invalid_total",] == 1


@both
def test_an_over_long_value_is_kept_and_an_over_long_message_is_not(collector, send):
    running = collector("limits: {value_bytes: 100}")
    body = request_bytes(attributes=(("audit.action", "READ"), ("big", "x" * 10_000)))
    assert send(running, body).receipt["ranges"] == [{"first": "0", "last": "0"}]
    answer = send(running, request_bytes(attributes=(("audit.action", "READ"), ("big", "x" * (17 << 20)))))
    assert (answer.code, answer.retry) == ("RESOURCE_EXHAUSTED", None)
    assert metrics(running)["auditspan_spool_records",] == 1


@both
def test_a_token_opens_its_services_only(collector, tmp_path, send):
    text = SETTINGS.replace(
        "receiver:", f"receiver:\n  senders: [{{name: shop, token: {TOKEN}, services: ['shop-*']}}]"
    )
    running = service.build(config.parse(text, data=tmp_path, environ={}))
    running.start()
    try:
        assert send(running, request_bytes()).code == "UNAUTHENTICATED"
        assert (
            send(running, request_bytes(), token="another-token-of-32-characters--").code == "UNAUTHENTICATED"
        )
        answer = send(running, request_bytes(), token=TOKEN)
        assert answer.code == "PERMISSION_DENIED"
        assert "shop-*" in answer.message
        request = ExportTraceServiceRequest.FromString(request_bytes())
        request.resource_spans[0].resource.attributes.add(
            key="service.name"
        ).value.string_value = "shop-orders"
        assert send(running, request.SerializeToString(), token=TOKEN).code == "OK"
        assert metrics(running)["auditspan_spool_records",] == 1
    finally:
        running.stop(1)


@both
def test_a_full_spool_asks_to_come_back_and_keeps_what_it_has(collector, send):
    running = collector()
    number, answer = 0, None
    for number in range(200):
        big = (
            ("audit.action", "READ"),
            ("number", str(number)),
            *((f"k{n}", "x" * 60_000) for n in range(20)),
        )
        answer = send(running, request_bytes(attributes=big))
        if answer.code != "OK":
            break
    assert answer.code == "UNAVAILABLE"
    assert answer.retry >= 1
    assert "is full" in answer.message
    found = metrics(running)
    assert found["auditspan_spool_records",] == number > 10
    assert found["auditspan_spool_bytes",] <= found["auditspan_spool_capacity_bytes",]
    assert found["auditspan_commit_refused_requests_total", "spool_full"] == 1
    health = loopback.get(f"http://127.0.0.1:{running.metrics_port}/healthz")
    assert health.status_code == 503
    assert "is full" in health.text


def test_json_and_protobuf_of_one_request_are_one_record(collector):
    running = collector()
    body = request_bytes(spans=2)
    text = json_format.MessageToDict(ExportTraceServiceRequest.FromString(body))
    first = send_http(running, body)
    spans = ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans
    for written, span in zip(text["resourceSpans"][0]["scopeSpans"][0]["spans"], spans, strict=True):
        # OTLP/JSON writes ids in hex, proto-JSON in base64.
        written["traceId"], written["spanId"] = span.trace_id.hex(), span.span_id.hex()
    second = send_http(running, json.dumps(text).encode(), media_type="application/json")
    assert first.receipt["duplicates"] == "0"
    assert second.receipt["duplicates"] == "2"
    assert (
        send_http(running, b'{"resourceSpans": 5}', media_type="application/json").code == "INVALID_ARGUMENT"
    )


def test_many_clients_at_once_get_receipts_that_do_not_overlap(collector):
    running = collector()
    receipts, lock = [], threading.Lock()

    def client(number):
        send = (send_grpc, send_http)[number % 2]
        for turn in range(10):
            answer = send(running, request_bytes(spans=3, name=f"{number}-{turn}"))
            with lock:
                receipts.append(answer.receipt)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    indexes = sorted(
        index
        for receipt in receipts
        for kept in receipt["ranges"]
        for index in range(int(kept["first"]), int(kept["last"]) + 1)
    )
    assert indexes == list(range(8 * 10 * 3))


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_stock_opentelemetry_sdk_is_accepted_and_answered(collector, transport):
    running = collector()
    url = (
        f"http://127.0.0.1:{running.grpc_port}"
        if transport == "grpc"
        else f"http://127.0.0.1:{running.http_port}/v1/traces"
    )
    done = subprocess.run(
        [sys.executable, STOCK_APP, transport, url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "SUCCESS\n"), done.stderr
    found = metrics(running)
    assert found["auditspan_spans_received_total",] == 20
    assert found["auditspan_records_kept_total",] == 5


def test_health_is_serving_while_the_collector_runs(collector):
    running = collector()
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (
            health.Check(health_pb2.HealthCheckRequest(), timeout=10).status
            == health_pb2.HealthCheckResponse.SERVING
        )
    assert loopback.get(f"http://127.0.0.1:{running.metrics_port}/healthz").status_code == 200
    assert loopback.get(f"http://127.0.0.1:{running.metrics_port}/").status_code == 404


def test_health_says_when_commits_fail_and_when_they_work_again():
    told = []
    health = service.Health()
    assert health.problem() == "starting"
    health.on_change(told.append)
    health.failed(OSError("disk"))
    health.failed(OSError("disk"))
    assert health.problem() == "the last commit to the spool failed: disk"
    health.committed()
    health.stopping()
    health.committed()
    assert health.problem() == "stopping"
    assert told == [True, False, True, False]


def full():
    return SpoolFull("spool /s can't be written: no space left; free disk space", retry_after_s=5)


def test_a_full_disk_is_said_until_nobody_has_tried_for_a_while(caplog):
    now, timers, told = [100.0], [], []
    health = service.Health(clock=lambda: now[0], later=lambda delay_s, call: timers.append((delay_s, call)))
    health.on_change(told.append)
    health.failed(full())
    now[0] += 10
    health.failed(full(), requests=4)
    assert "free disk space" in health.problem()
    (first,) = timers
    now[0] += 5
    first[1]()  # the last refusal was 5 s ago
    assert "free disk space" in health.problem()
    assert [delay_s for delay_s, _ in timers] == [15, 10]
    now[0] += 10
    timers[1][1]()
    assert health.problem() == ""
    assert told == [True, False, True]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_log_says_once_that_refusing_begins_and_once_that_it_ended(caplog):
    caplog.set_level("INFO")
    now = [100.0]
    health = service.Health(clock=lambda: now[0], later=lambda *_: None)
    health.on_change(lambda _: None)
    for _ in range(3):  # commits of little and of much take turns for half a minute
        health.failed(full())
        health.failed(full(), requests=2)
        now[0] += 10
        health.committed()
    assert health.problem() == ""
    assert caplog.messages == [
        "records are refused, senders keep them and try again: spool /s can't be written: no space left; free disk space",
        "records are taken again; 3 requests were refused in 10 s",
    ]


def test_what_was_kept_is_there_after_a_restart_in_the_same_stream(collector):
    first = collector()
    assert send_grpc(first, request_bytes(spans=3)).code == "OK"
    stream = first.stream
    first.stop(1)
    second = collector()
    assert second.stream == stream
    assert metrics(second)["auditspan_spool_records",] == 3
    assert send_grpc(second, request_bytes(spans=4)).receipt == {
        "stream": stream,
        "ranges": [{"first": "3", "last": "3"}],
        "duplicates": "3",
    }


def test_a_stopped_collector_has_freed_its_ports_and_its_spool(collector, tmp_path):
    running = collector()
    ports = (running.grpc_port, running.http_port, running.metrics_port)
    running.stop(1)
    for port in ports:
        with socket.create_server(("127.0.0.1", port)):
            pass
    settings = config.parse(SETTINGS, data=tmp_path, environ={})
    Spool.open(settings.spool, "default", "again").close()


@pytest.mark.parametrize(
    "setting", ["receiver.grpc.listen", "receiver.http.listen", "telemetry.metrics_listen"]
)
def test_a_port_in_use_is_one_line_and_leaves_nothing_running(collector, tmp_path, setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        changed = {
            "receiver.grpc.listen": SETTINGS.replace(
                'grpc: {listen: "127.0.0.1:0"}', f'grpc: {{listen: "{address}"}}'
            ),
            "receiver.http.listen": SETTINGS.replace(
                'http: {listen: "127.0.0.1:0"}', f'http: {{listen: "{address}"}}'
            ),
            "telemetry.metrics_listen": SETTINGS.replace(
                'metrics_listen: "127.0.0.1:0"', f'metrics_listen: "{address}"'
            ),
        }[setting]
        before = set(threading.enumerate())
        with pytest.raises(ConfigError, match=f"^{setting}: {address} is in use by another process"):
            service.build(config.parse(changed, data=tmp_path, environ={})).start()
        wait_until(lambda: set(threading.enumerate()) <= before, what="the end of all threads")
    collector()  # the spool is free again


def test_a_spool_in_use_is_one_line_and_leaves_the_other_unharmed(collector):
    running = collector()
    with pytest.raises(SpoolInUse, match="is in use by process"):
        collector()
    assert send_grpc(running, request_bytes()).code == "OK"


def test_a_slow_scraper_does_not_hold_up_the_stop(collector):
    running = collector()
    with socket.create_connection(("127.0.0.1", running.metrics_port)) as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.1\r\n")
        running.stop(1)


def test_gzip_over_http_reaches_the_spool(collector):
    running = collector()
    headers = {"content-type": "application/x-protobuf", "content-encoding": "gzip"}
    body = gzip.compress(request_bytes(spans=2))
    answer = loopback.post(f"http://127.0.0.1:{running.http_port}/v1/traces", content=body, headers=headers)
    assert json.loads(answer.headers["auditspan-receipt"])["ranges"] == [{"first": "0", "last": "1"}]
