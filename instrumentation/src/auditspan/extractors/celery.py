"""Celery: each run of a task is a record, written before its result can be read.

The span is the one that the Celery instrumentation makes of a run. It ends after the result has been stored, so a
worker killed in between would leave a result without a record; hence the record is written in front of the backend's
``mark_as_...``. A run whose process died, or took too long, is told by the worker's main process, which marks it as
failed.
"""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan import context
from auditspan.context import Facts
from auditspan.extractors import begin, conclude, guard, respond, text
from auditspan.spans import put

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Actor

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.celery:CeleryInstrumentor",)
TESTED: Final = {"celery": ("5", "5")}

_MAX_RUNS: Final = 65_536  # a run whose end nobody tells must not stay for ever
_LOST: Final = frozenset(
    {"WorkerLostError", "TimeLimitExceeded"}
)  # billiard.exceptions, seen by the main process
_STATES: Final = {"REJECTED": "rejected", "IGNORED": "ignored", "RETRY": "to be tried again"}


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Hear of a run's end before the instrumentation does, and of its start afterwards: receivers come in order."""
    del instrumentor
    from celery import signals  # noqa: PLC0415 - the hook runs only where Celery is

    signals.task_postrun.connect(_postrun, weak=False, dispatch_uid="auditspan-postrun")

    def afterwards() -> None:
        signals.task_prerun.connect(_prerun, weak=False, dispatch_uid="auditspan-prerun")
        _watch_results()

    return arguments, afterwards


@dataclass(slots=True)
class TaskSource:
    """One run of the task *name*."""

    name: str
    task_id: str
    outcome: str = ""
    reason: str = ""

    def actor(self) -> Actor | None:
        """Nobody: who asked for the run comes with the message."""
        return None

    def facts(self, span: ReadableSpan) -> Facts:
        """The task and how its run ended."""
        del span
        return Facts(
            action="EXECUTE",
            outcome=self.outcome,
            reason=self.reason,
            target_type=self.name,
            target_id=self.task_id,
            route=self.name,
            changes=True,
        )


_runs: dict[str, tuple[Any, TaskSource]] = {}  # by task id
_told: Final[deque[str]] = deque(maxlen=1000)  # tasks whose process was lost


def _prerun(*_: Any, task_id: str = "", task: Any = None, **__: Any) -> None:
    _begin(task_id, task)


@guard
def _begin(task_id: str, task: Any) -> None:
    from opentelemetry import trace  # noqa: PLC0415 - with its SDK, where there is a span

    span, source = trace.get_current_span(), TaskSource(task.name, task_id)
    state = begin(span, source)
    if state is None:
        return
    state.certain = True
    if len(_runs) >= _MAX_RUNS:
        _runs.pop(next(iter(_runs)), None)
    _runs[task_id] = (span, source)


def _postrun(*_: Any, task_id: str = "", state: str | None = "", **__: Any) -> None:
    _end(task_id, state or "")


@guard
def _end(task_id: str, state: str) -> None:
    span, source = _runs.pop(task_id, (None, None))
    if source is None or source.outcome:
        return
    # Without a result: rejected, ignored, or left by what ends the process (SystemExit), of which the pool's main
    # process then tells.
    source.outcome = names.SUCCESS if state == "SUCCESS" else names.FAILURE
    source.reason = _STATES.get(state, "")
    if not state and _in_a_pool():
        audited = context.of_span(span)
        if audited is not None:
            audited.written = True


def _in_a_pool() -> bool:
    from billiard import current_process  # noqa: PLC0415 - only where Celery is

    return bool(current_process().name != "MainProcess")


def _watch_results() -> None:
    from celery.backends.base import Backend  # noqa: PLC0415 - only where Celery is

    if getattr(Backend, "_auditspan", False):
        return
    for method, tell in (
        ("mark_as_done", _done),
        ("mark_as_failure", _failed),
        ("mark_as_retry", _retried),
        ("mark_as_revoked", _revoked),
    ):
        setattr(Backend, method, _after(guard(tell), getattr(Backend, method)))
    Backend._auditspan = True  # noqa: SLF001 - our own mark


def _after(tell: Callable[..., None], original: Any) -> Any:
    @functools.wraps(original)
    def mark(self: Any, task_id: str, *args: Any, **kwargs: Any) -> Any:
        tell(task_id, *args, **kwargs)
        return original(self, task_id, *args, **kwargs)

    return mark


def _done(task_id: str, *_: Any, **__: Any) -> None:
    _tell(task_id, names.SUCCESS, "")


def _retried(task_id: str, *_: Any, **__: Any) -> None:
    _tell(task_id, names.FAILURE, _STATES["RETRY"])


def _failed(task_id: str, error: Any, *args: Any, **kwargs: Any) -> None:
    denied = isinstance(error, PermissionError)
    outcome, reason = (names.DENIED, text(error)) if denied else (names.FAILURE, "")
    if not _tell(task_id, outcome, reason) and type(error).__name__ in _LOST:
        _lost(task_id, type(error).__name__, kwargs.get("request") or next(iter(args[1:]), None))


def _revoked(task_id: str, reason: str = "", request: Any = None, *_: Any, **__: Any) -> None:
    if reason == "terminated":  # while it ran; others never did
        _lost(task_id, reason, request)


def _tell(task_id: str, outcome: str, reason: str) -> bool:
    """Write the record of the run *task_id*; False when it is not one of this process."""
    run = _runs.get(task_id)
    if run is None:
        return False
    span, source = run
    source.outcome, source.reason = outcome, reason
    _describe(span, source)
    conclude(span)
    return True


def _describe(span: Any, source: TaskSource) -> None:
    """What the instrumentation puts on the span only after the result is stored."""
    from celery import current_task  # noqa: PLC0415 - only where Celery is
    from opentelemetry.instrumentation.celery import utils  # noqa: PLC0415 - as above

    put(span, {"celery.action": "run", "celery.task_name": source.name})
    task = current_task._get_current_object()  # noqa: SLF001 - as with Flask's: each look at the proxy is several calls
    if task:
        utils.set_attributes_from_context(span, task.request)


def _lost(task_id: str, reason: str, request: Any) -> None:
    """The record of a run whose own process could not write one."""
    from opentelemetry import trace  # noqa: PLC0415 - with its SDK, where there is a span
    from opentelemetry.instrumentation.celery import celery_getter  # noqa: PLC0415 - only where Celery is
    from opentelemetry.propagate import extract  # noqa: PLC0415 - with its SDK, where there is a span

    if task_id in _told:  # a time limit is told twice
        return
    _told.append(task_id)
    name = text(getattr(request, "task", "")) or "unknown"
    parent = extract(request, getter=celery_getter) if request is not None else None
    tracer = trace.get_tracer(__name__)
    with tracer.start_as_current_span(f"run/{name}", parent, trace.SpanKind.CONSUMER) as span:
        source = TaskSource(name, task_id, names.FAILURE, reason)
        if begin(span, source) is not None:
            span.set_attribute("messaging.message.id", task_id)
            respond(span)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "Celery": {"page": "celery", "distribution": "celery", "gives": "upstream"},
}
