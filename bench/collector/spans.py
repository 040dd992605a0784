"""Realistic OTLP messages: 512 spans of about 570 bytes, 12 attributes each, in three scopes of one resource.

A message is encoded once and sent many times, each time with other trace ids: it is kept in the pieces between them,
and joined with a number, which costs little more than a copy. So nothing that is sent is a repeat of anything, and no
encoder runs while the clock does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

SPANS: Final = 512
TEMPLATES: Final = 8
# Once in each span, so a sink can count spans in whatever form a system inserts them.
SPAN_MARK: Final = b"app.request.key"

_TRACE_MARK: Final = b"\xa7\x1d\xe5\x0f\xb3\x99\xc6\x42"
_SPANS_A_TRACE: Final = 8
_EVENT_EVERY: Final = 32
_RESOURCE: Final = {
    "service.name": "orders",
    "service.namespace": "shop",
    "service.version": "3.14.1",
    "service.instance.id": "627cc493-f310-47de-96bd-71410b7dec09",
    "deployment.environment.name": "production",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.45.1",
}
_SCOPES: Final = (
    ("opentelemetry.instrumentation.fastapi", "0.66b1"),
    ("opentelemetry.instrumentation.httpx", "0.66b1"),
    ("opentelemetry.instrumentation.sqlalchemy", "0.66b1"),
)
_ACTIONS: Final = ("READ", "UPDATE", "CREATE", "READ", "APPROVE", "READ", "EXPORT", "DELETE")


@dataclass(frozen=True, slots=True)
class Message:
    """An encoded request: *tagged* of its SPANS spans carry audit attributes. Immutable; threads may share it."""

    pieces: tuple[bytes, ...]
    tagged: int

    def numbered(self, number: bytes) -> bytes:
        """The request with *number* (8 bytes) in each trace id, so that it is another one for each number."""
        return number.join(self.pieces)


def messages(tagged_pct: int) -> list[Message]:
    """TEMPLATES different ones, in which *tagged_pct* of a hundred spans are audit-tagged, evenly spread."""
    return [_message(template, tagged_pct) for template in range(TEMPLATES)]


def _message(template: int, tagged_pct: int) -> Message:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    for key, value in _RESOURCE.items():
        _put(resource_spans.resource.attributes.add(), key, value)
    tagged = _fill(resource_spans, template, tagged_pct)
    pieces = tuple(request.SerializeToString().split(_TRACE_MARK))
    assert len(pieces) == SPANS + 1, "the mark must stand in each trace id and nowhere else"
    return Message(pieces, tagged)


def _fill(resource_spans: ResourceSpans, template: int, tagged_pct: int) -> int:
    scopes = [resource_spans.scope_spans.add() for _ in _SCOPES]
    for scope_spans, (name, version) in zip(scopes, _SCOPES, strict=True):
        scope_spans.scope.name, scope_spans.scope.version = name, version
    started = time.time_ns()
    tagged = 0
    for index in range(SPANS):
        # Spans of a scope stand together, as an exporter groups them.
        span = scopes[index * len(scopes) // SPANS].spans.add()
        audited = (index + 1) * tagged_pct // 100 > index * tagged_pct // 100
        _describe(span, template, index, started)
        for key, value in _attributes(template, index, audited=audited).items():
            _put(span.attributes.add(), key, value)
        tagged += audited
    return tagged


def _describe(span: Span, template: int, index: int, started: int) -> None:
    trace = template * SPANS + index // _SPANS_A_TRACE
    span.trace_id = _TRACE_MARK + trace.to_bytes(8, "big")
    span.span_id = (1 + template * SPANS + index).to_bytes(8, "big")
    if index % _SPANS_A_TRACE:
        span.parent_span_id = (template * SPANS + index).to_bytes(8, "big")
    span.name = f"POST /orders/{{order_id}}/{('lines', 'payment', 'parcel')[index % 3]}"
    span.kind = Span.SPAN_KIND_SERVER
    span.flags = 0x101
    span.start_time_unix_nano = started + index * 1_000
    span.end_time_unix_nano = span.start_time_unix_nano + 1_234_567 + index
    span.status.code = Status.STATUS_CODE_UNSET
    if index % _EVENT_EVERY == 0:
        event = span.events.add(name="retry", time_unix_nano=span.start_time_unix_nano + 1_000)
        _put(event.attributes.add(), "retry.reason", "upstream reset the connection")


def _attributes(template: int, index: int, *, audited: bool) -> dict[str, str | int | list[str]]:
    """Twelve; six of an audited span's are audit.*."""
    order = template * 100_000 + index * 37
    ordinary: dict[str, str | int | list[str]] = {
        SPAN_MARK.decode(): f"rq-{template:02d}-{index:04d}-7c9e6679",
        "http.request.method": "POST",
        "url.path": f"/orders/{order}/lines",
        "http.route": "/orders/{order_id}/lines",
        "http.response.status_code": 200,
        "network.peer.address": f"10.4.{index % 8}.{index % 250}",
    }
    if audited:
        return ordinary | {
            "audit.actor.id": f"user-{order % 9973}@shop.example",
            "audit.actor.roles": ["orders.clerk", "orders.refunds"],
            "audit.action": _ACTIONS[index % len(_ACTIONS)],
            "audit.outcome": "success",
            "audit.target.type": "order",
            "audit.target.id": f"orders/{order}/lines/{index}/quantity",
        }
    return ordinary | {
        "url.scheme": "https",
        "server.address": "orders.shop.svc.cluster.local",
        "server.port": 8443,
        "user_agent.original": "python-httpx/0.28.1 shop-web/3.14.1 (linux)",
        "network.protocol.version": "1.1",
        "thread.name": f"AnyIO worker thread {index % 40}",
    }


def _put(attribute: KeyValue, key: str, value: str | int | list[str]) -> None:
    attribute.key = key
    if isinstance(value, str):
        attribute.value.string_value = value
    elif isinstance(value, int):
        attribute.value.int_value = value
    else:
        for each in value:
            attribute.value.array_value.values.add().string_value = each
