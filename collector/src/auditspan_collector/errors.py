"""Every error that the collector raises on purpose.

    AuditspanError
    |-- ConfigError          a setting is wrong; the process does not start
    |-- InvalidRequest       bytes that are not OTLP: where, and what is wrong
    |-- TooLarge             a message over the limit
    |-- Unauthenticated      no credential, or one that nobody knows
    |-- PermissionDenied     a known credential that may not do this
    |-- SpoolFull            (retryable) ClickHouse has been away for longer than the spool can hold
    |-- ShuttingDown         (retryable) no new work is taken
    |-- SpoolInUse           another process owns the spool folder
    |-- SpoolDamaged         a stored value fails its checksum
    |-- CommandRefused       an operator's command that can't be carried out as things are
    |-- StoreUnavailable     (retryable) ClickHouse does not answer, or says to try again
    |-- StoreRejected        ClickHouse answered, and will answer the same again
    |-- StoreInUse           another process owns the embedded store's folder
    |-- QueryError           a question that can't be asked that way
    `-- NotFound             the question was good; what it names is not in the store

`retryable` says whether the same input may succeed later: a transient error is retried, a permanent one
needs a person. Messages say what, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class AuditspanError(Exception):
    """The root; catch it at a process's outermost edge only."""

    retryable: ClassVar[bool] = False


class ConfigError(AuditspanError):
    """A setting is missing, unknown, of the wrong type or impossible: "path: value; what is allowed"."""


class InvalidRequest(AuditspanError):  # noqa: N818 - named after gRPC's INVALID_ARGUMENT
    """The request's bytes are not OTLP.

    *offset* counts bytes from the start of the decompressed body, None where only the path is known (a JSON value
    that does not fit its field); *field* is the path of the message field, for instance
    ``resource_spans[0].scope_spans[2].spans[13].attributes[4].key``.
    """

    def __init__(self, problem: str, *, offset: int | None, field: str) -> None:
        place = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{field or 'request'}{place}: {problem}")
        self.problem = problem
        self.offset = offset
        self.field = field


class TooLarge(AuditspanError):  # noqa: N818 - a fact about a request
    """A message exceeds the limit; sending it again can't help."""


class Unauthenticated(AuditspanError):  # noqa: N818 - gRPC's word
    """No credential came, or one that no configured sender has."""


class PermissionDenied(AuditspanError):  # noqa: N818 - gRPC's word
    """The sender is known and may not do this."""


class SpoolFull(AuditspanError):  # noqa: N818 - a state
    """The spool has no room; nothing of the request was kept."""

    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ShuttingDown(AuditspanError):  # noqa: N818 - a state
    """The collector is stopping; nothing of the request was kept."""

    retryable = True
    retry_after_s = 1.0


class SpoolInUse(AuditspanError):  # noqa: N818 - a state
    """Another process owns the folder."""


class SpoolDamaged(AuditspanError):  # noqa: N818 - a state
    """A value on disk fails its checksum or can't be read; nothing is skipped on its own."""


class CommandRefused(AuditspanError):  # noqa: N818 - a state
    """What an operator asked for can't be done as things are; nothing was changed."""


class StoreUnavailable(AuditspanError):  # noqa: N818 - a state
    """No connection, a time-out, or an answer that asks for a later try."""

    retryable = True


class StoreRejected(AuditspanError):  # noqa: N818 - a state
    """ClickHouse refused, and would refuse the same again. *code* is its error number, 0 when it gave none."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StoreInUse(AuditspanError):  # noqa: N818 - a state
    """Another process owns the embedded store's folder."""


class QueryError(AuditspanError):
    """A question that can't be asked that way: a time that is no time, an id that is no id."""


class NotFound(AuditspanError):  # noqa: N818 - an answer
    """What was asked for by name or id is not in the store (yet)."""
