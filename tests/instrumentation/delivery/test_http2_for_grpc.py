"""The gRPC call in plain sockets: real servers, and servers that do what a real one seldom does."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import struct
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import grpc
import hpack
import pytest
from auditspan.shipper import http2, otlp, protobuf
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


def block(fields: list[tuple[bytes, bytes]]) -> bytes:
    """A header block that leaves no trace in the reader's table, so that it may be used again."""
    return hpack.Encoder().encode([(name, value, True) for name, value in fields], huffman=False)


OK_HEADERS = block([(b":status", b"200"), (b"content-type", b"application/grpc")])
TRAILERS = block([(b"grpc-status", b"0")])
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
        frame("headers", 4, 1, block([(b":status", b"103")])) + GOOD,
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
        # As gRPC's servers go: at some time, then now; and what is under way still ends well.
        frame("goaway", 0, 0, struct.pack(">II", 2**31 - 1, 0) + b"soon")
        + frame("ping", 0, 0, b"12345678")
        + frame("headers", 4, 1, OK_HEADERS)
        + frame("goaway", 0, 0, struct.pack(">II", 1, 0))
        + frame("data", 0, 1, MESSAGE)
        + frame("window", 0, 0, b"\0\0\1\0")
        + frame("headers", 5, 1, TRAILERS),
        frame("settings", 0, 0, struct.pack(">HIHI", 1, 0, 0xABC, 5)) + frame("settings", 1, 0) + GOOD,
        GOOD + b"\xff\xff\xff rubbish after the answer",
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
        "going away twice",
        "settings known and unknown",
        "rubbish after the answer",
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
    with scripted(frame("headers", 5, 1, block(fields))) as (port, _):
        reply = call(port)
    assert (reply.status, reply.message) == (14, "full: nö")
    assert reply.trailers["grpc-status-details-bin"] == b"\1\2\3\xff"


@pytest.mark.parametrize(
    ("status", "code"), [(401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2), (302, 2)]
)
def test_a_proxy_s_http_answer_is_translated(status, code):
    headers = block([(b":status", b"%d" % status), (b"content-type", b"text/html")])
    with scripted(frame("headers", 4, 1, headers) + frame("data", 1, 1, b"<html>")) as (port, _):
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
        frame("goaway", 0, 0, struct.pack(">II", 1, 0))
        + frame("goaway", 0, 0, struct.pack(">II", 0, 2))
        + GOOD,
        frame("goaway", 0, 0, b"\0"),
        frame("headers", 5, 2, OK_HEADERS) + GOOD,
        frame("more", 4, 1, OK_HEADERS) + GOOD,
        frame("push", 4, 1, bytes(4) + OK_HEADERS),
        frame("settings", 0, 1),
        frame("settings", 0, 0, struct.pack(">HI", 4, 2**31)),
        frame("headers", 0, 1, OK_HEADERS) + GOOD,
        frame("headers", 4, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
        frame("headers", 4, 1, block([(b":status", b"abc")])),
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
        "going away, first after and then before this call",
        "going away without saying where",
        "a stream of the server's own",
        "a continuation of nothing",
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
        with pytest.raises(ConnectionError):
            call(port)
        assert time.monotonic() - began < 3
    with scripted(answer) as (port, _):
        refused = otlp.connect(otlp.Target(endpoint=f"http://127.0.0.1:{port}")).send(b"hello", 5.0)
    assert (refused.kind, refused.retry_after_s) == ("later", None)


def headers_in_steps(step: bytes) -> list[bytes]:
    return [frame("headers", 0, 1, OK_HEADERS), *[frame("more", 0, 1, step)] * 1000]


BOMB = (
    b"\x40\1a\x7f\xa1\x1e" + bytes(4000) + b"\xbe" * 12_000
)  # a field of 4 kB, then a byte each time it is meant


@pytest.mark.parametrize(
    "pieces",
    [
        headers_in_steps(bytes(16_384)),
        headers_in_steps(b""),
        [frame("headers", 4, 1, BOMB)],
        [
            frame("settings", 0, 0, b"".join(struct.pack(">HI", at + n, 1) for n in range(2000)))
            for at in range(100, 60_000, 2000)
        ],
        [frame("headers", 4, 1, OK_HEADERS), *[frame("data", 0, 1, bytes(16_384))] * 1000],
        [b"\0\x40\1" + bytes(6)],
    ],
    ids=[
        "continuations",
        "empty continuations",
        "a small block of large fields",
        "settings that nobody knows",
        "an endless answer",
        "a frame announced as too large",
    ],
)
def test_a_flood_ends_the_connection_before_it_costs_memory(pieces):
    listener = socket.create_server(("127.0.0.1", 0))

    def flood() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            peer.recv(65_536)
            for piece in pieces:
                peer.sendall(piece)
            while peer.recv(65_536):  # only the client ends this
                pass

    thread = threading.Thread(target=flood)
    thread.start()
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(http2.ConnectionBroken):
        call(listener.getsockname()[1])
    assert time.monotonic() - began < 4
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    thread.join()
    listener.close()


def test_an_answer_without_a_grpc_status_is_no_ok():
    with scripted(frame("headers", 4, 1, OK_HEADERS) + frame("data", 1, 1, MESSAGE)) as (port, _):
        assert call(port).status == 2


def test_a_server_that_stays_silent_costs_the_time_out_and_no_more():
    with scripted(b"", close=False) as (port, _):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            call(port, 0.3)
        assert 0.25 < time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("piece", "pause_s"),
    [
        (frame("ping", 1, 0, bytes(8)), 0.02),
        (frame("ping", 1, 0, bytes(8)) * 1000, 0.0),
        (frame("headers", 4, 1, block([(b":status", b"103")])) * 10, 0.0),
        (b"", 0.02),
    ],
    ids=["a frame at a time", "a flood of pings", "a flood of hints", "a byte of a frame at a time"],
)
@pytest.mark.parametrize("idle", [False, True], ids=["in a call", "before a call"])
def test_a_server_that_goes_on_and_on_does_not_stretch_the_time_out(piece, pause_s, idle, monkeypatch):
    monkeypatch.setattr(http2, "_CATCH_UP_S", 0.3)
    listener = socket.create_server(("127.0.0.1", 0))

    def go_on() -> None:
        peer, _ = listener.accept()
        peer.settimeout(1.0)
        slow = frame("settings", 0, 0, bytes(6) * 1000)
        with peer, contextlib.suppress(OSError):
            for at in itertools.count():
                peer.sendall(piece or slow[at : at + 1])
                time.sleep(pause_s)

    thread = threading.Thread(target=go_on)
    thread.start()
    connection = http2.Connection("127.0.0.1", listener.getsockname()[1], None, 5.0)
    time.sleep(0.05)
    began = time.monotonic()
    if idle:
        with contextlib.suppress(OSError):  # where what came was read in time, the call is as slow
            assert not connection.reusable() or connection.call("/x.Y/Z", (), b"hello", 0.3)
    else:
        with pytest.raises((TimeoutError, http2.ConnectionBroken)):
            connection.call("/x.Y/Z", (), b"hello", 0.3)
    assert time.monotonic() - began < 1.5
    connection.close()
    thread.join()
    listener.close()


def test_a_window_that_opens_bit_by_bit_or_shrinks_is_kept_to():
    listener = socket.create_server(("127.0.0.1", 0))
    pieces: list[bytes] = []

    def serve() -> None:
        peer, _ = listener.accept()
        with peer, peer.makefile("rb") as stream:
            stream.read(24)

            def read_data() -> int:
                while True:
                    head = stream.read(9)
                    content = stream.read(int.from_bytes(head[:3]))
                    if head[3] == TYPE["data"]:
                        pieces.append(content)
                        return head[4]

            peer.sendall(frame("settings", 0, 0, struct.pack(">HI", 4, 10)))
            while b"ready" not in stream.peek():
                stream.read(9 + int.from_bytes(stream.peek()[:3]))
            read_data()  # before our settings came, or 10 bytes after
            peer.sendall(frame("settings", 0, 0, struct.pack(">HI", 4, 3)))
            peer.sendall(frame("window", 0, 1, struct.pack(">I", 70_000)))
            while not read_data() & 1:
                peer.sendall(frame("window", 0, 0, struct.pack(">I", 5)))
            peer.sendall(GOOD)

    thread = threading.Thread(target=serve)
    thread.start()
    connection = http2.Connection("127.0.0.1", listener.getsockname()[1], None, 5.0)
    time.sleep(0.05)
    assert connection.reusable()
    body = b"ready" + bytes(65_560)
    assert connection.call("/x.Y/Z", (), body, 5.0).body == b"abc"
    assert b"".join(pieces)[5:] == body
    assert len(pieces[0]) == 10
    assert max(map(len, pieces[-4:])) <= 5
    connection.close()
    thread.join()
    listener.close()


def test_a_window_that_never_opens_costs_the_time_out():
    listener = socket.create_server(("127.0.0.1", 0))
    connection = http2.Connection("127.0.0.1", listener.getsockname()[1], None, 5.0)
    peer, _ = listener.accept()
    peer.sendall(frame("settings", 0, 0, struct.pack(">HI", 4, 0)))
    assert connection.reusable()
    with pytest.raises(TimeoutError):
        connection.call("/x.Y/Z", (), b"hello", 0.2)
    connection.close()
    peer.close()
    listener.close()


KINDS = st.sampled_from([*TYPE.values(), 10, 200])
PIECES = st.one_of(
    st.binary(max_size=40), st.sampled_from([OK_HEADERS, TRAILERS, MESSAGE, bytes(8), b"\0\4\0\0\0\0"])
)
FRAMES = st.tuples(KINDS, st.integers(0, 255), st.sampled_from([0, 1, 1, 1, 2, 3]), PIECES)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(FRAMES, max_size=8))
def test_whatever_comes_is_an_answer_or_a_broken_connection(frames):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connection = http2.Connection("127.0.0.1", listener.getsockname()[1], None, 5.0)
        peer, _ = listener.accept()
    with peer:
        for kind, flags, stream, content in frames:
            head = struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream)
            peer.sendall(head + content)
        peer.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert isinstance(connection.call("/x.Y/Z", (), b"hello", 5.0), http2.Reply)
        connection.close()


def test_credentials_are_not_logged_even_at_debug(caplog):
    caplog.set_level(logging.DEBUG)
    secret = (("authorization", "Bearer secret"), ("x-key", "secret"))
    with scripted(GOOD) as (port, _):
        connection = http2.Connection("127.0.0.1", port, None, 5.0)
        assert connection.call("/x.Y/Z", secret, b"hello", 5.0).status == 0
        connection.close()
    assert [
        record.name for record in caplog.records if record.name.startswith(("h2", "hpack", "hyper"))
    ] == []


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


def test_what_was_read_is_given_back_so_that_large_answers_never_stall():
    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Z": grpc.unary_unary_rpc_method_handler(lambda _body, _context: bytes(60_000))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = http2.Connection("127.0.0.1", port, None, 5.0)
    for _ in range(5):
        assert len(connection.call("/x.Y/Z", (), b"", 5.0).body) == 60_000
    connection.close()
    server.stop(None).wait()


def test_hundreds_of_calls_leave_the_connection_as_good_as_new():
    echo = Echo()
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    for number in range(500):
        assert connection.reusable()
        assert connection.call("/x.Y/Z", (("x-number", str(number)),), bytes(number), 10).status == 0
    assert len(connection._protocol._closed_streams) <= 16
    assert len(connection._protocol.streams) <= 1
    assert len(connection._protocol.encoder.header_table.dynamic_entries) < 10
    connection.close()
    echo.server.stop(None).wait()


def test_a_message_over_the_server_s_limit_is_answered_not_broken_off():
    echo = Echo(**{"grpc.max_receive_message_length": 1000})
    connection = http2.Connection("127.0.0.1", echo.port, None, 10)
    reply = connection.call("/x.Y/Z", (), bytes(3_000_000), 10)
    assert (reply.status, "larger than max" in reply.message) == (8, True)
    connection.close()
    echo.server.stop(None).wait()


def test_a_status_is_heard_whatever_its_message_ends_in():
    def refuse(_body: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, " between spaces, ö and 100% ")
        raise AssertionError

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Z": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    reply = call(port)
    assert (reply.status, reply.message) == (3, " between spaces, ö and 100% ")
    server.stop(None).wait()


def test_a_call_under_way_ends_well_while_the_server_stops():
    server = grpc.server(ThreadPoolExecutor(2))
    begun, stopping = threading.Event(), threading.Event()

    def slow(body: bytes, _context: grpc.ServicerContext) -> bytes:
        begun.set()
        stopping.wait(5)
        time.sleep(0.1)  # let the server say that it goes
        return body

    handlers = {"Z": grpc.unary_unary_rpc_method_handler(slow)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    connection = http2.Connection("127.0.0.1", port, None, 5.0)
    with ThreadPoolExecutor(1) as pool:
        reply = pool.submit(connection.call, "/x.Y/Z", (), b"hello", 5.0)
        begun.wait()
        stopped = server.stop(5)
        stopping.set()
        assert reply.result().body == b"hello"
    assert not connection.reusable()
    connection.close()
    stopped.wait()


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
