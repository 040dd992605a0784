"""A program with an unmodified OpenTelemetry SDK and its own OTLP exporter: python stock_sdk_app.py grpc|http URL.

Prints what the exporter made of each batch.
"""

from __future__ import annotations

import sys

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def main(transport: str, url: str) -> None:
    if transport == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=url, insecure=True)
    else:
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter(endpoint=url, compression=Compression.Gzip)
    send = exporter.export

    def export(spans):
        result = send(spans)
        print(result.name, flush=True)
        return result

    exporter.export = export
    provider = TracerProvider(resource=Resource.create({"service.name": f"stock-{transport}"}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("stock", "1.0")
    for number in range(20):
        with tracer.start_as_current_span("work") as span:
            span.set_attribute("number", number)
            if number % 4 == 0:
                span.set_attributes(
                    {"audit.actor.id": "alice", "audit.action": "UPDATE", "audit.target.id": str(number)}
                )
    provider.shutdown()


main(*sys.argv[1:])
