"""Auditspan in the list of instrumentations of a declarative configuration (``OTEL_CONFIG_FILE``).

The instrumentations that such a file lists start before ``opentelemetry_pre_instrument``. Listed first, ``auditspan``
starts in time to give the others their hooks::

    instrumentation/development:
      python:
        auditspan: {}
        fastapi: {}

``opentelemetry-instrument`` starts it too, when all has been done already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # has no types

from auditspan.bootstrap import pre_instrument

if TYPE_CHECKING:
    from collections.abc import Collection


class AuditspanInstrumentor(BaseInstrumentor):  # type: ignore[misc] # as above
    """Starts Auditspan in this process; again does nothing, quietly."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None."""
        return ()

    def instrument(self, **kwargs: Any) -> None:
        """Start Auditspan. Never raises."""
        del kwargs
        pre_instrument()

    def _uninstrument(self, **kwargs: Any) -> None:
        """Spans that are open must still become records, so there is no way back."""
