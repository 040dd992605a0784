"""The signed ``audit-context`` header: downstream services learn who acts, and can believe it.

What it promises, and to whom it goes, is in docs/audit-context.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from opentelemetry.propagate import get_global_textmap, set_global_textmap
from opentelemetry.propagators.composite import CompositePropagator

from auditspan.propagation.destinations import Destinations
from auditspan.propagation.key_file import KeyFile
from auditspan.propagation.keys import KeyRing
from auditspan.propagation.propagator import HEADER, AuditContextPropagator
from auditspan.propagation.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from auditspan.propagation.counts import ContextCounts
    from auditspan.settings import Settings

__all__ = ["HEADER", "AuditContextPropagator", "Destinations", "KeyRing", "Tokens", "install"]

_log = logging.getLogger(__name__)


def install(
    settings: Settings, *, service: str, counts: ContextCounts | None = None
) -> AuditContextPropagator:
    """Carry audit-context in this process: extend the global propagator, and guard where requests leave.

    *service* names this service to the next; what comes in is counted in *counts*. Problems with the keys or the list
    are said once in the log; what can't be used signs, believes and allows nothing. The keys are read again when their
    file changes. Call it once, after the SDK is set up and before the application makes channels and clients.
    """
    destinations = Destinations(settings.context_destinations)
    for problem in destinations.problems:
        _log.warning("auditspan: OTEL_AUDITSPAN_CONTEXT_DESTINATIONS: %s", problem)
    propagator = AuditContextPropagator(None, destinations, service=service, counts=counts)
    path = settings.context_keys_file
    if path is None:
        if destinations:
            _log.warning(
                "auditspan: OTEL_AUDITSPAN_CONTEXT_DESTINATIONS is set, but there is no usable key, so nothing is "
                "sent: set OTEL_AUDITSPAN_CONTEXT_KEYS_FILE"
            )
    else:
        _read_keys(propagator, path, settings)
        _guard(propagator, destinations)
    set_global_textmap(CompositePropagator([get_global_textmap(), propagator]))
    return propagator


def _read_keys(propagator: AuditContextPropagator, path: Path, settings: Settings) -> None:
    def use(ring: KeyRing) -> None:
        propagator.tokens = Tokens(
            ring, ttl_s=settings.context_ttl_s, queue_ttl_s=settings.context_queue_ttl_s
        )

    use(KeyRing())  # a file that can't be used yet may be mended while the service runs
    propagator.key_file = KeyFile(path, use)
    propagator.key_file.look()
    propagator.key_file.watch()


def _guard(propagator: AuditContextPropagator, destinations: Destinations) -> None:
    import wrapt  # noqa: PLC0415 - only with keys

    from auditspan.propagation.http_guard import guard_aiohttp, guard_http_clients  # noqa: PLC0415 - only with keys

    def wrap_grpc(_: Any) -> None:
        from auditspan.propagation.grpc_channels import wrap_channels  # noqa: PLC0415 - imports grpc

        wrap_channels(propagator, destinations)

    def wrap_kafka(kafka: Any) -> None:
        from auditspan.propagation.kafka_producers import wrap_producers  # noqa: PLC0415 - only with Kafka

        wrap_producers(kafka, propagator, destinations)

    def wrap_aiohttp(module: Any) -> None:
        if guard_aiohttp(module, destinations):
            propagator.guarded.add("opentelemetry.instrumentation.aiohttp_client")

    guard_http_clients(destinations)
    wrapt.register_post_import_hook(wrap_grpc, "grpc")
    wrapt.register_post_import_hook(wrap_kafka, "kafka")
    wrapt.register_post_import_hook(wrap_aiohttp, "aiohttp.client_reqrep")
