"""The other side of delivery: real OTLP servers that answer as a test says."""

from __future__ import annotations

import http.server
import ssl
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from instrumentation.delivery.otlp_payloads import names_in
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


# Made for these tests, for localhost and 127.0.0.1, valid for a hundred years; the key guards nothing.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBsDCCAVegAwIBAgIUH9km+YqQC29N4ru3rcbW00M3E2EwCgYIKoZIzj0EAwIw
HzEdMBsGA1UEAwwUY29sbGVjdG9yIHVuZGVyIHRlc3QwIBcNMjYxMTI0MDQwMDUw
WhgPMjEyNjEwMzEwNDAwNTBaMB8xHTAbBgNVBAMMFGNvbGxlY3RvciB1bmRlciB0
ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEIU6NMIbKlGdtHqnLBCi3xrJN
TN2CB6KiR9fafBvy8kpMzVvc+VN8HoFlw/FqJNT1qHHg1QjJnftQAPaRlsbR+6Nv
MG0wHQYDVR0OBBYEFFHmpOga0F/qkVpbtonXicCAIm8PMB8GA1UdIwQYMBaAFFHm
pOga0F/qkVpbtonXicCAIm8PMBoGA1UdEQQTMBGCCWxvY2FsaG9zdIcEfwAAATAP
BgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA0cAMEQCICWCfsuvT1GMXGPuUkUg
DMoHvc/5nXr0AgaTKTp8LN7UAiAWqve6+Y8rq5l52yzseGEnrLGAvhXOX2FcPRKk
hbKzJw==
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgcAs9dKSCRwJkpWER
Ua72Qf/CjUPQHRDwoyRcKjT0waShRANCAAQhTo0whsqUZ20eqcsEKLfGsk1M3YIH
oqJH19p8G/LySkzNW9z5U3wegWXD8Wok1PWoceDVCMmd+1AA9pGWxtH7
-----END PRIVATE KEY-----
"""


class Refusal(NamedTuple):
    """An answer that is no OK, in gRPC's words; *http* is what an HTTP server says instead."""

    code: grpc.StatusCode
    http: int
    retry_after_s: float | None = None


AWAY = Refusal(grpc.StatusCode.UNAVAILABLE, 503)
STRANGER = Refusal(grpc.StatusCode.UNAUTHENTICATED, 401)
INVALID = Refusal(grpc.StatusCode.INVALID_ARGUMENT, 400)
TOO_LARGE = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, 413)


class Peer:
    """What both servers share: *answer* decides on each request, *received* holds the names that got an OK."""

    def __init__(self) -> None:
        self.answer: Callable[[list[str]], Refusal | ExportTraceServiceResponse | None] = lambda _: None
        self.requests: list[list[str]] = []
        self.received: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.arrived: list[float] = []
        self.lock = threading.Lock()

    def take(self, body: bytes, headers: dict[str, str]) -> Refusal | bytes:
        names = names_in(body)
        with self.lock:
            self.requests.append(names)
            self.headers.append(headers)
            self.arrived.append(time.monotonic())
        answer = self.answer(names)
        if isinstance(answer, Refusal):
            return answer
        with self.lock:
            self.received.extend(names)
        return (answer or ExportTraceServiceResponse()).SerializeToString()


class GrpcPeer(Peer):
    protocol = "grpc"

    def __init__(self, *, tls: bool = False, idle_s: float = 60.0) -> None:
        super().__init__()
        self.port = 0
        self.tls = tls
        self.idle_s = idle_s  # after which the server closes a connection
        self.server: grpc.Server | None = None
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http{'s' * self.tls}://127.0.0.1:{self.port}"

    def start(self) -> None:
        method = grpc.unary_unary_rpc_method_handler(self._export)
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        options = [("grpc.so_reuseport", 0), ("grpc.max_connection_idle_ms", int(self.idle_s * 1000))]
        self.server = grpc.server(ThreadPoolExecutor(16), options=options)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Export": method}),)
        )
        address = f"127.0.0.1:{self.port}"
        if self.tls:
            credentials = grpc.ssl_server_credentials([(KEY.encode(), CERTIFICATE.encode())])
            self.port = self.server.add_secure_port(address, credentials)
        else:
            self.port = self.server.add_insecure_port(address)
        self.server.start()

    def stop(self) -> None:
        self.server.stop(None).wait()

    def _export(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        answer = self.take(body, dict(context.invocation_metadata()))
        if isinstance(answer, bytes):
            return answer
        if answer.retry_after_s is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(int(answer.retry_after_s * 1e9))
            detail = AnyMessage()
            detail.Pack(info)
            status = status_pb2.Status(code=answer.code.value[0], message="as told", details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(answer.code, "as told")
        raise AssertionError


def _tls_socket(plain: socket.socket) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(KEY + CERTIFICATE)
        file.flush()
        context.load_cert_chain(file.name)
    return context.wrap_socket(plain, server_side=True)


class HttpPeer(Peer):
    protocol = "http/protobuf"

    def __init__(self, *, tls: bool = False, idle_s: float = 60.0) -> None:
        super().__init__()
        self.port = 0
        self.tls = tls
        self.idle_s = idle_s  # after which the server closes a connection
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http{'s' * self.tls}://127.0.0.1:{self.port}"

    def start(self) -> None:
        peer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = self.idle_s

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                answer = peer.take(body, {key.lower(): value for key, value in self.headers.items()})
                status, content = (200, answer) if isinstance(answer, bytes) else (answer.http, b"")
                if isinstance(answer, Refusal):
                    content = status_pb2.Status(message="as told").SerializeToString()
                self.send_response(status)
                if isinstance(answer, Refusal) and answer.retry_after_s is not None:
                    self.send_header("retry-after", str(round(answer.retry_after_s)))
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        if self.tls:
            self.server.socket = _tls_socket(self.server.socket)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
