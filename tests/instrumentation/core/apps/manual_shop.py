"""A service that starts OpenTelemetry itself, with hooks and span processors of its own."""

import os

import uvicorn
from auditspan.bootstrap import pre_instrument
from opentelemetry import baggage, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider


class CopiesBaggage(SpanProcessor):
    """What opentelemetry-processor-baggage does: every entry becomes an attribute of every span."""

    def on_start(self, span, parent_context=None):
        span.set_attributes(baggage.get_all(parent_context))


provider = TracerProvider()
if os.environ.get("BAGGAGE") == "before":
    provider.add_span_processor(CopiesBaggage())
trace.set_tracer_provider(provider)
pre_instrument()
pre_instrument()
if os.environ.get("BAGGAGE") == "after":
    provider.add_span_processor(CopiesBaggage())

calls = []


def server_request(span, scope):
    calls.append("request")


def client_response(span, scope, message):
    calls.append("response")
    if os.environ.get("HOOK") == "raises":
        raise ValueError("the user's own hook")


FastAPIInstrumentor().instrument(server_request_hook=server_request, client_response_hook=client_response)

from fastapi import FastAPI  # noqa: E402 - the instrumentor replaces the class

app = FastAPI()


@app.put("/orders/{order_id}")
def update(order_id: int):
    with trace.get_tracer("shop").start_as_current_span("inner"):
        return list(calls)


uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
