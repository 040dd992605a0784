"""What a span costs on its way from a request's bytes to leaves: the compiled path against the readable one.

    python bench/transcode.py [--rounds N]

In one process, without network, spool or store. Messages are as exporters write them: 512 spans of about 12
attributes, three scopes, a resource with 8. Times are CPU time of the thread, the least of several rounds, so that
other work on the machine shows little; the ratio is the figure to trust.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from typing import TYPE_CHECKING, Any

from auditspan_collector.pipeline import readable
from auditspan_collector.pipeline.encode import Encoder
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
from auditspan_collector.transcode import COMPILED
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.record import Selection

SPANS = 512
PERCENTAGES = (0, 5, 50, 100)
SENDER = Sender("bench", tenant="default", services=None, instrumented=True)
RESOURCE = {
    "service.name": "orders",
    "service.version": "2.14.3",
    "service.instance.id": "0b2a4c1e-9d1f-4f43-8a57-3f0d9e6f2a11",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.45.1",
    "host.name": "orders-7c9f8d6b5-x2kqp",
    "deployment.environment.name": "production",
}
SCOPES = (
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.instrumentation.httpx",
    "opentelemetry.instrumentation.sqlalchemy",
)


def add(attributes: Any, key: str, value: str | int | list[str]) -> None:
    """Append one attribute."""
    one = attributes.add(key=key).value
    if isinstance(value, int):
        one.int_value = value
    elif isinstance(value, str):
        one.string_value = value
    else:
        for element in value:
            one.array_value.values.add().string_value = element


def ordinary(draw: random.Random) -> dict[str, str | int]:
    """The attributes of a server span."""
    order = draw.randrange(10**6)
    return {
        "http.request.method": draw.choice(["GET", "POST", "PUT"]),
        "url.scheme": "https",
        "url.path": f"/api/v1/orders/{order}/items",
        "http.route": "/api/v1/orders/{order_id}/items",
        "server.address": "orders.internal.example",
        "server.port": 8443,
        "network.protocol.version": "1.1",
        "network.peer.address": f"10.12.{draw.randrange(256)}.{draw.randrange(256)}",
        "client.address": f"203.0.113.{draw.randrange(256)}",
        "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "http.response.status_code": draw.choice([200, 200, 200, 201, 404]),
        "thread.id": draw.randrange(1 << 40),
    }


def audit(draw: random.Random, number: int) -> dict[str, str | int | list[str]]:
    """The attributes that an instrumented service adds."""
    return {
        "audit.record.id": str(
            uuid.UUID(int=draw.getrandbits(128), version=7 if hasattr(uuid, "uuid7") else 4)
        ),
        "audit.actor.id": f"user-{draw.randrange(5000)}@example.com",
        "audit.actor.type": "user",
        "audit.actor.roles": ["customer", "beta-tester"],
        "audit.actor.origin": "authenticated",
        "audit.action": draw.choice(["READ", "CREATE", "UPDATE"]),
        "audit.outcome": "success",
        "audit.target.type": "order",
        "audit.target.id": str(draw.randrange(10**6)),
        "audit.sequence.stream_id": "0b2a4c1e9d1f4f438a573f0d9e6f2a11",
        "audit.sequence.number": number,
        "audit.schema.version": "1",
    }


def message(tagged_pct: int, seed: int = 1) -> bytes:
    """A request of SPANS spans. A tagged span has six of the ordinary attributes and the audit ones."""
    draw = random.Random(seed)
    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.37.0")
    for key, value in RESOURCE.items():
        add(in_resource.resource.attributes, key, value)
    scopes = []
    for name in SCOPES:
        scope = in_resource.scope_spans.add()
        scope.scope.name, scope.scope.version = name, "0.66b1"
        scopes.append(scope)
    for number in range(SPANS):
        start = 1_790_000_000_000_000_000 + number * 1_000_003
        span = scopes[number * len(scopes) // SPANS].spans.add(
            trace_id=draw.randbytes(16),
            span_id=draw.randbytes(8),
            parent_span_id=draw.randbytes(8),
            name="POST /api/v1/orders/{order_id}/items",
            kind=2,
            start_time_unix_nano=start,
            end_time_unix_nano=start + draw.randrange(10**8),
            flags=0x101,
        )
        span.status.SetInParent()
        attributes = ordinary(draw)
        if number * tagged_pct // 100 != (number + 1) * tagged_pct // 100:
            wanted = {**dict(list(attributes.items())[:6]), **audit(draw, number + 1)}
        else:
            wanted = {**attributes}
        for key, said in wanted.items():
            add(span.attributes, key, said)
    return request.SerializeToString()


def cost_us(
    encode: Callable[[OtlpRequest], Selection], request: OtlpRequest, repeats: int, rounds: int
) -> float:
    """CPU microseconds a span, the least of *rounds*."""
    encode(request)
    best = float("inf")
    for _ in range(rounds):
        began = time.thread_time()
        for _ in range(repeats):
            encode(request)
        best = min(best, time.thread_time() - began)
    return best / repeats / SPANS * 1e6


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description="CPU of the compiled and the readable path, per span.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    limits = Limits()
    compiled = Encoder(limits)
    if not COMPILED:
        print("transcode is not compiled here: the first column is the interpreted source")
    print("tagged  B/span  compiled us/span  readable us/span  ratio  same")
    for tagged_pct in PERCENTAGES:
        body = message(tagged_pct)
        request = OtlpRequest(body, "protobuf", SENDER, "127.0.0.1", 1_790_000_000_000_000_000)
        same = compiled(request) == readable.encode(request, limits)
        fast = cost_us(compiled, request, 100 if tagged_pct < 50 else 30, rounds)
        slow = cost_us(lambda one: readable.encode(one, limits), request, 2, rounds)
        print(
            f"{tagged_pct:5}%  {len(body) / SPANS:6.0f}  {fast:16.3f}  {slow:16.2f}  {slow / fast:5.0f}  {same}"
        )


if __name__ == "__main__":
    main()
