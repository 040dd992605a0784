"""OTLP/HTTP as a client sees it."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
import socket
import ssl
import threading
import zlib

import httpx
import loopback
import pytest
from auditspan_collector.errors import (
    ConfigError,
    InvalidRequest,
    PermissionDenied,
    ShuttingDown,
    SpoolFull,
    TooLarge,
)
from auditspan_collector.receiver import Config
from auditspan_collector.receiver.config import HttpConfig, SenderConfig, TlsConfig
from auditspan_collector.receiver.http import HttpReceiver, inflate
from auditspan_collector.receiver.senders import Senders
from auditspan_collector.record import Accepted
from collector.service.otlp_peer import RECEIPT_JSON, TLS_FILES, Counting, Kept, request_bytes, wait_until
from google.protobuf import json_format
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

PROTOBUF, JSON = "application/x-protobuf", "application/json"
TOKEN = "a-token-of-32-characters-exactly"


def post(running, body=b"", *, media_type=PROTOBUF, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return loopback.post(running.url, content=body, headers={"content-type": media_type, **named}, timeout=30)


def parsed(answer, message):
    """*answer* as *message*, in whichever encoding it came."""
    if answer.headers["content-type"] == JSON:
        return json_format.Parse(answer.text, message, ignore_unknown_fields=True)
    assert answer.headers["content-type"] == PROTOBUF
    message.ParseFromString(answer.content)
    return message


def status_of(answer):
    return parsed(answer, status_pb2.Status())


@pytest.mark.parametrize(
    ("media_type", "encoding"),
    [
        (PROTOBUF, "protobuf"),
        (JSON, "json"),
        ("application/json; charset=utf-8", "json"),
        ("Application/JSON", "json"),
    ],
)
@pytest.mark.parametrize("coding", ["identity", "gzip", None])
def test_the_body_arrives_as_it_was_sent_and_the_answer_has_its_encoding(
    receivers, media_type, encoding, coding
):
    running = receivers()
    body = request_bytes(spans=50)
    sent = gzip.compress(body) if coding == "gzip" else body
    answer = post(running, sent, media_type=media_type, **({"content_encoding": coding} if coding else {}))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == (JSON if encoding == "json" else PROTOBUF)
    assert parsed(answer, ExportTraceServiceResponse()) == ExportTraceServiceResponse()
    assert json.loads(answer.headers["auditspan-receipt"]) == RECEIPT_JSON
    (request,) = running.kept.requests
    assert (request.body, request.encoding, request.peer) == (body, encoding, "127.0.0.1")
    assert running.metrics.outcomes == {("http", "ok"): 1}


def test_a_chunked_body_is_taken(receivers):
    running = receivers()
    body = request_bytes(spans=100)
    pieces = (body[start : start + 100] for start in range(0, len(body), 100))
    assert loopback.post(running.url, content=pieces, headers={"content-type": PROTOBUF}).status_code == 200
    assert running.kept.requests[0].body == body


def test_a_forwarding_header_does_not_change_the_peer(receivers):
    running = receivers()
    post(running, request_bytes(), x_forwarded_for="203.0.113.9", forwarded="for=203.0.113.9")
    assert running.kept.requests[0].peer == "127.0.0.1"


@pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
def test_rejected_spans_are_counted_and_named_in_partial_success(receivers, media_type):
    answer = post(
        receivers(Kept(Accepted(None, rejected=2, problem="span 00: no trace_id"))), media_type=media_type
    )
    assert "auditspan-receipt" not in answer.headers
    partial = parsed(answer, ExportTraceServiceResponse()).partial_success
    assert (partial.rejected_spans, partial.error_message) == (2, "span 00: no trace_id")
    if media_type == JSON:
        assert answer.json()["partialSuccess"]["rejectedSpans"] == "2", (
            "OTLP/JSON writes 64-bit numbers as text"
        )


@pytest.mark.parametrize("media_type", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    ("error", "http_status", "code", "message", "retry_after"),
    [
        (
            InvalidRequest("truncated", offset=17, field="resource_spans[0]"),
            400,
            3,
            "resource_spans[0] at byte 17: truncated",
            None,
        ),
        (TooLarge("too many"), 413, 8, "too many", None),
        (PermissionDenied("service billing"), 403, 7, "service billing", None),
        (SpoolFull("full", retry_after_s=7.5), 503, 14, "full", "8"),
        (ShuttingDown("stopping"), 503, 14, "stopping", "1"),
        (RuntimeError("s3cret"), 503, 14, "the collector failed; its log says why", "5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_is_a_status_in_the_encoding_of_the_request(  # noqa: PLR0917 - a table has columns
    receivers, media_type, error, http_status, code, message, retry_after
):
    running = receivers(Kept(error=error))
    answer = post(running, request_bytes(), media_type=media_type)
    assert answer.status_code == http_status
    assert answer.headers["content-type"] == media_type
    assert answer.headers.get("retry-after") == retry_after
    status = status_of(answer)
    assert (status.code, status.message) == (code, message)
    running.kept.error = None
    assert post(running, request_bytes()).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "http_status"),
    [
        ("GET", "/v1/traces", 405),
        ("PUT", "/v1/traces", 405),
        ("POST", "/v1/metrics", 404),
        ("POST", "/v1/logs", 404),
        ("GET", "/", 404),
        ("POST", "/v1/traces/../traces", 404),
    ],
)
def test_other_paths_and_methods_are_refused_in_the_same_form(receivers, method, path, http_status):
    running = receivers()
    with running.connect() as connection:
        connection.sendall(
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
        )
        answer = read_all(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % http_status)
    assert (b"\r\nallow: POST" in head) == (http_status == 405)
    assert "allowed: POST /v1/traces" in json.loads(body)["message"]
    assert running.kept.requests == []


def read_all(connection):
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/grpc", "", "application/x-protobuf-text", "multipart/form-data"]
)
def test_another_content_type_is_unsupported(receivers, media_type):
    running = receivers()
    answer = post(running, request_bytes(), media_type=media_type)
    assert answer.status_code == 415
    assert "application/x-protobuf and application/json" in status_of(answer).message
    assert running.kept.requests == []


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd"])
def test_another_content_encoding_is_unsupported(receivers, coding):
    running = receivers()
    answer = post(running, request_bytes(), content_encoding=coding)
    assert answer.status_code == 415
    assert answer.headers["accept-encoding"] == "gzip"
    assert running.kept.requests == []


@pytest.mark.parametrize(
    ("authorization", "words"),
    [
        (None, "no credential"),
        ("Bearer wrong-token-of-32-characters--", "unknown token"),
        (f"Basic {TOKEN}", "another scheme"),
    ],
    ids=["none", "wrong", "basic"],
)
def test_without_a_known_token_nothing_gets_in(receivers, authorization, words):
    running = receivers(senders=(SenderConfig(name="orders", token=TOKEN),))
    answer = post(running, request_bytes(), **({"authorization": authorization} if authorization else {}))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    status = status_of(answer)
    assert status.code == 16
    assert words in status.message
    assert running.kept.requests == []
    assert post(running, request_bytes(), authorization=f"Bearer {TOKEN}").status_code == 200
    assert running.kept.requests[0].sender.name == "orders"


def test_a_body_over_the_limit_is_refused_by_its_announced_length(receivers):
    running = receivers(max_message_bytes=100_000)
    with running.connect() as connection:
        connection.sendall(head(f"content-length: {1 << 40}"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
    assert post(running, bytes(100_001)).status_code == 413
    assert running.kept.requests == []
    assert post(running, bytes(100_000)).status_code == 200


def head(*lines):
    return "\r\n".join(
        ["POST /v1/traces HTTP/1.1", "host: localhost", f"content-type: {PROTOBUF}", *lines, "", ""]
    ).encode()


def test_a_chunked_body_is_refused_at_the_first_byte_over_the_limit(receivers):
    running = receivers(max_message_bytes=100_000)
    sent = 0

    def send_for_ever():
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"2710\r\n" + bytes(10_000) + b"\r\n")
                sent += 10_000

    with running.connect() as connection:
        connection.sendall(head("transfer-encoding: chunked"))
        sender = threading.Thread(target=send_for_ever)
        sender.start()
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
        connection.shutdown(socket.SHUT_RDWR)
        sender.join(10)
    assert sent >= 100_000
    assert running.kept.requests == []


@pytest.mark.parametrize("members", [1, 64], ids=["one member", "many members"])
def test_a_gzip_bomb_is_refused_without_being_inflated(receivers, members):
    running = receivers()
    bomb = gzip.compress(bytes((1 << 28) // members)) * members
    assert len(bomb) < 2 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = post(running, bomb, content_encoding="gzip")
    assert answer.status_code == 413
    assert "inflates to more than 16777216 bytes" in status_of(answer).message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert running.kept.requests == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cut short"),
        (b"\x0a\x00", "not gzip"),
        (gzip.compress(b"x" * 5000)[:-9], "cut short"),
        (gzip.compress(b"x" * 5000) + b"tail", "not gzip"),
        (gzip.compress(b"x" * 5000)[:-8] + bytes(8), "not gzip"),
        (zlib.compress(b"x"), "not gzip"),
    ],
    ids=["empty", "plain", "truncated", "tail", "checksum", "zlib"],
)
def test_what_is_not_gzip_is_invalid(receivers, body, words):
    running = receivers()
    answer = post(running, body, content_encoding="gzip")
    assert answer.status_code == 400
    assert words in status_of(answer).message
    assert running.kept.requests == []


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_inflate_undoes_gzip_of_any_members(parts):
    whole = b"".join(parts)
    packed = b"".join(gzip.compress(part) for part in parts)
    assert inflate(packed, len(whole)) == whole
    if whole:
        with pytest.raises(TooLarge):
            inflate(packed, len(whole) - 1)


def test_all_bodies_together_are_bounded_and_the_refused_one_may_come_again(receivers):
    running = receivers(max_message_bytes=65_536)
    waiting = []
    try:
        for _ in range(16):  # sixteen clients that sent all but the last byte
            connection = running.connect()
            connection.sendall(head("content-length: 65536") + bytes(65_535))
            waiting.append(connection)
        wait_until(lambda: running.http._endpoint._held_bytes == 16 * 65_535)
        answer = post(running, bytes(60_000))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        for connection in waiting:
            connection.sendall(b"\x00")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        for connection in waiting:
            connection.close()
    assert running.http._endpoint._held_bytes == 0
    assert post(running, bytes(60_000)).status_code == 200


def test_a_body_that_never_ends_is_given_up(receivers):
    running = receivers(http_settings={"read_timeout_s": 0.2})
    with running.connect() as connection:
        connection.sendall(head("content-length: 1000") + b"\x00")
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1\r\n" in answer
    assert post(running, request_bytes()).status_code == 200


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\n"], ids=["nothing", "half a head"]
)
def test_a_head_that_never_ends_is_given_up(receivers, sent):
    running = receivers(http_settings={"read_timeout_s": 0.2})
    with running.connect() as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(4096) == b""
    assert post(running, request_bytes()).status_code == 200


def test_a_refused_body_that_never_ends_is_given_up(receivers):
    running = receivers(http_settings={"read_timeout_s": 0.2})
    with running.connect() as connection:
        connection.sendall(head(f"content-length: {1 << 40}") + b"\x00")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"\x00")
            read_all(connection)  # ends, although the announced body never came


def test_connections_beyond_the_limit_are_told_to_come_back(receivers):
    running = receivers(http_settings={"max_connections": 3})
    idle = [running.connect() for _ in range(3)]
    try:
        wait_until(lambda: len(running.http._server.server_state.connections) == 3)
        assert post(running, request_bytes()).status_code == 503
    finally:
        for connection in idle:
            connection.close()
    wait_until(lambda: post(running, request_bytes()).status_code == 200)


def test_hostile_bytes_leave_the_server_unharmed(receivers):
    running = receivers()
    noise = random.Random(7)
    attacks = [
        b"\x16\x03\x01\x02\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\ncontent-length: -1\r\nhost: localhost\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\nhost: localhost\r\n\r\n",
        b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        noise.randbytes(20_000),
    ]
    for attack in attacks:
        with running.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(attack)
            assert b" 200 " not in connection.recv(4096)
    assert running.kept.requests == []
    assert post(running, request_bytes()).status_code == 200


def test_thousands_of_headers_are_refused_and_the_next_request_is_answered(receivers):
    running = receivers()
    with running.connect() as connection:
        connection.sendall(head(*(f"x-header-{number}: {'v' * 20}" for number in range(5000))))
        with contextlib.suppress(ConnectionError):
            assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert running.kept.requests == []
    assert post(running, request_bytes()).status_code == 200


def test_a_client_that_goes_away_in_the_middle_harms_nobody(receivers):
    running = receivers()
    with running.connect() as connection:
        connection.sendall(head("content-length: 1000") + b"\x00")
        wait_until(lambda: running.http._endpoint._held_bytes == 1)
    wait_until(lambda: running.metrics.outcomes["http", "disconnected"] == 1)
    assert running.http._endpoint._held_bytes == 0
    assert post(running, request_bytes()).status_code == 200


def test_a_running_request_is_answered_while_the_listener_stops(receivers):
    entered, released = threading.Event(), threading.Event()

    def slow(_request):
        entered.set()
        assert released.wait(10)
        return Accepted(None)

    running = receivers(slow, own=True)
    with running.connect() as connection:
        connection.sendall(head("content-length: 0"))
        assert entered.wait(10)
        stopping = threading.Thread(target=running.http.stop, args=(10,))
        stopping.start()
        wait_until(lambda: running.http._server.should_exit)
        released.set()
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    stopping.join(10)
    assert not stopping.is_alive()
    with pytest.raises(ConnectionRefusedError):
        running.connect()


def test_a_port_in_use_is_one_clear_line(receivers):
    running = receivers()
    config = Config(http=HttpConfig(listen=f"127.0.0.1:{running.http.port}"))
    with pytest.raises(
        ConfigError, match=r"^receiver\.http\.listen: 127\.0\.0\.1:\d+ is in use by another process"
    ):
        HttpReceiver(config, Senders(config), Kept(), Counting()).start()


def tls(**more):
    return TlsConfig(cert_file=str(TLS_FILES / "server.pem"), key_file=str(TLS_FILES / "server.key"), **more)


def test_with_tls_only_encrypted_clients_get_an_answer(receivers):
    running = receivers(tls=tls())
    with pytest.raises(httpx.TransportError):
        post(running, request_bytes())
    url = running.url.replace("http:", "https:")
    trusting = ssl.create_default_context(cafile=str(TLS_FILES / "ca.pem"))
    assert (
        loopback.post(
            url, content=request_bytes(), headers={"content-type": PROTOBUF}, verify=trusting
        ).status_code
        == 200
    )


def test_with_a_client_authority_only_its_clients_get_in(receivers):
    running = receivers(tls=tls(client_ca_file=str(TLS_FILES / "ca.pem")))
    url = running.url.replace("http:", "https:")
    context = ssl.create_default_context(cafile=str(TLS_FILES / "ca.pem"))
    with pytest.raises(httpx.TransportError):
        loopback.post(url, content=request_bytes(), headers={"content-type": PROTOBUF}, verify=context)
    context.load_cert_chain(TLS_FILES / "client.pem", TLS_FILES / "client.key")
    assert (
        loopback.post(
            url, content=request_bytes(), headers={"content-type": PROTOBUF}, verify=context
        ).status_code
        == 200
    )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"cert_file": "missing.pem", "key_file": "server.key"},
            "receiver.tls.cert_file: .*missing.pem can't be read",
        ),
        (
            {"cert_file": "server.pem", "key_file": "client.key"},
            "receiver.tls.key_file: .*no unencrypted PEM key of",
        ),
        ({"cert_file": "server.key", "key_file": "server.key"}, "receiver.tls.key_file"),
        (
            {"cert_file": "server.pem", "key_file": "server.key", "client_ca_file": "server.key"},
            "receiver.tls.client_ca_file: .*no PEM certificate",
        ),
    ],
    ids=["missing", "another's key", "no certificate", "no authority"],
)
def test_a_certificate_that_does_not_work_is_one_clear_line(files, words):
    config = Config(
        http=HttpConfig(listen="127.0.0.1:0"),
        tls=TlsConfig(**{name: str(TLS_FILES / file) for name, file in files.items()}),
    )
    with pytest.raises(ConfigError, match=words) as caught:
        HttpReceiver(config, Senders(config), Kept(), Counting()).start()
    assert "\n" not in str(caught.value)


# Web pages


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example", "origin": "http://evil.example", "sec_fetch_site": "same-origin"},
        {"host": "evil.example:4318"},
        {"host": "127.0.0.1.evil.example"},
    ],
    ids=["rebound", "rebound without an origin", "looks like an address"],
)
def test_a_page_whose_name_resolves_to_this_machine_is_refused(receivers, headers):
    running = receivers()
    answer = post(running, request_bytes(), **headers)
    assert answer.status_code == 421
    assert "receiver.http.hosts" in status_of(answer).message
    assert running.kept.requests == []
    assert running.metrics.outcomes == {("http", "foreign_page"): 1}


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_page_of_another_site_is_refused(receivers, headers):
    running = receivers()
    assert post(running, request_bytes(), **headers).status_code == 403
    assert running.kept.requests == []


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:4318", "127.0.0.1", "127.8.8.8:1", "[::1]:4318"])
def test_this_machine_has_several_names(receivers, host):
    assert post(receivers(), request_bytes(), host=host).status_code == 200


def test_an_operator_may_name_more_hosts(receivers):
    running = receivers(http_settings={"hosts": ("host.docker.internal",)})
    assert post(running, request_bytes(), host="host.docker.internal:4318").status_code == 200
    assert post(running, request_bytes(), host="evil.example:4318").status_code == 421


def test_an_address_that_others_reach_serves_programs_by_any_name_and_pages_by_none(receivers):
    running = receivers(http_settings={"listen": "0.0.0.0:0"}, anonymous="accept")
    assert post(running, request_bytes(), host="collector.audit.svc:4318").status_code == 200
    assert post(running, request_bytes(), host="10.0.0.7:4318").status_code == 200
    page = {"host": "evil.example", "origin": "http://evil.example"}
    assert post(running, request_bytes(), **page).status_code == 421


def test_a_body_of_many_gzip_members_is_refused_in_time():
    members = gzip.compress(b"", mtime=0) * 50_000
    with pytest.raises(TooLarge, match="256 gzip members"):
        inflate(members, 1 << 20)


def test_a_few_gzip_members_are_one_body_wherever_they_end():
    pieces = [bytes([number]) * (40_000 + number) for number in range(64)]
    noise = random.Random(3).randbytes(300_000)
    body = b"".join(gzip.compress(piece) for piece in [*pieces, noise, b"", noise])
    assert inflate(body, 1 << 24) == b"".join([*pieces, noise, noise])
