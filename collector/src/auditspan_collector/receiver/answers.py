"""What a result or an error looks like to an OTLP client, for both transports.

Which errors a client may retry decides whether records are lost, so it is decided here once. OTLP's rules are in
https://opentelemetry.io/docs/specs/otlp/#failures and #failures-1; exporters retry UNAVAILABLE and 503 and give
up on INTERNAL and INVALID_ARGUMENT. An error that nobody foresaw says nothing about the request, so it is
answered as retryable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from auditspan_proto.v1 import ledger_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from auditspan_collector.errors import (
    InvalidRequest,
    PermissionDenied,
    ShuttingDown,
    SpoolFull,
    TooLarge,
    Unauthenticated,
)

if TYPE_CHECKING:
    from auditspan_collector.errors import AuditspanError
    from auditspan_collector.record import Accepted, Receipt

RECEIPT_NAME: Final = "auditspan-receipt"  # trailing metadata and header
# Written by hand, since protobuf's own JSON takes ten times as long, and under the names that protobuf gives.
_STREAM, _RANGES, _DUPLICATES, _CONFLICTS = (
    field.json_name for field in ledger_pb2.Receipt.DESCRIPTOR.fields
)
_FIRST, _LAST = (field.json_name for field in ledger_pb2.IndexRange.DESCRIPTOR.fields)
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode
OK: Final = "ok"
INTERNAL: Final = "internal"
MAX_MESSAGE_CHARACTERS: Final = 1024  # a gRPC client refuses trailers over 8 KiB
DEFAULT_RETRY_AFTER_S: Final = 5.0


_ALL_KEPT: Final = ExportTraceServiceResponse()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as a client sees it. *reason* is its name in metrics; *retry_after_s* is None when final."""

    reason: str
    code: int  # google.rpc.Code, which is also gRPC's status code
    http_status: int
    message: str
    retry_after_s: float | None = None

    def status(self) -> status_pb2.Status:
        """As google.rpc.Status, with RetryInfo when a retry can help."""
        status = status_pb2.Status(code=self.code, message=self.message)
        if self.retry_after_s is not None:
            delay = Duration()
            delay.FromNanoseconds(round(self.retry_after_s * 1e9))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        return status


_FINAL: Final[tuple[tuple[type[AuditspanError], str, int, int], ...]] = (
    (InvalidRequest, "invalid_request", code_pb2.INVALID_ARGUMENT, 400),
    (TooLarge, "too_large", code_pb2.RESOURCE_EXHAUSTED, 413),
    (Unauthenticated, "unauthenticated", code_pb2.UNAUTHENTICATED, 401),
    (PermissionDenied, "permission_denied", code_pb2.PERMISSION_DENIED, 403),
)


def refusal(error: BaseException) -> Refusal:
    """The answer to a request that failed with *error*; retryable unless the error is known to be final."""
    for kind, reason, code, http_status in _FINAL:
        if isinstance(error, kind):
            return Refusal(reason, code, http_status, str(error)[:MAX_MESSAGE_CHARACTERS])
    if isinstance(error, SpoolFull):
        return _unavailable("spool_full", str(error), error.retry_after_s)
    if isinstance(error, ShuttingDown):
        return _unavailable("shutting_down", str(error) or "the collector is stopping", error.retry_after_s)
    # The client can do nothing with our internals, and they may hold paths or data.
    return _unavailable(INTERNAL, "the collector failed; its log says why", DEFAULT_RETRY_AFTER_S)


def busy() -> Refusal:
    """The answer to a request that there is no room for now."""
    return _unavailable("busy", "too many requests at a time", 1.0)


def unread() -> Refusal:
    """The answer to a request whose message did not come, or not in time; its client seldom hears it."""
    return Refusal("unread", code_pb2.INVALID_ARGUMENT, 400, "the call has no message")


def response(accepted: Accepted) -> ExportTraceServiceResponse:
    """OTLP's answer; ``partial_success`` is present only when something was rejected."""
    if not accepted.rejected and not accepted.problem:
        return _ALL_KEPT
    answer = ExportTraceServiceResponse()
    if accepted.rejected or accepted.problem:
        answer.partial_success.rejected_spans = accepted.rejected
        answer.partial_success.error_message = accepted.problem[:MAX_MESSAGE_CHARACTERS]
    return answer


def receipt_text(receipt: Receipt) -> str:
    """*receipt* as compact proto-JSON of auditspan.v1.Receipt: ASCII without line breaks, fit for a header.

    Zeros are written out, which proto-JSON leaves open: not every reader has the schema. 64-bit numbers are text.
    Conflicts are rare and named only when there are some.
    """
    content: dict[str, object] = {
        _STREAM: receipt.stream,
        _RANGES: [{_FIRST: str(each.first), _LAST: str(each.last)} for each in receipt.ranges],
        _DUPLICATES: str(receipt.duplicates),
    }
    if receipt.conflicts:
        content[_CONFLICTS] = str(receipt.conflicts)
    return _to_json(content)


def _unavailable(reason: str, message: str, retry_after_s: float) -> Refusal:
    return Refusal(reason, code_pb2.UNAVAILABLE, 503, message[:MAX_MESSAGE_CHARACTERS], retry_after_s)
