"""The actor, and the audited span that the current code runs in.

Two kinds of state. An *AuditedSpan* hangs on the SDK span it belongs to, so that code in a thread pool, in a
dependency or under a child span finds it through whatever span is current; it is mutable until the span ends.
An *Upstream* travels in the OpenTelemetry context: what the signed ``audit-context`` of the caller said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import context as otel_context

from auditspan import attributes as names

if TYPE_CHECKING:
    from opentelemetry.context import Context

_UPSTREAM = otel_context.create_key("auditspan-upstream")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and how we know. *session* is already hashed; *delegate* is who acts for them."""

    id: str
    type: str = "user"
    roles: tuple[str, ...] = ()
    origin: str = names.AUTHENTICATED
    session: str = ""
    auth_method: str = ""
    delegate: str = ""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the caller's ``audit-context`` said, already verified.

    *actor* is None when it named nobody or was rejected; *parent_span_id* is 16 hex digits or empty;
    *rejected* is empty or why the token was ignored: bad_signature, expired, wrong_trace, malformed.
    """

    actor: Actor | None = None
    parent_span_id: str = ""
    service: str = ""
    rejected: str = ""


@dataclass(slots=True)
class AuditedSpan:
    """What is known so far about the record that a span may become; filled until the span ends.

    *wanted* is None until a rule or the application decides; True makes a record, False never does. An entry
    span (SERVER, CONSUMER) has no parent here; a span inside it points to the nearest audited one around it.
    """

    span_id: str
    entry: bool
    upstream: Upstream = field(default_factory=Upstream)
    parent: AuditedSpan | None = None
    wanted: bool | None = None
    actor: Actor | None = None
    action: str = ""
    outcome: str = ""
    reason: str = ""
    target_type: str = ""
    target_id: str = ""


def upstream(context: Context | None = None) -> Upstream:
    """The caller's ``audit-context`` in *context* (default: the current one), or an empty one."""
    found = otel_context.get_value(_UPSTREAM, context)
    return found if isinstance(found, Upstream) else Upstream()


def with_upstream(value: Upstream, context: Context | None = None) -> Context:
    """*context* with *value* as the caller's ``audit-context``."""
    return otel_context.set_value(_UPSTREAM, value, context)
