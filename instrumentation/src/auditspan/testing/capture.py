"""Run Auditspan in a test's process, with a sink in memory, from the start of a capture to its end.

OpenTelemetry's tracer provider is one for the whole process, set once, and keeps its span processors. So one provider
is made for all captures (or the one that the application has set is used), it gets one processor of ours that is empty
between captures, and each capture has an audit processor of its own: what is left open by one test can't become a
record of the next.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from auditspan import settings
from auditspan.api import PROCESSOR
from auditspan.bootstrap import processor_of
from auditspan.processor import AuditSpanProcessor
from auditspan.providers import attach, watch
from auditspan.testing.applications import audit
from auditspan.testing.records import FIELDS, Record, Records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan, Span

    from auditspan.processor import Sink

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def capture(*apps: Any) -> Iterator[Records]:
    """Keep the records that are written from now on, of *apps* (FastAPI, Starlette, Flask) and of ``auditspan``'s functions.

    Settings come from the environment, so set ``OTEL_AUDITSPAN_READS`` and the like before. Captures may be nested and
    run beside each other in threads; each gets all records of the process. Raises RuntimeError where something that is
    not OpenTelemetry's SDK has set the tracer provider.
    """
    with contextlib.ExitStack() as ending:
        ending.enter_context(_stage.opened())
        records = Records(watch=lambda app: ending.enter_context(audit(app)))
        for app in apps:
            records.watch(app)
        ending.enter_context(_stage.feeding(records))
        yield records


class _Passing(SpanProcessor):
    """Stands in a provider for good, and passes what it hears to the processor of the running capture."""

    def __init__(self, stage: _Stage) -> None:
        self._stage = stage

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        processor = self._stage.processor
        if processor is not None:
            processor.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        processor = self._stage.processor
        if processor is not None:
            processor.on_end(span)


class _Stage:
    """What captures share in this process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._open = 0
        self._listening: tuple[Records, ...] = ()
        self._provider: TracerProvider | None = None  # for applications that set none
        self._attached: list[TracerProvider] = []
        self._undo = contextlib.ExitStack()
        self.processor: AuditSpanProcessor | None = None  # of the running capture
        self.stream_id = "test"

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            if self._open == 1:
                try:
                    self._begin()
                except BaseException:
                    self._open = 0
                    self._undo.close()
                    raise
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    self._undo.close()

    @contextlib.contextmanager
    def feeding(self, records: Records) -> Iterator[None]:
        with self._lock:
            self._listening = (*self._listening, records)
        try:
            yield
        finally:
            with self._lock:
                self._listening = tuple(one for one in self._listening if one is not records)

    def append(self, payload: bytes) -> bool:
        """As a sink; any thread."""
        listening = self._listening
        for record in decode(payload):
            for records in listening:
                records.add(record)
        return True

    def _begin(self) -> None:
        provider = self._global_provider()
        running = getattr(provider, PROCESSOR, None)
        if isinstance(running, AuditSpanProcessor):  # as under opentelemetry-instrument
            before = running.redirect(self)
            self._undo.callback(running.redirect, before)
            return
        chosen = settings.read(
            os.environ, service_name=str(provider.resource.attributes.get("service.name", ""))
        )
        for problem in chosen.problems:
            _log.warning("Auditspan: %s", problem)
        self.processor = processor_of(provider, chosen, self)
        self._undo.callback(setattr, self, "processor", None)
        self._take_part(provider)
        watch(self._arrived)

    def _global_provider(self) -> TracerProvider:
        found = trace.get_tracer_provider()
        if isinstance(found, TracerProvider):
            return found
        if not isinstance(found, trace.ProxyTracerProvider):
            raise RuntimeError(  # noqa: TRY004 - a state of the process, not an argument
                f"the tracer provider is a {type(found).__qualname__}; records can be captured with a TracerProvider of "
                "OpenTelemetry's SDK, or with none"
            )
        if self._provider is None:
            self._provider = TracerProvider(shutdown_on_exit=False)
            self._provider._disabled = False  # noqa: SLF001 - OTEL_SDK_DISABLED keeps tests from exporting; this does not
        api: Any = trace
        api._TRACER_PROVIDER = self._provider  # noqa: SLF001 - set_tracer_provider() could not be taken back
        self._undo.callback(self._unset, self._provider)
        return self._provider

    @staticmethod
    def _unset(provider: TracerProvider) -> None:
        api: Any = trace
        if api._TRACER_PROVIDER is provider:  # noqa: SLF001 - as above
            api._TRACER_PROVIDER = None  # noqa: SLF001 - as above

    def _take_part(self, provider: TracerProvider) -> None:
        if provider not in self._attached:
            attach(provider, _Passing(self))
            self._attached.append(provider)
        setattr(provider, PROCESSOR, self.processor)
        self._undo.callback(delattr, provider, PROCESSOR)

    def _arrived(self, provider: TracerProvider) -> None:
        """The application has set *provider* while captures run."""
        with self._lock:
            if self.processor is not None and not hasattr(provider, PROCESSOR):
                self._take_part(provider)


def decode(payload: bytes) -> list[Record]:
    """The records in an ExportTraceServiceRequest."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415 - protobuf is heavy
        ExportTraceServiceRequest,
    )

    request = ExportTraceServiceRequest.FromString(payload)
    return [
        _record(span, str(_values(group.resource.attributes).get("service.name", "")))
        for group in request.resource_spans
        for scoped in group.scope_spans
        for span in scoped.spans
    ]


def _record(span: Any, service: str) -> Record:
    attributes = _values(span.attributes)
    told = {name: attributes[key] for name, key in FIELDS.items() if key in attributes}
    if "roles" in told:
        told["roles"] = tuple(told["roles"])
    return Record(
        **told,
        span_name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        service=service,
        attributes=attributes,
    )


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in any_value.array_value.values]
    if kind == "kvlist_value":
        return _values(any_value.kvlist_value.values)
    return getattr(any_value, kind) if kind else None


# Global because OpenTelemetry's tracer provider is.
_stage: Final = _Stage()

if TYPE_CHECKING:
    _sink: Sink = _stage
