"""A service whose application makes a TracerProvider of its own, after OpenTelemetry was started."""

import os

import auditspan
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
from opentelemetry.trace import set_tracer_provider as imported_early

app = FastAPI()  # instrumented before there is a provider

own = TracerProvider(resource=Resource.create({"service.name": "own-shop"}))
imported_early(own)


@app.put("/orders/{order_id}")
def update(order_id: int):
    auditspan.set_actor("alice")
    return {"order": order_id, "provider": trace.get_tracer_provider() is own}


@app.get("/queue")
def consume():
    """Work that the application takes in by a span of its own provider."""
    link = {"http.request.method": "POST", "http.route": "/jobs"}
    with own.get_tracer("jobs").start_as_current_span("job", kind=SpanKind.SERVER, attributes=link):
        auditspan.set_actor("scheduler", type="service")
    return os.getpid()
