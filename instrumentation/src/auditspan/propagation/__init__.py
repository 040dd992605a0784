"""The signed ``audit-context`` header: downstream services learn who acts, and can believe it.

What it promises, and to whom it goes, is in docs/audit-context.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator

from auditspan.propagation.destinations import Destinations
from auditspan.propagation.keys import KeyRing, KeysError, readable_by_all
from auditspan.propagation.propagator import HEADER, AuditContextPropagator
from auditspan.propagation.tokens import PURPOSE, Tokens

if TYPE_CHECKING:
    from typing import Any

    from auditspan.settings import Settings

__all__ = ["HEADER", "AuditContextPropagator", "Destinations", "KeyRing", "Tokens", "install"]

_log = logging.getLogger(__name__)


def install(settings: Settings, *, service: str) -> AuditContextPropagator:
    """Carry audit-context in this process: extend the global propagator, and guard where requests leave.

    *service* names this service to the next. Problems with the keys or the list are said once in the log; what
    can't be used signs, believes and allows nothing. Call it once, after the SDK is set up and before the
    application makes channels and clients.
    """
    tokens = _tokens(settings)
    destinations = Destinations(settings.context_destinations)
    for problem in destinations.problems:
        _log.warning("auditspan: OTEL_AUDITSPAN_CONTEXT_DESTINATIONS: %s", problem)
    if destinations and tokens is None:
        _log.warning(
            "auditspan: OTEL_AUDITSPAN_CONTEXT_DESTINATIONS is set, but there is no usable key, so nothing is "
            "sent: set OTEL_AUDITSPAN_CONTEXT_KEYS_FILE"
        )
    propagator = AuditContextPropagator(tokens, destinations, service=service)
    set_global_textmap(CompositePropagator([get_global_textmap(), propagator]))
    if tokens is not None:
        _guard(propagator, destinations)
    return propagator


def _tokens(settings: Settings) -> Tokens | None:
    path = settings.context_keys_file
    if path is None:
        return None
    try:
        ring = KeyRing.from_file(path, PURPOSE)
    except KeysError as problem:
        _log.warning("auditspan: OTEL_AUDITSPAN_CONTEXT_KEYS_FILE: %s. audit-context is off", problem)
        return None
    if readable_by_all(path):
        _log.warning("auditspan: every user of this host can read the keys in %s: chmod o-rwx", path)
    return Tokens(ring, ttl_s=settings.context_ttl_s)


def _guard(propagator: AuditContextPropagator, destinations: Destinations) -> None:
    import wrapt  # noqa: PLC0415 - only with keys

    from auditspan.propagation.http_guard import guard_http_clients  # noqa: PLC0415 - only with keys

    def wrap_grpc(_: Any) -> None:
        from auditspan.propagation.grpc_channels import wrap_channels  # noqa: PLC0415 - imports grpc

        wrap_channels(propagator, destinations)

    guard_http_clients(destinations)
    wrapt.register_post_import_hook(wrap_grpc, "grpc")
