"""Take OTLP in, over gRPC and HTTP, and answer as the OTLP specification says.

A receiver turns bytes into an OtlpRequest with a known Sender, hands it to *submit* and answers with what comes
back: nothing is decoded here, and OK is said only after *submit* returned, or *offer* called back.

    config    the operator's settings, and the addresses to listen on
    senders   whom a token belongs to
    answers   what a result or an error looks like on the wire (DESIGN, "Accepting and refusing")
    turns     how long a gRPC call may hold its place
    calls     gRPC calls that hold no thread
    grpc      port 4317
    http      port 4318
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from auditspan_collector.receiver.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.record import Accepted, OtlpRequest

__all__ = ["Config", "Offer", "ReceiverMetrics", "Submit"]


class Submit(Protocol):
    """Keep a request's records; thread-safe, blocks until they are on disk.

    Raises InvalidRequest, TooLarge, PermissionDenied, SpoolFull or ShuttingDown, and then nothing was kept.
    """

    def __call__(self, request: OtlpRequest, /) -> Accepted:
        """Answer for *request*."""


class Offer(Protocol):
    """As Submit, without waiting for the disk: *answer* gets what Submit would return or raise, from any thread.

    *answer* is called once, unless this raises: what can be said at once is raised. *since_s* is when the request came
    (time.monotonic).
    """

    def __call__(
        self, request: OtlpRequest, answer: Callable[[Accepted | BaseException], None], /, *, since_s: float
    ) -> None:
        """Have *request* kept."""


class ReceiverMetrics(Protocol):
    """What a receiver counts; thread-safe."""

    def answered(self, transport: str, outcome: str, *, body_bytes: int, duration_s: float) -> None:
        """A request over *transport* (grpc, http) was answered: *outcome* is ``ok`` or a Refusal's reason."""
