"""Carry the actor and the nearest record to the next service, and believe what the previous one signed.

Sends nothing unless three things hold: the current code runs in an audited span, the current span is a client's or a
producer's whose destination can be told, and that destination is on the list. Where the span tells no destination,
whoever writes the call does (see grpc_channels and kafka_producers).
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import baggage, trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter
from opentelemetry.trace import SpanKind

from auditspan import attributes as names
from auditspan import context as audit_context
from auditspan.context import UNSIGNED, Upstream
from auditspan.propagation import tokens as signed
from auditspan.propagation.counts import ContextCounts
from auditspan.propagation.tokens import Claims, has_token
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import CarrierT, Getter, Setter

    from auditspan.propagation.destinations import Destinations
    from auditspan.propagation.key_file import KeyFile
    from auditspan.propagation.tokens import Tokens

_log = logging.getLogger(__name__)

HEADER: Final = "audit-context"
_HEADER_LENGTH: Final = len(HEADER)

_INSTRUMENTATIONS: Final = "opentelemetry.instrumentation."
# Baggage that names an actor or what he did, in our words or in those of OpenTelemetry's conventions.
_CLAIMS: Final = (names.PREFIX, "user.", "enduser.")


class AuditContextPropagator(TextMapPropagator):
    """Put it behind the propagators that read ``traceparent`` and ``baggage``: a token counts only for its own trace.

    *tokens* may be replaced at any time, by whoever reads the keys. *guarded* names the OpenTelemetry instrumentations
    of HTTP clients whose requests are checked once more where they are written. Another one would
    carry the header along with a redirect to anywhere, so it gets none.
    """

    def __init__(
        self,
        tokens: Tokens | None,
        destinations: Destinations,
        *,
        service: str,
        counts: ContextCounts | None = None,
    ) -> None:
        """*tokens* is None without keys: then nothing is sent, and what comes in can't be judged, so is not believed.

        *service* names this service in what it sends.
        """
        self.counts: Final = counts or ContextCounts()
        self.tokens = tokens
        self.key_file: KeyFile | None = None  # kept alive here
        self.guarded = {_INSTRUMENTATIONS + client for client in ("requests", "urllib3", "httpx", "urllib")}
        self._destinations = destinations
        self._service = service
        self._said = False

    @property
    def fields(self) -> set[str]:
        """The header that inject may set."""
        return {HEADER}

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """*context* with the caller's Upstream, believed or rejected. Never raises."""
        try:
            values = getter.get(carrier, HEADER)
            if values and isinstance(carrier, (list, tuple)):
                values = _all_values(carrier) or values
        except UnicodeError:
            values = [""]  # a message's header that is no text
        except Exception as problem:  # noqa: BLE001 - carriers and getters are the instrumentations'
            self._complain(problem)
            values = None
        if values or _claimed(context):
            said = self._judge(values, context) if values else Upstream(rejected=UNSIGNED)
            self.counts.note(said)
            return audit_context.with_upstream(said, context)
        # What an outer request said is not what this one says.
        before = audit_context.upstream(context)
        stale = before is not audit_context.NO_UPSTREAM and before != Upstream()
        return audit_context.with_upstream(Upstream(), context) if stale or context is None else context

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Set the header where it may go, and take a token of ours away where it may not. Never raises."""
        if self.tokens is None:
            return
        try:
            span = trace.get_current_span(context)
            queue = getattr(span, "kind", None) is SpanKind.PRODUCER
            allowed = self._allows_queue(span) if queue else self._allows(span)
            token = self.token(context, queue=queue) if allowed else ""
            if token or not allowed:
                remove_tokens(carrier)
            if token:
                setter.set(carrier, HEADER, token)
        except Exception as problem:  # noqa: BLE001 - the application's request goes on without the header
            self._complain(problem)

    def token(self, context: Context | None = None, *, queue: bool = False) -> str:
        """A token for the audited span that *context* runs in; empty when there is none, or no key. May raise.

        With *queue* it is one for a message.
        """
        tokens = self.tokens
        if tokens is None or not tokens.can_sign:
            return ""
        state = audit_context.current(context)
        if state is None:
            return ""
        actor = state.effective_actor()
        # No id where the operator wants none.
        known = actor if actor.id and actor.origin != names.UNVERIFIED else None
        claims = Claims(f"{state.trace_id:032x}", known, state.nearest_record(), self._service)
        return tokens.sign(claims, queue=queue)

    def _judge(self, values: Sequence[str], context: Context | None) -> Upstream:
        tokens = self.tokens
        if len(values) != 1:
            return Upstream(rejected=signed.MALFORMED)
        if tokens is None:
            return Upstream(rejected=signed.UNKNOWN_KEY)
        trace_id = trace.get_current_span(context).get_span_context().trace_id
        try:
            return tokens.verify(values[0].strip(), f"{trace_id:032x}")
        except signed.Rejected as reason:
            return Upstream(rejected=str(reason))
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is no reason to believe anything
            self._complain(problem)
            return Upstream(rejected=signed.MALFORMED)

    def _allows(self, span: trace.Span) -> bool:
        if getattr(span, "kind", None) is not SpanKind.CLIENT:
            return False
        scope = getattr(getattr(span, "instrumentation_scope", None), "name", "")
        if scope not in self.guarded and scope.startswith(_INSTRUMENTATIONS):
            return False
        return self._destinations.allows_span(_attributes(span))

    def _allows_queue(self, span: trace.Span) -> bool:
        attributes = _attributes(span)
        # By the new or the old conventions for messaging.
        name = attributes.get("messaging.destination.name") or attributes.get("messaging.destination")
        return isinstance(name, str) and self._destinations.allows_queue(name)

    def _complain(self, problem: Exception) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "auditspan: audit-context is not carried on (%s: %s)", type(problem).__name__, problem
            )


def remove_tokens(carrier: object) -> None:
    """Take tokens out of *carrier*, a mapping or a list of pairs.

    A header copied from an incoming request must not leave the trust domain, nor stand beside ours.
    """
    if isinstance(carrier, list):
        carrier[:] = [pair for pair in carrier if not is_token(*pair)]
    elif isinstance(carrier, (dict, MutableMapping)):
        several = getattr(carrier, "getall", None)  # multidict's
        for key in [key for key in carrier if _is_ours(key)]:
            if any(is_token(key, value) for value in (several(key, ()) if several else (carrier[key],))):
                carrier.pop(key, None)


def is_token(key: object, value: object) -> bool:
    """Whether *key* and *value* are a header that holds a token."""
    return _is_ours(key) and has_token(value.decode("latin-1") if isinstance(value, bytes) else str(value))


def _is_ours(key: object) -> bool:
    return isinstance(key, str) and len(key) == _HEADER_LENGTH and key.lower() == HEADER


def _attributes(span: Any) -> Mapping[str, object]:
    return attributes_of(span) if hasattr(span, "attributes") else {}  # a span of the API alone has none


def _all_values(carrier: Sequence[tuple[str, object]]) -> list[str]:
    """All values of our header among a message's; the instrumentations' getters stop at the first."""
    found = [value for key, value in carrier if key == HEADER]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in found]


def _claimed(context: Context | None) -> bool:
    return any(key.startswith(_CLAIMS) for key in baggage.get_all(context))
