"""Write tests/golden/vectors: requests as bytes, and the leaves that they come to.

    python tests/golden/regenerate.py            the expected leaves again, from the requests that are there
    python tests/golden/regenerate.py --requests the requests too

A leaf that changes breaks the ledgers of everybody who has sealed one: change the leaf version first, and keep the
old vectors. The requests are kept as bytes, so that another version of protobuf can't move them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.pipeline.readable import encode
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import OtlpRequest, Sender
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from auditspan_collector.record import Selection
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

VECTORS = Path(__file__).with_name("vectors")
RECEIVED_UNIX_NS = 1_790_000_000_123_456_789
INSTRUMENTED = Sender("instrumented", tenant="default", services=None, instrumented=True)
FOREIGN = Sender("foreign", tenant="retail", services=None, instrumented=False)
LIMITS = {"cut": Limits(attributes_per_span=16, value_bytes=64)}


def encoded(path: Path) -> Selection:
    """What the request in *path* comes to; its name says who sent it and in which encoding."""
    request = OtlpRequest(
        body=path.read_bytes(),
        encoding="json" if path.suffix == ".json" else "protobuf",
        sender=FOREIGN if path.stem.startswith("foreign") else INSTRUMENTED,
        peer="127.0.0.1",
        received_unix_ns=RECEIVED_UNIX_NS,
    )
    return encode(request, LIMITS.get(path.stem, Limits()))


def expectation(selection: Selection) -> dict:
    """A selection as the file beside a request has it."""
    return {
        "spans": selection.spans,
        "tagged": selection.tagged,
        "copies": selection.copies,
        "invalid": selection.invalid,
        "problems": list(selection.problems),
        "leaves": [
            {"content": leaf.content.hex(), "hash": leaf.hash.hex(), "identity": leaf.identity.hex()}
            for leaf in selection.leaves
        ],
    }


def requests() -> list[Path]:
    """The stored requests."""
    return sorted(
        path for path in VECTORS.iterdir() if path.suffix in {".bin", ".json"} and ".leaves" not in path.name
    )


def expected_path(path: Path) -> Path:
    """The file that holds what the request in *path* comes to."""
    return path.with_name(f"{path.name}.leaves.json")


def add(attributes, **named) -> None:
    """Append attributes: strings, numbers, lists of strings; a double underscore in a name is a dot."""
    for name, value in named.items():
        one: KeyValue = attributes.add(key=name.replace("__", "."))
        if isinstance(value, list):
            for element in value:
                one.value.array_value.values.add().string_value = element
        elif isinstance(value, int):
            one.value.int_value = value
        else:
            one.value.string_value = value


def a_request() -> tuple[ExportTraceServiceRequest, object]:
    request = ExportTraceServiceRequest()
    in_resource = request.resource_spans.add(schema_url="https://opentelemetry.io/schemas/1.37.0")
    add(
        in_resource.resource.attributes, service__name="orders", service__version="1.2.3", host__name="node-1"
    )
    in_scope = in_resource.scope_spans.add()
    in_scope.scope.name, in_scope.scope.version = "opentelemetry.instrumentation.fastapi", "0.66b1"
    return request, in_scope


def a_span(in_scope, number: int = 1):
    return in_scope.spans.add(
        trace_id=bytes(range(16)),
        span_id=bytes([number]) * 8,
        name="POST /orders/{id}/refund",
        kind=2,
        start_time_unix_nano=1_790_000_000_000_000_001,
        end_time_unix_nano=1_790_000_000_012_345_678,
        flags=0x101,
    )


def instrumented() -> bytes:
    """A record of an instrumented service, its ordinary copy, and a span that is nobody's business."""
    request, in_scope = a_request()
    span = a_span(in_scope)
    span.parent_span_id = b"parentid"
    add(
        span.attributes,
        http__request__method="POST",
        http__response__status_code=200,
        network__peer__address="10.0.0.7",
    )
    add(
        span.attributes,
        audit__record__id="01890a5d-ac96-774b-bcce-b302099a8057",
        audit__actor__id="alice",
        audit__actor__type="user",
        audit__actor__roles=["admin", "ops"],
        audit__actor__origin="authenticated",
        audit__actor__auth_method="basic",
        audit__action="UPDATE",
        audit__outcome="success",
        audit__target__type="orders",
        audit__target__id="17",
        audit__parent__span_id="00f067aa0ba902b7",
        audit__sequence__stream_id="b1946ac92492d234",
        audit__sequence__number=42,
        audit__schema__version="1",
    )
    span.status.code = 1
    event = span.events.add(
        time_unix_nano=1_790_000_000_000_000_500, name="checked", dropped_attributes_count=1
    )
    add(event.attributes, rule="amount", limit=500)
    link = span.links.add(trace_id=b"L" * 16, span_id=b"l" * 8, trace_state="a=b", flags=1)
    add(link.attributes, why="retry")
    add(a_span(in_scope, 2).attributes, audit__delivery="spool", audit__action="UPDATE")
    add(a_span(in_scope, 3).attributes, http__route="/health")
    return request.SerializeToString(deterministic=True)


def foreign_aliases() -> bytes:
    """A tagged span of a service that Auditspan does not instrument, and two without valid ids."""
    request, in_scope = a_request()
    span = a_span(in_scope)
    add(span.attributes, audit__actor__origin="authenticated", user__id="bob", enduser__role="clerk")
    add(span.attributes, audit__resource="invoice/9", audit__operation="export", http__status_code=403)
    for number, field in enumerate(("trace_id", "span_id"), start=4):
        broken = a_span(in_scope, number)
        broken.ClearField(field)
        add(broken.attributes, audit__action="READ")
    return request.SerializeToString(deterministic=True)


def values() -> bytes:
    """Every type of value, alone and nested, and a key that repeats."""
    request, in_scope = a_request()
    span = a_span(in_scope)
    add(span.attributes, audit__x="ü 💥", again="text", many=["a", ""])
    add(span.attributes, again=-(1 << 63))
    for name, double in {"whole": 1.0, "small": 5e-324, "nan": float("nan"), "minus": float("-inf")}.items():
        span.attributes.add(key=name).value.double_value = double
    span.attributes.add(key="yes").value.bool_value = True
    span.attributes.add(key="raw").value.bytes_value = bytes(range(8))
    span.attributes.add(key="nothing")
    plain = span.attributes.add(key="plain").value.kvlist_value
    plain.values.add(key="n").value.int_value = 1
    plain.values.add(key="d").value.double_value = 1.0
    plain.values.add(key="none").value.SetInParent()
    nested = span.attributes.add(key="nested").value.array_value
    nested.values.add().bytes_value = b"\xff"
    nested.values.add().kvlist_value.CopyFrom(plain)
    in_scope.scope.attributes.add(key="scoped").value.bool_value = False
    request.resource_spans[0].resource.entity_refs.add(type="service", id_keys=["service.name"])
    return request.SerializeToString(deterministic=True)


def extremes() -> bytes:
    """Times past 2262, an end before its start, unknown enum numbers, the largest counts, a link of odd ids."""
    request, in_scope = a_request()
    span = a_span(in_scope)
    add(span.attributes, audit__x="")
    span.start_time_unix_nano, span.end_time_unix_nano = (1 << 64) - 1, 1
    span.kind, span.status.code = 77, -1
    span.flags = span.dropped_attributes_count = span.dropped_events_count = span.dropped_links_count = (
        1 << 32
    ) - 1
    span.events.add(time_unix_nano=(1 << 64) - 1)
    span.links.add(trace_id=b"odd", span_id=b"odd")
    return request.SerializeToString(deterministic=True)


def cut() -> bytes:
    """More attributes and longer values than the limits of this vector (16 attributes, 64 bytes)."""
    request, in_scope = a_request()
    span = a_span(in_scope)
    add(
        span.attributes,
        **{f"k{n}": n for n in range(20)},
        audit__target__id="x" * 63 + "ü",
        audit__x="y" * 65,
    )
    return request.SerializeToString(deterministic=True)


def split() -> bytes:
    """The instrumented request as no library writes it: resource last and in pieces, a name twice, unknown fields."""
    request = ExportTraceServiceRequest.FromString(instrumented())
    in_resource = request.resource_spans[0]
    pieces = [type(in_resource)(), type(in_resource)()]
    for piece, attribute in zip(pieces, in_resource.resource.attributes, strict=False):
        piece.resource.attributes.append(attribute)
    pieces[1].resource.attributes.extend(in_resource.resource.attributes[2:])
    in_resource.ClearField("resource")
    written = (
        b"".join(part.SerializeToString(deterministic=True) for part in (in_resource, *pieces))
        + b"\x98\x06\x01"
    )
    return b"\x0a" + _varint(len(written)) + written


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def in_json() -> bytes:
    """OTLP/JSON as an SDK for browsers writes it."""
    attributes = [
        {"key": "audit.actor.id", "value": {"stringValue": "alice"}},
        {"key": "audit.sequence.number", "value": {"intValue": "7"}},
        {"key": "raw", "value": {"bytesValue": "AAEC"}},
        {"key": "ratio", "value": {"doubleValue": 1}},
    ]
    span = {
        "traceId": bytes(range(16)).hex(),
        "spanId": "00f067aa0ba902b7",
        "name": "checkout",
        "kind": 1,
        "startTimeUnixNano": "1790000000000000001",
        "endTimeUnixNano": "1790000000000000002",
        "attributes": attributes,
        "status": {"code": 2, "message": "no"},
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "web"}}]}
    document = {
        "resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "s"}, "spans": [span]}]}]
    }
    return json.dumps(document, indent=1).encode() + b"\n"


REQUESTS = {
    "instrumented.bin": instrumented,
    "foreign_aliases.bin": foreign_aliases,
    "values.bin": values,
    "extremes.bin": extremes,
    "cut.bin": cut,
    "split.bin": split,
    "web.json": in_json,
}


def main(arguments: list[str]) -> None:
    VECTORS.mkdir(exist_ok=True)
    if "--requests" in arguments:
        for name, make in REQUESTS.items():
            (VECTORS / name).write_bytes(make())
    for path in requests():
        expected_path(path).write_text(json.dumps(expectation(encoded(path)), indent=1) + "\n")
        print(f"wrote {expected_path(path).name}")


if __name__ == "__main__":
    main(sys.argv[1:])
