"""Records to deliver, for tests and for the processes they start: without gRPC, which those would load for nothing."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable


def payload(name: str, size: int = 0) -> bytes:
    """One record as the span processor encodes it: a request with one span, named *name*."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.name = name
    span.trace_id, span.span_id = os.urandom(16), os.urandom(8)
    span.attributes.add(key="audit.record.id").value.string_value = "x" * size
    return request.SerializeToString()


def names_in(body: bytes) -> list[str]:
    """The records of a request, by name, in order."""
    request = ExportTraceServiceRequest.FromString(body)
    return [
        span.name
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def wait_until(what: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Poll until *what* is true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
