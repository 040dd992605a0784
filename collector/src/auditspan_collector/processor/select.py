"""Choose the spans that become records.

A span is audit-tagged when one of its attribute keys starts with ``audit.``. The ordinary copy of a record that comes
by the service's own spool says so in ``audit.delivery`` and is left to its complete twin.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from auditspan import attributes as names

from auditspan_collector.errors import PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from auditspan_collector.decode import FoundSpan
    from auditspan_collector.record import Sender

_SHOWN_NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Chosen:
    """The audit-tagged spans in their order, and how many ordinary copies were passed over."""

    tagged: list[FoundSpan]
    copies: int


def choose(found: Iterable[FoundSpan]) -> Chosen:
    """Tell tagged spans and ordinary copies apart among spans with an ``audit.`` key.

    Raises InvalidRequest when an ``audit.delivery`` attribute is malformed; of a copy nothing else is judged.
    """
    tagged: list[FoundSpan] = []
    copies = 0
    for span in found:
        if any(value.string_value == names.DELIVERY_SPOOL for value in span.values(names.DELIVERY)):
            copies += 1
        else:
            tagged.append(span)
    return Chosen(tagged, copies)


def check_service(sender: Sender, service: str) -> None:
    """Raise PermissionDenied unless *sender* may speak for *service*."""
    if sender.services is None or any(fnmatchcase(service, pattern) for pattern in sender.services):
        return
    named = f"service {service!r}" if service else "spans without a service.name"
    raise PermissionDenied(
        f"sender {sender.name} may not send audit records of {named}; its services are "
        f"{', '.join(sender.services) or 'none'} (receiver.senders)"
    )


def problem_of(span: Span) -> str:
    """Why *span* can't become a record, naming it; empty when it can: its ids must be what W3C and OTLP say."""
    problem = (
        _id_problem("trace_id", span.trace_id, 16)
        or _id_problem("span_id", span.span_id, 8)
        or (
            span.parent_span_id
            and len(span.parent_span_id) != 8
            and _length("parent_span_id", span.parent_span_id, 8)
        )
    )
    if not problem:
        return ""
    name = span.name
    shown = name if len(name) <= _SHOWN_NAME_CHARACTERS else name[:_SHOWN_NAME_CHARACTERS] + "..."
    return f"span {span.span_id[:16].hex() or 'without id'} ({shown!r}): {problem}"


def _id_problem(field: str, value: bytes, width: int) -> str:
    if not value:
        return f"{field} is missing"
    if len(value) != width:
        return _length(field, value, width)
    return "" if any(value) else f"{field} is all zeroes"


def _length(field: str, value: bytes, width: int) -> str:
    return f"{field} has {len(value)} bytes, not {width}"
