"""Carry the actor and the nearest record to the next service, and believe what the previous one signed.

Sends nothing unless three things hold: the current code runs in an audited span, the current span is a client's
whose destination can be told, and that destination is on the list. gRPC's client spans tell no destination; there
the channel does (see grpc_channels).
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter
from opentelemetry.trace import SpanKind, format_trace_id

from auditspan import attributes as names
from auditspan import context as audit_context
from auditspan.context import Upstream
from auditspan.propagation import tokens as signed
from auditspan.propagation.destinations import Destination
from auditspan.propagation.tokens import Claims, has_token

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import CarrierT, Getter, Setter

    from auditspan.propagation.destinations import Destinations
    from auditspan.propagation.tokens import Tokens

_log = logging.getLogger(__name__)

HEADER: Final = "audit-context"

_INSTRUMENTATIONS: Final = "opentelemetry.instrumentation."
# Clients whose requests http_guard checks once more where they are written. Another one (aiohttp) would carry the
# header along with a redirect to anywhere, so it gets none.
_GUARDED: Final = frozenset({"requests", "urllib3", "httpx", "urllib"})


class AuditContextPropagator(TextMapPropagator):
    """Put it behind the propagator that reads ``traceparent``: a token counts only for its own trace.

    *tokens* is None without keys: then nothing is sent, and what comes in can't be judged, so is not believed.
    """

    def __init__(self, tokens: Tokens | None, destinations: Destinations, *, service: str) -> None:
        """*service* names this service in what it sends."""
        self._tokens = tokens
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
        except Exception as problem:  # noqa: BLE001 - carriers and getters are the instrumentations'
            self._complain(problem)
            values = None
        if not values:
            # What an outer request said is not what this one says.
            stale = audit_context.upstream(context) != Upstream()
            return audit_context.with_upstream(Upstream(), context) if stale or context is None else context
        return audit_context.with_upstream(self._judge(values, context), context)

    def inject(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        setter: Setter[CarrierT] = default_setter,
    ) -> None:
        """Set the header where it may go, and take a token of ours away where it may not. Never raises."""
        if self._tokens is None:
            return
        try:
            allowed = self._destinations.allows(_destination(context))
            token = self.token(context) if allowed else ""
            if token or not allowed:
                self._remove_tokens(carrier)
            if token:
                setter.set(carrier, HEADER, token)
        except Exception as problem:  # noqa: BLE001 - the application's request goes on without the header
            self._complain(problem)

    def token(self, context: Context | None = None) -> str:
        """A token for the audited span that *context* runs in; empty when there is none, or no key. May raise."""
        state = audit_context.current(context) if self._tokens is not None else None
        if state is None or self._tokens is None:
            return ""
        actor = state.effective_actor()
        known = bool(actor.id) and actor.origin != names.UNVERIFIED  # no id where the operator wants none
        return self._tokens.sign(
            Claims(
                format_trace_id(state.trace_id),
                actor if known else None,
                state.nearest_record(),
                self._service,
            )
        )

    def _judge(self, values: list[str], context: Context | None) -> Upstream:
        if len(values) != 1:
            return Upstream(rejected=signed.MALFORMED)
        if self._tokens is None:
            return Upstream(rejected=signed.UNKNOWN_KEY)
        span_context = trace.get_current_span(context).get_span_context()
        try:
            return self._tokens.verify(values[0].strip(), format_trace_id(span_context.trace_id))
        except signed.Rejected as reason:
            return Upstream(rejected=str(reason))
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is no reason to believe anything
            self._complain(problem)
            return Upstream(rejected=signed.MALFORMED)

    def _remove_tokens(self, carrier: object) -> None:
        """A header copied from an incoming request must not leave the trust domain, nor stand beside ours."""
        if isinstance(carrier, MutableMapping):
            for key in [key for key in carrier if isinstance(key, str) and key.lower() == HEADER]:
                if has_token(str(carrier[key])):
                    del carrier[key]

    def _complain(self, problem: Exception) -> None:
        if not self._said:
            self._said = True
            _log.warning(
                "auditspan: audit-context is not carried on (%s: %s)", type(problem).__name__, problem
            )


def _destination(context: Context | None) -> Destination | None:
    span = trace.get_current_span(context)
    if getattr(span, "kind", None) is not SpanKind.CLIENT:
        return None
    scope = getattr(getattr(span, "instrumentation_scope", None), "name", "")
    if scope.startswith(_INSTRUMENTATIONS) and scope.removeprefix(_INSTRUMENTATIONS) not in _GUARDED:
        return None
    return Destination.of_span(getattr(span, "attributes", None) or {})
