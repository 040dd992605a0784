"""Encode what spans share, their resource and their scope, once, and remember it.

A service sends the same resource with every request, so its columns are looked up by its bytes. They are made by the
readable path, of a span that says nothing, so there is one definition of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from auditspan import attributes as names
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from auditspan_collector import decode
from auditspan_collector.errors import InvalidRequest
from auditspan_collector.processor.enrich import enrich
from auditspan_collector.record import Sender
from auditspan_collector.schema import LEAF_COLUMNS, TRUNCATED
from auditspan_collector.schema.rowbinary import varint
from auditspan_collector.transcode import Head

if TYPE_CHECKING:
    from auditspan_collector.processor.enrich import Limits
    from auditspan_collector.record import AuditRecord

_MAX_BYTES: Final = 8 << 20  # of keys and heads that are remembered
_NOBODY: Final = Sender("", tenant="", services=None, instrumented=False)
_COLUMNS: Final = {column.name: column for column in LEAF_COLUMNS}

_RESOURCE: Final = (
    ("service_name",),
    ("resource_dropped_attributes_count",),
    ("resource_schema_url",),
    ("resource_attributes", "resource_attribute_types", "resource_entity_refs"),
)
_SCOPE: Final = (
    ("scope_name", "scope_version"),
    ("scope_dropped_attributes_count",),
    ("scope_schema_url",),
    ("scope_attributes", "scope_attribute_types"),
)


def _probe() -> ScopeSpans:
    scope_spans = ScopeSpans()
    span = scope_spans.spans.add(trace_id=b"\x01" * 16, span_id=b"\x01" * 8)
    span.attributes.add(key=names.PREFIX)
    return scope_spans


_SCOPE_PROBE: Final = _probe().SerializeToString()
_RESOURCE_PROBE: Final = ResourceSpans(scope_spans=[_probe()]).SerializeToString()


class Heads:
    """The heads of resources and scopes under *limits*. Thread-safe: its steps are single operations on a dict."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: dict[tuple[bool, bytes], Head | None] = {}
        self._bytes = 0

    def __call__(self, is_resource: bool, fields: bytes) -> Head | None:  # noqa: FBT001 - a hot call, by position
        """The head of a ResourceSpans or ScopeSpans with *fields*, which hold nothing below it.

        None when only the readable path can say what becomes of its spans: it is malformed, or over a limit, which
        each of its records has to tell.
        """
        key = (is_resource, fields)
        try:
            return self._known[key]
        except KeyError:
            head = self._encode(is_resource, fields)
        size = 2 * len(fields) + 500
        if self._bytes + size > _MAX_BYTES:
            self._known.clear()
            self._bytes = 0
        if size <= _MAX_BYTES:
            self._known[key] = head
            self._bytes += size
        return head

    def _encode(self, is_resource: bool, fields: bytes) -> Head | None:  # noqa: FBT001 - as above
        if is_resource:
            body = _request(fields + _RESOURCE_PROBE)
        else:
            body = _request(_length_delimited(2, fields + _SCOPE_PROBE))
        try:
            (found,) = decode.find(body, "protobuf", names.PREFIX).spans
            decoded = decode.decode(found)
        except InvalidRequest:
            return None
        record = enrich(decoded, _NOBODY, 0, self._limits)
        if any(key == TRUNCATED for key, _ in record.attributes):
            return None
        service = record.service_name if is_resource else ""
        return Head(service, *(_columns(record, group) for group in (_RESOURCE if is_resource else _SCOPE)))


def _columns(record: AuditRecord, group: tuple[str, ...]) -> bytes:
    columns = [_COLUMNS[name] for name in group]
    return b"".join(column.type.encode(getattr(record, column.field)) for column in columns)


def _length_delimited(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def _request(resource_spans: bytes) -> bytes:
    return _length_delimited(1, resource_spans)
