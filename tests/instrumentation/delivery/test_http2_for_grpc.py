"""The gRPC call in plain sockets: golden vectors of RFC 7541, and servers that do what a real one seldom does."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from auditspan.shipper import hpack, http2, otlp, protobuf
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

TYPE = {
    "data": 0,
    "headers": 1,
    "rst": 3,
    "settings": 4,
    "push": 5,
    "ping": 6,
    "goaway": 7,
    "window": 8,
    "more": 9,
}


def frame(kind: str, flags: int, stream: int, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", TYPE[kind], flags, stream) + content


OK_HEADERS = hpack.encode([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = hpack.encode([(b"grpc-status", b"0")])
MESSAGE = b"\0\0\0\0\3abc"
GOOD = frame("headers", 4, 1, OK_HEADERS) + frame("data", 0, 1, MESSAGE) + frame("headers", 5, 1, TRAILERS)


@contextlib.contextmanager
def scripted(answer: bytes, *, close: bool = True):
    """A server that reads until the request's end, says *answer*, and closes or waits for the client to close."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.settimeout(10)
            peer.sendall(frame("settings", 0, 0))
            received = b""
            while b"hello" not in received:
                received += peer.recv(65536)
            peer.sendall(answer)
            if not close:
                while piece := peer.recv(65536):
                    received += piece
        seen.append(received)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        thread.join(15)
        listener.close()


def call(port: int, timeout_s: float = 5.0) -> http2.Reply:
    connection = http2.Connection("127.0.0.1", port, None, timeout_s)
    try:
        return connection.call("/x.Y/Z", (("authorization", "Bearer s"),), b"hello", timeout_s)
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (  # RFC 7541 C.4: requests with Huffman coding and a dynamic table
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            [
                [":method GET", ":scheme http", ":path /", ":authority www.example.com"],
                [
                    ":method GET",
                    ":scheme http",
                    ":path /",
                    ":authority www.example.com",
                    "cache-control no-cache",
                ],
                [
                    ":method GET",
                    ":scheme https",
                    ":path /index.html",
                    ":authority www.example.com",
                    "custom-key custom-value",
                ],
            ],
        ),
        (  # C.2: every kind of literal
            ["400a637573746f6d2d6b65790d637573746f6d2d686561646572", "040c2f73616d706c652f70617468", "82"],
            [["custom-key custom-header"], [":path /sample/path"], [":method GET"]],
        ),
        (  # C.2.3: never indexed
            ["100870617373776f726406736563726574"],
            [["password secret"]],
        ),
    ],
    ids=["huffman", "literals", "never indexed"],
)
def test_header_blocks_of_the_rfc_are_read(blocks, expected):
    decoder = hpack.Decoder()
    for block, fields in zip(blocks, expected, strict=True):
        found = decoder.decode(bytes.fromhex(block))
        assert [f"{name.decode()} {value.decode()}" for name, value in found] == fields


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=10))
def test_written_fields_are_read_back(fields):
    assert hpack.Decoder().decode(hpack.encode(fields)) == fields


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.binary(max_size=200))
def test_any_header_block_is_read_or_refused(block):
    with contextlib.suppress(hpack.MalformedHeaders):
        hpack.Decoder().decode(block)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused(message):
    with contextlib.suppress(protobuf.Malformed):
        protobuf.read(message)


def test_the_answers_messages_are_read_as_the_protobuf_library_reads_them():
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1 << 40
    response.partial_success.error_message = "nö"
    assert otlp._taken(response.SerializeToString()) == otlp.Taken(1 << 40, "nö")
    response.partial_success.rejected_spans = -1
    assert otlp._taken(response.SerializeToString()) == otlp.Taken(0, "nö")

    delay, other = error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    delay.retry_delay.FromNanoseconds(2_500_000_000)
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="later")
    for detail in (other, delay):
        status.details.add().Pack(detail)
    assert otlp._retry_info({"grpc-status-details-bin": status.SerializeToString()}) == 2.5
    assert otlp._retry_info({"google.rpc.retryinfo-bin": delay.SerializeToString()}) == 2.5
    assert otlp._retry_info({"grpc-status-details-bin": b"\xff\xff"}) is None
    assert otlp._status_message(status.SerializeToString()) == ": later"


def test_grpc_s_codes_are_named_as_grpc_names_them():
    assert list(otlp._CODES) == [
        code.name for code in sorted(grpc.StatusCode, key=lambda code: code.value[0])
    ]


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        frame("ping", 0, 0, b"12345678") + frame("window", 0, 0, b"\0\0\1\0") + GOOD,
        frame("headers", 4, 1, hpack.encode([(b":status", b"103")])) + GOOD,
        frame("headers", 0, 1, OK_HEADERS[:9])
        + frame("more", 0, 1, OK_HEADERS[9:12])
        + frame("more", 4, 1, OK_HEADERS[12:])
        + GOOD.partition(OK_HEADERS)[2],
        frame("headers", 4 | 8 | 32, 1, b"\3" + bytes(5) + OK_HEADERS + bytes(3))
        + frame("data", 8, 1, b"\2" + MESSAGE + bytes(2))
        + frame("headers", 5, 1, TRAILERS),
        b"".join(
            [frame("headers", 4, 1, OK_HEADERS)]
            + [frame("data", 0, 1, MESSAGE[at : at + 1]) for at in range(len(MESSAGE))]
            + [frame("headers", 5, 1, TRAILERS)]
        ),
        frame("goaway", 0, 0, struct.pack(">II", 1, 0)) + GOOD,
        bytes([0, 0, 3, 0xBB, 0, 0, 0, 0, 0]) + b"new" + GOOD,
    ],
    ids=[
        "plain",
        "ping and window first",
        "informational first",
        "continued headers",
        "padding and priority",
        "byte by byte",
        "going away after this call",
        "an unknown frame type",
    ],
)
def test_every_legal_way_to_answer_is_understood(answer):
    with scripted(answer, close=False) as (port, seen):
        assert call(port) == http2.Reply(
            0, "", {"content-type": b"application/grpc", "grpc-status": b"0"}, b"abc"
        )
    assert seen[0].startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def test_trailers_only_answers_carry_code_message_and_binary_details():
    fields = [
        (b":status", b"200"),
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"14"),
        (b"grpc-message", b"full%3A n%C3%B6"),
        (b"grpc-status-details-bin", b"AQID/w"),
    ]
    with scripted(frame("headers", 5, 1, hpack.encode(fields))) as (port, _):
        reply = call(port)
    assert (reply.status, reply.message) == (14, "full: nö")
    assert reply.trailers["grpc-status-details-bin"] == b"\1\2\3\xff"


@pytest.mark.parametrize(
    ("status", "code"), [(401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2), (302, 2)]
)
def test_a_proxy_s_http_answer_is_translated(status, code):
    block = hpack.encode([(b":status", b"%d" % status), (b"content-type", b"text/html")])
    with scripted(frame("headers", 4, 1, block) + frame("data", 1, 1, b"<html>")) as (port, _):
        reply = call(port)
    assert reply.status == code
    assert f"HTTP {status} with text/html" in reply.message


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        GOOD[:-1],
        GOOD[:30],
        frame("headers", 4, 1, OK_HEADERS)
        + frame("data", 0, 1, MESSAGE[:-1])
        + frame("headers", 5, 1, TRAILERS),
        frame("headers", 4, 1, OK_HEADERS)
        + frame("data", 0, 1, b"\1" + MESSAGE[1:])
        + frame("headers", 5, 1, TRAILERS),
        frame("rst", 0, 1, struct.pack(">I", 7)),
        frame("goaway", 0, 0, struct.pack(">II", 0, 0)),
        frame("push", 4, 1, bytes(4) + OK_HEADERS),
        frame("settings", 0, 1),
        frame("settings", 0, 0, struct.pack(">HI", 4, 2**31)),
        frame("headers", 0, 1, OK_HEADERS) + GOOD,
        frame("headers", 4, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        frame("headers", 4, 1, hpack.encode([(b":status", b"abc")])),
        frame("headers", 4 | 8, 1, b"\xff" + OK_HEADERS),
        frame("window", 0, 1, b"\x7f\xff\xff\xff") + GOOD,
        frame("headers", 4, 1, OK_HEADERS) + frame("data", 0, 1, bytes(16384)) * 5,
        frame("headers", 0, 1, OK_HEADERS) + frame("more", 0, 1, bytes(16384)) * 5,
        b"\xff\xff\xff" + bytes(6),
    ],
    ids=[
        "closed at once",
        "HTTP/1.1",
        "cut at the end",
        "cut in the middle",
        "a message cut",
        "a compressed message",
        "reset",
        "going away before this call",
        "a push",
        "settings on a stream",
        "an impossible window",
        "headers not continued",
        "headers that are no HPACK",
        "no status",
        "too much padding",
        "a window overflow",
        "an endless answer",
        "endless headers",
        "an endless frame",
    ],
)
def test_every_broken_answer_ends_the_connection_with_an_error_and_nothing_else(answer):
    with scripted(answer) as (port, _):
        began = time.monotonic()
        with pytest.raises((OSError, hpack.MalformedHeaders)):
            call(port)
        assert time.monotonic() - began < 3


def test_an_answer_without_a_grpc_status_is_no_ok():
    with scripted(frame("headers", 4, 1, OK_HEADERS) + frame("data", 1, 1, MESSAGE)) as (port, _):
        assert call(port).status == 2


def test_a_server_that_stays_silent_costs_the_time_out_and_no_more():
    with scripted(b"", close=False) as (port, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            call(port, 0.3)
        assert 0.25 < time.monotonic() - began < 2


def test_a_server_that_trickles_does_not_stretch_the_time_out():
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            while True:
                peer.sendall(frame("ping", 1, 0, bytes(8)))
                time.sleep(0.02)

    thread = threading.Thread(target=trickle)
    thread.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        call(listener.getsockname()[1], 0.4)
    assert time.monotonic() - began < 2
    thread.join()
    listener.close()


class Echo:
    """A real gRPC server that gives the length of what it got, and its own limits."""

    def __init__(self, **options: object) -> None:
        self.server = grpc.server(ThreadPoolExecutor(2), options=list(options.items()))
        method = grpc.unary_unary_rpc_method_handler(lambda body, _: b"%d" % len(body))
        handlers = grpc.method_handlers_generic_handler("x.Y", {"Z": method})
        self.server.add_generic_rpc_handlers((handlers,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grpc.http2.lookahead_bytes": 100, "grpc.http2.bdp_probe": 0},
        {"grpc.http2.max_frame_size": 1 << 20},
    ],
    ids=["as it comes", "a small window", "large frames"],
)
def test_calls_of_every_size_pass_one_after_the_other_on_one_connection(options):
    echo = Echo(**{"grpc.max_receive_message_length": -1, **options})
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    for size in (0, 1, 16_379, 16_384, 65_535, 65_536, 1_000_000, 3_145_728, 7):
        assert connection.reusable()
        assert connection.call("/x.Y/Z", (), bytes(size), 10).body == b"%d" % size
    connection.close()
    echo.server.stop(None).wait()


def test_hundreds_of_calls_leave_the_connection_as_good_as_new():
    echo = Echo()
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    for number in range(500):
        assert connection.reusable()
        assert connection.call("/x.Y/Z", (("x-number", str(number)),), bytes(number), 10).status == 0
    connection.close()
    echo.server.stop(None).wait()


def test_a_message_over_the_server_s_limit_is_answered_not_broken_off():
    echo = Echo(**{"grpc.max_receive_message_length": 1000})
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    reply = connection.call("/x.Y/Z", (), bytes(3_000_000), 10)
    assert (reply.status, "larger than max" in reply.message) == (8, True)
    connection.close()
    echo.server.stop(None).wait()


def test_a_connection_that_the_server_left_is_not_used_again():
    echo = Echo()
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    assert connection.call("/x.Y/Z", (), b"", 10).status == 0
    echo.server.stop(None).wait()
    deadline = time.monotonic() + 10
    while connection.reusable():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    connection.close()
