"""Write tests/golden/exporters: what OpenTelemetry's own exporter sends for services with its own instrumentations.

    python tests/golden/record_exporters.py

Each service answers a few requests in this process; its spans, some with audit attributes, go through the SDK's batch
processor and OTLP/HTTP exporter to a server here, which keeps the bytes. The files hold what these libraries wrote
at the versions in constraints.txt, so that later ones can't change what is tested.
"""

from __future__ import annotations

import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
from auditspan.wire import SpanEncoder
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from flask import Flask
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient, GrpcInstrumentorServer
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, StatusCode

EXPORTERS = Path(__file__).with_name("exporters")
received: list[bytes] = []


class Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def provider(service: str, port: int) -> TracerProvider:
    made = TracerProvider(resource=Resource.create({"service.name": service, "service.version": "1.0"}))
    made.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=f"http://127.0.0.1:{port}/v1/traces"))
    )
    return made


def tag(action: str, outcome: str = "") -> None:
    """What an application's own code may put on its span."""
    span = trace.get_current_span()
    span.set_attribute("audit.actor.id", "alice@example.com")
    span.set_attribute("audit.actor.roles", ["support", 'say "refunds"'])
    span.set_attribute("audit.action", action)
    if outcome:
        span.set_attribute("audit.outcome", outcome)


def fastapi_service(tracing: TracerProvider) -> None:
    app = FastAPI()

    @app.get("/orders/{order_id}")
    def show(order_id: int) -> dict[str, int]:
        tag("read", "success")
        return {"order": order_id}

    @app.delete("/orders/{order_id}")
    def forbid(order_id: int) -> None:
        tag("delete")
        raise HTTPException(403, f"not yours: {order_id}")

    @app.get("/health")
    def health() -> str:
        return "ok"

    FastAPIInstrumentor.instrument_app(app, tracer_provider=tracing)
    with TestClient(app) as client:
        for path in ("/orders/7", "/health", "/nowhere"):
            client.get(path)
        client.delete("/orders/8")


def flask_service(tracing: TracerProvider) -> None:
    app = Flask("billing")

    @app.post("/payments")
    def pay() -> str:
        tag("CREATE")
        return "paid"

    @app.get("/broken")
    def broken() -> str:
        tag("EXPORT")
        raise RuntimeError("no paper")

    FlaskInstrumentor().instrument_app(app, tracer_provider=tracing)
    client = app.test_client()
    client.post("/payments", headers={"User-Agent": "kasse/1.0 (Köln)"})
    client.get("/broken")
    client.get("/favicon.ico")


def grpc_service(tracing: TracerProvider) -> None:
    GrpcInstrumentorServer().instrument(tracer_provider=tracing)
    GrpcInstrumentorClient().instrument(tracer_provider=tracing)

    def charge(request: bytes, context: grpc.ServicerContext) -> bytes:
        tag("EXECUTE")
        if request == b"no":
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "not with this card")
        return b"ok"

    server = grpc.server(futures.ThreadPoolExecutor(2))
    handlers = {"Charge": grpc.unary_unary_rpc_method_handler(charge)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Billing", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/shop.Billing/Charge")
        call(b"yes")
        try:
            call(b"no")
        except grpc.RpcError as error:
            print("refused, as it should be:", error.code())
    server.stop(None).wait()
    GrpcInstrumentorServer().uninstrument()
    GrpcInstrumentorClient().uninstrument()


def hand_made_spans(tracing: TracerProvider) -> None:
    tracer = tracing.get_tracer("shop.jobs", "2.0", attributes={"team": "ä", "size": 3})
    with tracer.start_as_current_span("nightly", kind=SpanKind.CONSUMER) as span:
        tag("EXECUTE")
        linked = span.get_span_context()
        span.set_attributes({
            "bool": True, "int": -(1 << 63), "double": 0.1, "whole": 3.0, "ints": [1, -2], "bools": [True, False],
            "doubles": [1.5], "empty": "", "none of them": [], "enduser.id": "carol",
        })  # fmt: skip
        span.add_event("retry", {"attempt": 2, "why": "timeout"})
        try:
            int("three")
        except ValueError as error:
            span.record_exception(error)
            span.set_status(StatusCode.ERROR, "failed")
    with tracer.start_as_current_span("after", links=[Link(linked, {"kind": "follows", "n": 1})]):
        tag("APPROVE", "Denied")
    with tracer.start_as_current_span("ordinary") as span:
        span.set_attribute("note", "audit.nothing")


def light_package() -> None:
    """Spans as the light package writes them for its spool."""
    spans = InMemorySpanExporter()
    tracing = TracerProvider(resource=Resource.create({"service.name": "light"}))
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    hand_made_spans(tracing)
    for span in spans.get_finished_spans():
        attributes = span.attributes or {}
        if "audit.action" in attributes:  # the others have no place in its spool
            received.append(SpanEncoder().encode(span, attributes, span.end_time or 0))


def keep(name: str) -> None:
    """Write what was received."""
    for number, body in enumerate(received):
        (EXPORTERS / f"{name}-{number}.bin").write_bytes(body)
        print(f"{name}-{number}.bin: {len(body)} bytes")


def main() -> None:
    """Run each service, and write the bytes that came."""
    EXPORTERS.mkdir(exist_ok=True)
    server = HTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for serve in (fastapi_service, flask_service, grpc_service, hand_made_spans):
        received.clear()
        tracing = provider(serve.__name__, server.server_port)
        serve(tracing)
        tracing.shutdown()
        keep(serve.__name__)
    received.clear()
    light_package()
    keep("light_package")
    server.shutdown()
    thread.join()
    server.server_close()


if __name__ == "__main__":
    main()
