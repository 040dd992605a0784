"""What happened to this process's records, for the metrics that the service already exports.

The counters become instruments of OpenTelemetry's global meter, ``auditspan.records.<counter>``; without a meter
provider they cost nothing and go nowhere.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from opentelemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions

METER: Final = "auditspan"
PREFIX: Final = "auditspan.records."


@dataclass(slots=True)
class DeliveryCounts:
    """What happened to records since the process began, or since it was forked.

    *sent* counts every try; *acknowledged* what the collector has; *rejected* what it took note of and refused
    (partial success); *set_aside* what it refused and is kept in ``.bad`` files; *retries* calls that had to be
    made again; *waiting* this process's records that are not acknowledged yet. The rest as in SpoolCounts.
    """

    appended: int = 0
    shed: int = 0
    failed: int = 0
    oversize: int = 0
    deferred: int = 0
    torn: int = 0
    unsynced: int = 0
    sent: int = 0
    acknowledged: int = 0
    rejected: int = 0
    set_aside: int = 0
    retries: int = 0
    waiting: int = 0
    last_error: str = ""


class Counting(Protocol):
    """What has these counters."""

    def counts(self) -> DeliveryCounts:
        """A snapshot."""


def publish(source: Counting, meter: metrics.Meter | None = None) -> None:
    """Let *meter* (default: of the service's meter provider) read the counters of *source*, for as long as it lives."""
    meter = meter or metrics.get_meter(METER)
    reference = weakref.ref(source)
    for name, kind in DeliveryCounts.__annotations__.items():
        if name == "waiting":
            meter.create_observable_gauge(PREFIX + name, [_reader(reference, name)], "{record}")
        elif kind == "int":
            meter.create_observable_counter(PREFIX + name, [_reader(reference, name)], "{record}")


def _reader(
    reference: weakref.ref[Counting], name: str
) -> Callable[[CallbackOptions], Iterable[metrics.Observation]]:
    def read(_: CallbackOptions) -> Iterable[metrics.Observation]:
        source = reference()
        return [] if source is None else [metrics.Observation(getattr(source.counts(), name))]

    return read
