"""Say in the audit trail itself that records were lost: a record that says how many, from when to when.

The numbers of the lost ones are missing in ``audit.sequence.number``; this record says that the process knows of it
and why. It is written as soon as there is room again.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind

from auditspan import attributes as names

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AnyValue


def span_of(tracer: Tracer, start_time_ns: int, end_time_ns: int) -> ReadableSpan:
    """A span for the record, which no exporter sees; with the resource and scope of *tracer*."""
    resource = getattr(tracer, "resource", None)
    return ReadableSpan(
        name="audit records lost",
        context=SpanContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1, is_remote=False),
        resource=resource if isinstance(resource, Resource) else Resource.get_empty(),
        kind=SpanKind.INTERNAL,
        instrumentation_scope=getattr(tracer, "instrumentation_scope", None),
        start_time=start_time_ns,
        end_time=end_time_ns,
    )


def attributes_of(record_id: str, stream_id: str, lost: int, reason: str) -> dict[str, AnyValue]:
    """The audit attributes of the record, without its own number in the sequence."""
    return {
        names.SCHEMA_VERSION: names.SCHEMA_VERSION_VALUE,
        names.RECORD_ID: record_id,
        names.ACTOR_ID: "auditspan",
        names.ACTOR_TYPE: "system",
        names.ACTOR_ORIGIN: names.AUTHENTICATED,
        names.ACTION: "LOSE",
        names.OUTCOME: names.FAILURE,
        names.REASON: reason,
        names.TARGET_TYPE: "audit-records",
        names.TARGET_ID: stream_id,
        names.LOST_COUNT: lost,
    }
