"""What became of the ``audit-context`` of this process's requests, for the metrics that the service already exports.

The counters become instruments of OpenTelemetry's global meter: ``auditspan.context.verified``, and
``auditspan.context.rejected`` with the attribute ``reason``.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Final

from opentelemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions

    from auditspan.context import Upstream

VERIFIED: Final = "auditspan.context.verified"
REJECTED: Final = "auditspan.context.rejected"
_METER: Final = "auditspan"


class ContextCounts:
    """Requests and messages that came with an ``audit-context``, since the process began or was forked. Thread-safe."""

    def __init__(self) -> None:
        self._begin()
        if hasattr(os, "register_at_fork"):
            again = weakref.WeakMethod(self._begin)

            def after_in_child() -> None:
                begin = again()
                if begin is not None:
                    begin()

            os.register_at_fork(after_in_child=after_in_child)

    @property
    def verified(self) -> int:
        """How many came with a token that the keys vouch for, on its own trace and in time."""
        return self._verified

    @property
    def rejected(self) -> Mapping[str, int]:
        """How many were rejected, by the reason (attributes.CONTEXT_REJECTED)."""
        with self._lock:
            return dict(self._rejected)

    def note(self, upstream: Upstream) -> None:
        """Count what one request came with."""
        reason = upstream.rejected
        if not reason:
            self._verified += 1
            return
        with self._lock:
            self._rejected[reason] = self._rejected.get(reason, 0) + 1

    def publish(self, meter: metrics.Meter | None = None) -> None:
        """Let *meter* (default: of the service's meter provider) read the counters for as long as this lives."""
        meter = meter or metrics.get_meter(_METER)
        reference = weakref.ref(self)

        def verified(_: CallbackOptions) -> Iterable[metrics.Observation]:
            counts = reference()
            return [] if counts is None else [metrics.Observation(counts.verified)]

        def rejected(_: CallbackOptions) -> Iterable[metrics.Observation]:
            counts = reference()
            found = {} if counts is None else counts.rejected
            return [metrics.Observation(number, {"reason": reason}) for reason, number in found.items()]

        meter.create_observable_counter(VERIFIED, [verified], "{request}")
        meter.create_observable_counter(REJECTED, [rejected], "{request}")

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._verified = 0
        self._rejected: dict[str, int] = {}
