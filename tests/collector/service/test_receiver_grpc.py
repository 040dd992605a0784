"""OTLP/gRPC as a client sees it."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import threading
import time

import grpc
import pytest
from auditspan_collector.errors import (
    ConfigError,
    InvalidRequest,
    PermissionDenied,
    ShuttingDown,
    SpoolDamaged,
    SpoolFull,
    StoreUnavailable,
    TooLarge,
)
from auditspan_collector.receiver import Config, calls
from auditspan_collector.receiver.answers import receipt_text
from auditspan_collector.receiver.config import GrpcConfig, TlsConfig
from auditspan_collector.receiver.grpc import SERVICE, GrpcReceiver, host_of
from auditspan_collector.receiver.senders import Senders
from auditspan_collector.record import Accepted, IndexRange, Receipt
from auditspan_proto.v1 import ledger_pb2
from collector.service.otlp_peer import (
    RECEIPT,
    RECEIPT_JSON,
    TLS_FILES,
    Counting,
    Kept,
    request_bytes,
    wait_until,
)
from google.protobuf import json_format
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

TOKEN = "a-token-of-32-characters-exactly"
SENDER = {"name": "orders", "token": TOKEN, "tenant": "shop", "services": ("orders-*",), "instrumented": True}


@pytest.fixture(scope="module", params=[False, True], ids=["no threads", "threads"])
def threads_for_all(request):
    return request.param


def sender_config():
    from auditspan_collector.receiver.config import SenderConfig

    return (SenderConfig(**SENDER),)


def refused(receivers, body=b"", **kwargs):
    """The error that a client gets."""
    with pytest.raises(grpc.RpcError) as caught:
        receivers.export(body, **kwargs)
    return caught.value


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_the_body_arrives_as_it_was_sent_and_the_receipt_comes_back_in_the_trailers(receivers, compression):
    running = receivers()
    body = request_bytes(spans=50)
    answer, trailers = running.export(body, compression=compression)
    assert answer == b""
    assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
    assert json.loads(trailers["auditspan-receipt"]) == RECEIPT_JSON
    (request,) = running.kept.requests
    assert request.body == body
    assert request.encoding == "protobuf"
    assert request.peer == "127.0.0.1"
    assert request.received_unix_ns > 1_700_000_000 * 10**9
    assert running.metrics.outcomes == {("grpc", "ok"): 1}


def test_a_request_without_records_has_no_receipt_and_no_partial_success(receivers):
    answer, trailers = receivers(Kept(Accepted(None))).export(request_bytes())
    assert answer == b""
    assert "auditspan-receipt" not in trailers


def test_rejected_spans_are_counted_and_named_in_partial_success(receivers):
    answer, _ = receivers(Kept(Accepted(None, rejected=2, problem="span 00: trace_id is all zeroes"))).export(
        b""
    )
    partial = ExportTraceServiceResponse.FromString(answer).partial_success
    assert partial.rejected_spans == 2
    assert partial.error_message == "span 00: trace_id is all zeroes"


@pytest.mark.parametrize(
    ("error", "code", "message", "retry_s", "outcome"),
    [
        (
            InvalidRequest("truncated", offset=17, field="resource_spans[0]"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "resource_spans[0] at byte 17: truncated",
            None,
            "invalid_request",
        ),
        (TooLarge("too many"), grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", None, "too_large"),
        (
            PermissionDenied("service billing"),
            grpc.StatusCode.PERMISSION_DENIED,
            "service billing",
            None,
            "permission_denied",
        ),
        (SpoolFull("full", retry_after_s=7.5), grpc.StatusCode.UNAVAILABLE, "full", 7.5, "spool_full"),
        (ShuttingDown("stopping"), grpc.StatusCode.UNAVAILABLE, "stopping", 1.0, "shutting_down"),
        (SpoolDamaged("/x: bad"), grpc.StatusCode.UNAVAILABLE, "its log says why", 5.0, "internal"),
        (StoreUnavailable("no"), grpc.StatusCode.UNAVAILABLE, "its log says why", 5.0, "internal"),
        (RuntimeError("s3cret"), grpc.StatusCode.UNAVAILABLE, "its log says why", 5.0, "internal"),
        (MemoryError(), grpc.StatusCode.UNAVAILABLE, "its log says why", 5.0, "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_has_its_status_and_only_transient_ones_invite_a_retry(  # noqa: PLR0917 - a table has columns
    receivers, error, code, message, retry_s, outcome, caplog
):
    running = receivers(Kept(error=error))
    answer = refused(running, request_bytes())
    assert answer.code() is code
    assert message in answer.details()
    assert "s3cret" not in answer.details()
    status = rpc_status.from_call(answer)
    if retry_s is None:
        assert not status.details
    else:
        retry = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() == retry_s * 10**9
    assert running.metrics.outcomes == {("grpc", outcome): 1}
    # Ours to mend, so in the log with its stack; a client's mistake would only fill the log.
    assert any(entry.exc_info for entry in caplog.records) == (outcome == "internal")
    running.kept.error = None
    running.export(request_bytes())


def test_a_message_over_the_limit_is_refused_without_a_retry_hint(receivers):
    running = receivers(max_message_bytes=100_000)
    answer = refused(running, b"\x00" * 100_001)
    assert answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rpc_status.from_call(answer) is None
    assert running.kept.requests == []
    running.export(b"\x00" * 100_000)


def test_a_gzip_bomb_is_refused_without_being_inflated(receivers):
    running = receivers()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sender = subprocess.run(
        [sys.executable, "-c", BOMB, str(running.grpc.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "RESOURCE_EXHAUSTED" in sender.stdout, sender.stderr
    assert running.kept.requests == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    running.export(request_bytes())


BOMB = """
import sys, grpc
channel = grpc.insecure_channel("127.0.0.1:" + sys.argv[1], options=[("grpc.max_send_message_length", -1)])
call = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
try:
    call(bytes(1 << 28), compression=grpc.Compression.Gzip, timeout=50)
except grpc.RpcError as error:
    print(error.code())
"""


@pytest.mark.parametrize(
    "method",
    [
        f"/{SERVICE}/Delete",
        "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
def test_other_services_and_methods_are_unimplemented(receivers, method):
    running = receivers()
    assert refused(running, request_bytes(), method=method).code() is grpc.StatusCode.UNIMPLEMENTED
    assert running.kept.requests == []


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ((), "no credential"),
        ((("authorization", "Bearer wrong-token-of-32-characters--"),), "unknown token"),
        ((("authorization", f"Basic {TOKEN}"),), "another scheme"),
        ((("authorization", ""),), "another scheme"),
        ((("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer x")), "more than one"),
    ],
    ids=["none", "wrong", "basic", "empty", "two"],
)
def test_without_a_known_token_nothing_gets_in(receivers, metadata, words):
    running = receivers(senders=sender_config())
    answer = refused(running, request_bytes(), metadata=metadata)
    assert answer.code() is grpc.StatusCode.UNAUTHENTICATED
    assert words in answer.details()
    assert TOKEN not in answer.details()
    assert running.kept.requests == []
    assert running.metrics.outcomes == {("grpc", "unauthenticated"): 1}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_token_names_its_sender(receivers, scheme):
    running = receivers(senders=sender_config())
    running.export(request_bytes(), metadata=(("authorization", f"{scheme} {TOKEN}"),))
    sender = running.kept.requests[0].sender
    assert (sender.name, sender.tenant, sender.services, sender.instrumented) == (
        "orders",
        "shop",
        ("orders-*",),
        True,
    )


def health(running, service=""):
    return (
        health_pb2_grpc.HealthStub(running.channel())
        .Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        .status
    )


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_serving_until_told_otherwise(receivers, service):
    running = receivers(own=True)
    assert health(running, service) == health_pb2.HealthCheckResponse.SERVING
    running.grpc.serving(False)
    assert health(running, service) == health_pb2.HealthCheckResponse.NOT_SERVING
    running.grpc.serving(True)
    assert health(running, service) == health_pb2.HealthCheckResponse.SERVING


def test_whoever_watches_health_hears_of_the_stop_and_the_running_request_is_answered(receivers):
    entered, released = threading.Event(), threading.Event()

    def slow(_request):
        entered.set()
        assert released.wait(10)
        return Accepted(None)

    running = receivers(slow, own=True)
    watch = health_pb2_grpc.HealthStub(running.channel()).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    export = running.channel().unary_unary(f"/{SERVICE}/Export").future(request_bytes(), timeout=30)
    assert entered.wait(10)
    stopping = threading.Thread(target=running.grpc.stop, args=(10,))
    stopping.start()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    released.set()
    assert export.result() == b""
    stopping.join(10)
    assert not stopping.is_alive()


def test_hostile_bytes_on_the_port_leave_the_server_unharmed(receivers):
    import socket

    running = receivers()
    noise = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for attack in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02",
        preface + noise.randbytes(4096),
        noise.randbytes(4096),
    ):
        with socket.create_connection(("127.0.0.1", running.grpc.port), timeout=10) as connection:
            connection.sendall(attack)
    running.export(request_bytes())


def test_thousands_of_headers_are_refused_and_the_next_request_is_answered(receivers):
    running = receivers()
    headers = tuple((f"x-header-{number}", "v" * 20) for number in range(5000))
    assert refused(running, request_bytes(), metadata=headers).code() in (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
    )
    running.export(request_bytes())


def test_a_client_that_goes_away_harms_nobody(receivers):
    entered, released = threading.Event(), threading.Event()

    def slow(_request):
        entered.set()
        assert released.wait(10)
        return Accepted(None)

    running = receivers(slow, own=True)
    call = running.channel().unary_unary(f"/{SERVICE}/Export").future(request_bytes(), timeout=30)
    assert entered.wait(10)
    call.cancel()
    released.set()
    wait_until(lambda: running.metrics.outcomes["grpc", "ok"] == 1)
    running.export(request_bytes())


def test_requests_beyond_the_threads_wait_and_are_answered(receivers):
    running = receivers(grpc_settings={"threads": 2})
    call = running.channel().unary_unary(f"/{SERVICE}/Export")
    pending = [call.future(request_bytes(), timeout=30) for _ in range(50)]
    assert [each.result() for each in pending] == [b""] * 50


def test_a_port_in_use_is_one_clear_line(receivers):
    running = receivers()
    config = Config(grpc=GrpcConfig(listen=f"127.0.0.1:{running.grpc.port}"))
    second = GrpcReceiver(config, Senders(config), Kept(), Counting())
    with pytest.raises(
        ConfigError, match=r"^receiver\.grpc\.listen: 127\.0\.0\.1:\d+ is in use by another process"
    ):
        second.start()
    second.stop(0)


def test_an_address_of_another_machine_is_one_clear_line():
    config = Config(grpc=GrpcConfig(listen="192.0.2.1:0"), anonymous="accept")
    receiver = GrpcReceiver(config, Senders(config), Kept(), Counting())
    with pytest.raises(ConfigError, match=r"^receiver\.grpc\.listen: 192\.0\.2\.1:0 can't be listened on"):
        receiver.start()
    receiver.stop(0)


def secure_channel(running, *, client=False):
    pair = (
        [(TLS_FILES / f"client.{kind}").read_bytes() for kind in ("key", "pem")] if client else [None, None]
    )
    credentials = grpc.ssl_channel_credentials((TLS_FILES / "ca.pem").read_bytes(), *pair)
    return grpc.secure_channel(f"localhost:{running.grpc.port}", credentials)


def tls(**more):
    return TlsConfig(cert_file=str(TLS_FILES / "server.pem"), key_file=str(TLS_FILES / "server.key"), **more)


def test_with_tls_a_plain_client_gets_nothing_and_an_encrypted_one_an_answer(receivers):
    running = receivers(tls=tls())
    assert refused(running, request_bytes()).code() is grpc.StatusCode.UNAVAILABLE
    with secure_channel(running) as channel:
        assert channel.unary_unary(f"/{SERVICE}/Export")(request_bytes(), timeout=10) == b""


def test_with_a_client_authority_only_its_clients_get_in(receivers):
    running = receivers(tls=tls(client_ca_file=str(TLS_FILES / "ca.pem")))
    with secure_channel(running) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{SERVICE}/Export")(request_bytes(), timeout=10)
    assert running.kept.requests == []
    with secure_channel(running, client=True) as channel:
        assert channel.unary_unary(f"/{SERVICE}/Export")(request_bytes(), timeout=10) == b""


def test_a_receipt_is_the_message_that_the_proto_file_defines():
    for receipt in (RECEIPT, Receipt("a/b/c", (), 0), Receipt("\u00e9", (IndexRange(0, (1 << 64) - 1),), 1)):
        parsed = json_format.Parse(receipt_text(receipt), ledger_pb2.Receipt())
        assert parsed == ledger_pb2.Receipt(
            stream=receipt.stream,
            ranges=[ledger_pb2.IndexRange(first=each.first, last=each.last) for each in receipt.ranges],
            duplicates=receipt.duplicates,
        )
        assert receipt_text(receipt).isascii()


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "::1"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0"),
    ],
)
def test_the_peer_is_the_connections_address_without_its_port(peer, host):
    assert host_of(peer) == host


class HalfOpen:
    """Calls that begin and never send their message."""

    def __init__(self, running, *, method=f"/{SERVICE}/Export", metadata=()):
        self._released = threading.Event()
        self._call = running.channel().stream_unary(method)
        self._metadata = metadata
        self.calls = []  # one that nobody holds is cancelled

    def open(self, count):
        for _ in range(count):
            self.calls.append(self._call.future(self._silence(), metadata=self._metadata, timeout=60))
        return self.calls

    def _silence(self):
        self._released.wait(60)
        yield from ()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._released.set()


def test_calls_without_a_credential_hold_no_thread_whatever_they_leave_out(receivers):
    running = receivers(senders=sender_config(), grpc_settings={"threads": 2})
    with HalfOpen(running) as silent:
        for call in silent.open(20):
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        answer, _ = running.export(request_bytes(), metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert answer == b""


def test_calls_that_send_no_message_give_their_threads_to_those_that_do(receivers):
    running = receivers(grpc_settings={"threads": 2, "read_timeout_s": 30})
    with HalfOpen(running) as silent:
        calls = silent.open(3)
        wait_until(lambda: running.grpc._service._turns._taken == 3)
        assert running.export(request_bytes())[0] == b""
        assert health(running) == health_pb2.HealthCheckResponse.SERVING
        assert calls[0].code() is grpc.StatusCode.CANCELLED
    assert running.metrics.outcomes["grpc", "unread"] >= 2


def test_a_message_that_takes_too_long_ends_its_call_also_where_nobody_waits(receivers):
    running = receivers(grpc_settings={"read_timeout_s": 0.1})
    with HalfOpen(running) as silent:
        (call,) = silent.open(1)
        assert call.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: running.grpc._service._turns._taken == 0)


def test_a_call_too_many_is_asked_at_once_to_come_back(receivers):
    running = receivers(grpc_settings={"threads": 1, "max_requests": 1})
    with HalfOpen(running) as silent:
        silent.open(1)
        wait_until(lambda: running.grpc._service._turns._taken == 1)
        answer = refused(running, request_bytes())
    assert answer.code() is grpc.StatusCode.UNAVAILABLE
    assert rpc_status.from_call(answer).details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    wait_until(lambda: running.grpc._service._turns._taken == 0)
    running.export(request_bytes())


def test_health_checks_that_ask_nothing_do_not_keep_others_from_asking(receivers):
    running = receivers(own=True)
    with HalfOpen(running, method="/grpc.health.v1.Health/Check") as silent:
        silent.open(5)
        wait_until(lambda: running.grpc._health.checks._taken == 5)
        assert health(running) == health_pb2.HealthCheckResponse.SERVING
        assert running.export(request_bytes())[0] == b""


def test_a_call_that_ends_without_a_message_is_told_so(receivers):
    running = receivers()
    with pytest.raises(grpc.RpcError) as caught:
        running.channel().stream_unary(f"/{SERVICE}/Export")(iter(()), timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_installed_grpc_lets_calls_wait_without_threads():
    assert calls.supported()


def test_a_grpc_without_what_that_takes_is_known(monkeypatch):
    monkeypatch.delattr("grpc._server._status")
    assert not calls.supported()


def test_calls_that_wait_for_their_commit_hold_no_thread():
    config = Config(grpc=GrpcConfig(listen="127.0.0.1:0"))
    kept = []
    receiver = GrpcReceiver(
        config, Senders(config), Kept(), Counting(), offer=lambda _request, answer, **_: kept.append(answer)
    )
    receiver.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
            export = channel.unary_unary(f"/{SERVICE}/Export")
            before = threading.active_count()
            waiting = [export.future(request_bytes(), timeout=30) for _ in range(20)]
            wait_until(lambda: len(kept) == 20)
            assert threading.active_count() <= before + 2  # the channel's own
            for answer in kept:
                answer(Accepted(RECEIPT))
            assert [call.result() for call in waiting] == [b""] * 20
    finally:
        receiver.stop(0)


def test_the_time_that_a_call_waited_for_a_place_counts_as_waited():
    config = Config(grpc=GrpcConfig(listen="127.0.0.1:0", threads=1))
    kept = []
    receiver = GrpcReceiver(
        config,
        Senders(config),
        Kept(),
        Counting(),
        offer=lambda _request, answer, since_s: kept.append((answer, time.monotonic() - since_s)),
    )
    receiver.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
            export = channel.unary_unary(f"/{SERVICE}/Export")
            first = export.future(request_bytes(), timeout=30)
            wait_until(lambda: kept)
            second = export.future(request_bytes(), timeout=30)
            wait_until(lambda: receiver._service._turns._taken == 2)
            announced = time.monotonic()
            wait_until(lambda: time.monotonic() - announced > 0.3)
            kept[0][0](Accepted(RECEIPT))
            wait_until(lambda: len(kept) == 2)
            kept[1][0](Accepted(RECEIPT))
            assert [first.result(), second.result()] == [b"", b""]
            assert kept[1][1] >= 0.3
    finally:
        receiver.stop(0)


def test_clients_that_give_up_while_they_wait_for_a_place_keep_nobody_out(receivers):
    entered, released = threading.Event(), threading.Event()

    def slow(_request):
        entered.set()
        assert released.wait(10)
        return Accepted(None)

    running = receivers(slow, grpc_settings={"threads": 1})
    export = running.channel().unary_unary(f"/{SERVICE}/Export")
    first = export.future(request_bytes(), timeout=30)
    assert entered.wait(10)
    waiting = [export.future(request_bytes(), timeout=30) for _ in range(400)]
    wait_until(lambda: running.grpc._service._turns._taken == 401)
    for call in waiting:
        call.cancel()
    released.set()
    assert first.result() == b""
    running.kept = Kept()
    assert running.export(request_bytes())[0] == b""
    wait_until(lambda: running.grpc._service._turns._taken == 0)
