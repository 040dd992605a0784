"""How a request ended, when it did not end as most do: in pieces, cut short, cancelled, or with nobody left to hear it."""

from __future__ import annotations

import secrets
import signal
import socket
import sys

import grpc
import httpx
import pytest

BROKEN = (httpx.RemoteProtocolError, httpx.ReadError)


def start(tmp_path_factory, harness, name, command, **environment):
    return harness.start(tmp_path_factory.mktemp(name), command, environment)


@pytest.fixture(scope="module")
def asgi(tmp_path_factory, harness):
    service = start(tmp_path_factory, harness, "asgi", harness.uvicorn("streams_fastapi:app"))
    yield service
    service.stop()


@pytest.fixture(scope="module", params=["werkzeug", "gunicorn"])
def wsgi(request, tmp_path_factory, harness):
    command = {
        "werkzeug": [str(harness.BIN / "flask"), "--app", "streams_flask", "run", "--port", "{port}"],
        "gunicorn": [str(harness.BIN / "gunicorn"), "--bind", "127.0.0.1:{port}", "streams_flask:app"],
    }[request.param]
    service = start(tmp_path_factory, harness, request.param, command)
    yield service
    service.stop()


def call(service, path, *, hang_up_after=None):
    """The trace of a POST; hangs up when so many lines of the response were read."""
    trace_id = service_trace()
    with service.client.stream("POST", f"http://127.0.0.1:{service.port}{path}", headers=trace_id[1]) as got:
        try:
            for number, _ in enumerate(got.iter_lines(), 1):
                if number == hang_up_after:
                    break
        except BROKEN:
            pass
    return trace_id[0]


def service_trace():
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}


def hang_up(service, path, body="", length=0):
    """Send a request and close the connection without reading a byte."""
    trace_id, headers = service_trace()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        lines = [f"POST {path} HTTP/1.1", "host: shop", f"content-length: {length}"]
        lines += [f"{name}: {text}" for name, text in headers.items()]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
    return trace_id


def one(service, trace_id):
    (record,) = service.records(trace_id)
    return record["outcome"], record["reason"]


@pytest.mark.parametrize(
    ("path", "hang_up_after", "expected"),
    [
        ("/threads/whole", None, ("success", None)),
        ("/threads/breaks", None, ("failure", "the response was cut short")),
    ],
)
def test_an_asgi_request_has_one_record_with_its_outcome(asgi, path, hang_up_after, expected):
    assert one(asgi, call(asgi, path, hang_up_after=hang_up_after)) == expected


def test_work_that_was_done_is_a_success_though_the_client_has_hung_up(asgi):
    assert one(asgi, hang_up(asgi, "/slow/0.1")) == ("success", None)


def test_a_handler_that_gives_up_because_nobody_is_there_has_failed(asgi):
    assert one(asgi, hang_up(asgi, "/watching"))[0] == "failure"


def test_an_upload_that_breaks_off_has_failed(asgi):
    assert one(asgi, hang_up(asgi, "/uploads", "half", 100))[0] == "failure"


def test_a_request_that_a_stopping_server_cancels_has_failed(tmp_path_factory, harness):
    command = [*harness.uvicorn("streams_fastapi:app"), "--timeout-graceful-shutdown", "0"]
    service = start(tmp_path_factory, harness, "stopping", command)
    trace_id, headers = service_trace()
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        lines = ["POST /slow/60 HTTP/1.1", "host: shop", "content-length: 0"]
        lines += [f"{name}: {text}" for name, text in headers.items()]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        service.call("POST", "/slow/0")
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(harness.DEADLINE_S)
    assert one(service, trace_id)[0] == "failure"
    service.stop()


@pytest.mark.parametrize(
    ("path", "hang_up_after", "expected"),
    [
        ("/contexts/whole", None, ("success", None)),
        ("/known/whole", None, ("success", None)),
        ("/nothing/whole", None, ("success", None)),
        ("/refused/whole", None, ("denied", "403 Forbidden")),
        ("/refused/breaks", None, ("denied", "403 Forbidden")),
        ("/streams/breaks", None, ("failure", "the response was cut short by RuntimeError")),
        ("/contexts/breaks", None, ("failure", "the response was cut short by RuntimeError")),
        ("/known/breaks", None, ("failure", "the response was cut short by RuntimeError")),
        ("/streams/endless", 3, ("failure", "the response was cut short")),
        ("/contexts/endless", 3, ("failure", "the response was cut short")),
    ],
)
def test_a_wsgi_request_has_one_record_with_its_outcome(wsgi, path, hang_up_after, expected):
    assert one(wsgi, call(wsgi, path, hang_up_after=hang_up_after)) == expected


@pytest.fixture(scope="module", params=["sync", "aio"])
def rpc(request, tmp_path_factory, harness):
    service = start(
        tmp_path_factory, harness, request.param, [sys.executable, "streams_grpc.py", request.param]
    )
    service.kind = request.param
    yield service
    service.stop()


INTERRUPTED = ("failure", "the client cancelled the call, or its deadline passed")


def test_a_stream_that_the_client_cancels_has_failed(rpc):
    trace_id, headers = service_trace()
    with grpc.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        stream = channel.unary_stream("/shop.v1.OrderService/ExportOrders")(
            b"", metadata=list(headers.items())
        )
        for _ in range(3):
            next(stream)
        stream.cancel()
    assert one(rpc, trace_id) == INTERRUPTED


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_call_that_nobody_waits_for_has_failed_unless_its_work_was_done(rpc, how, harness):
    trace_id, headers = service_trace()
    with grpc.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
        grpc.channel_ready_future(channel).result(harness.DEADLINE_S)
        call = channel.unary_unary("/shop.v1.OrderService/HoldOrder").future(
            how.encode(), metadata=list(headers.items()), timeout=0.25 if how == "deadline" else 20
        )
        if how == "cancelled":
            check = channel.unary_unary("/shop.v1.OrderService/CheckOrder")
            harness.wait_for(lambda: check(how.encode()), "the call's beginning")
            call.cancel()
        with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
            call.result()
    # asyncio cancels the handler; a handler in a thread goes on to its end.
    done = ("success", "done, though the client had cancelled or its deadline had passed")
    assert one(rpc, trace_id) == (done if rpc.kind == "sync" else INTERRUPTED)


def test_clients_that_close_streams_do_not_end_the_server(rpc):
    # grpc.aio closes such a stream when its call is gone already; what is read of it then must not be read from there.
    for _ in range(10):
        test_a_stream_that_the_client_cancels_has_failed(rpc)
    assert rpc.process.poll() is None


def test_the_asgi_service_says_nothing_unusual_of_us(asgi):
    assert "Auditspan" not in asgi.log


def test_the_wsgi_service_says_nothing_unusual_of_us(wsgi):
    assert "Auditspan" not in wsgi.log


def test_the_rpc_service_says_nothing_unusual_of_us(rpc):
    assert "Auditspan" not in rpc.log


@pytest.mark.parametrize("limit", ["1", "12"])
@pytest.mark.parametrize("app", ["fastapi", "flask"])
def test_a_record_is_whole_on_a_span_that_takes_few_attributes(tmp_path_factory, harness, app, limit):
    command = {"fastapi": harness.uvicorn("fastapi_shop:app"), "flask": [sys.executable, "flask_shop.py"]}[
        app
    ]
    service = start(tmp_path_factory, harness, app, command, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=limit)
    record = service.record("POST", "/orders/7/crash")
    expected = {"actor.id": "anonymous", "action": "CRASH", "outcome": "failure"}
    expected |= {"target.type": "orders", "target.id": "7", "sequence.number": 1, "schema.version": "1"}
    assert {name: record[name] for name in expected} == expected
    address = [
        record.attributes[name] for name in ("client.address", "net.peer.ip") if name in record.attributes
    ]
    assert address == ["127.0.0.1"]
    service.stop()
