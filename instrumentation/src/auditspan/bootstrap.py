"""Wire Auditspan into the running OpenTelemetry SDK; the hook ``opentelemetry_pre_instrument``.

``opentelemetry-instrument`` calls ``pre_instrument`` after it has configured the SDK and before any instrumentation
starts. An exception there would end all instrumentation, so none leaves this module: what can't be wired is said
once in the log, and the service runs as if it were not there.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # has no types
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._importlib_metadata import entry_points

from auditspan import settings
from auditspan.api import PROCESSOR
from auditspan.policy import Policy
from auditspan.processor import AuditSpanProcessor
from auditspan.providers import attach, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from auditspan.extractors import Extractor
    from auditspan.processor import Sink
    from auditspan.propagation.counts import ContextCounts
    from auditspan.settings import Settings
    from auditspan.spool import Spool

_log = logging.getLogger(__name__)

EXTRACTORS: Final = "auditspan_extractor"  # entry point group
_OURS: Final = "auditspan.extractors."
_INSTRUMENT: Final = "_auditspan"  # attribute of BaseInstrumentor's wrapped method
_said: Final[set[str]] = set()

# With these the instrumentations make no span for some requests, so there is nothing to make a record of.
EXCLUDING: Final = (
    "OTEL_PYTHON_EXCLUDED_URLS",
    "OTEL_PYTHON_AIOHTTP_SERVER_EXCLUDED_URLS",
    "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
    "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS",
    "OTEL_PYTHON_STARLETTE_EXCLUDED_URLS",
    "OTEL_PYTHON_FLASK_EXCLUDED_URLS",
    "OTEL_PYTHON_GRPC_EXCLUDED_SERVICES",
)


def pre_instrument() -> None:
    """Start Auditspan in this process; again does nothing. Never raises."""
    try:
        _start()
    except Exception:  # noqa: BLE001 - see the module
        _log.warning("Auditspan could not start; the service runs without audit records", exc_info=True)


def _start() -> None:
    if settings.read(os.environ).disabled:
        return
    watch(_arrived)
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        _start_with(provider)
    else:
        _say_once(
            f"Auditspan needs the OpenTelemetry SDK's TracerProvider and found {type(provider).__qualname__}; there "
            f"are no audit records unless the application sets one. {_advice()}"
        )
    # Also without a provider: what is instrumented before the application sets one has our hooks then.
    if not hasattr(BaseInstrumentor.instrument, _INSTRUMENT):
        extractors = installed_extractors()
        hook_instrumentors(extractors)
        start_extractors(extractors)


def _advice() -> str:
    if os.environ.get("OTEL_CONFIG_FILE"):
        return "Does OTEL_CONFIG_FILE have a section tracer_provider?"
    return "Is opentelemetry-distro installed?"


def _arrived(provider: TracerProvider) -> None:
    """The application has set *provider*, after us."""
    try:
        _start_with(provider)
    except Exception:  # noqa: BLE001 - see the module
        _log.warning("Auditspan could not start; the service runs without audit records", exc_info=True)


def _start_with(provider: TracerProvider) -> None:
    if getattr(provider, PROCESSOR, None) is not None:
        return
    running = getattr(trace.get_tracer_provider(), PROCESSOR, None)
    if running is not None:
        # A second provider, which the application uses beside the global one: one process, one sequence of records.
        attach(provider, running, exits=running.carries_context)
        setattr(provider, PROCESSOR, running)
        return
    service_name = str(provider.resource.attributes.get("service.name", ""))
    chosen = settings.read(os.environ, service_name=service_name)
    for problem in chosen.problems:
        _log.warning("Auditspan: %s", problem)
    excluded = [name for name in EXCLUDING if os.environ.get(name)]
    if excluded:
        _log.warning("Auditspan: requests that %s leaves out get no audit record", " and ".join(excluded))
    sink = _deliver(chosen)
    processor = install(provider, chosen, sink)
    sink.on_check(processor.tend)
    atexit.register(processor.finish_counting)  # later than delivery, so it comes before that stops
    _guarded("audit-context", lambda: _carry_context(chosen, service_name, processor.context_counts))


def install(
    provider: TracerProvider, chosen: Settings, sink: Sink, policy: Policy | None = None
) -> AuditSpanProcessor:
    """Let the spans of *provider* become records in *sink*, whatever its sampler drops; *policy* is that of *chosen*."""
    processor = processor_of(provider, chosen, sink, policy)
    attach(provider, processor, exits=processor.carries_context)
    setattr(provider, PROCESSOR, processor)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=processor.flood.after_fork)
    return processor


def processor_of(
    provider: TracerProvider, chosen: Settings, sink: Sink, policy: Policy | None = None
) -> AuditSpanProcessor:
    """What makes records of the spans of *provider*, once it is attached; *policy* is that of *chosen*."""
    processor = AuditSpanProcessor(chosen, sink, policy or Policy.of(chosen))
    processor.tracer = provider.get_tracer("auditspan")
    return processor


def _deliver(chosen: Settings) -> Spool:
    """A spool on disk, with a thread that sends it to the collector."""
    from auditspan.shipper import Shipper, Target  # noqa: PLC0415 - not needed to import this module
    from auditspan.spool import Spool  # noqa: PLC0415 - as above

    spool = Spool(chosen.spool_dir, max_bytes=chosen.spool_max_bytes, sync=chosen.spool_sync)
    _guarded("delivery", lambda: Shipper(spool, Target.of(chosen)).start())
    return spool


def _carry_context(chosen: Settings, service_name: str, counts: ContextCounts) -> None:
    from auditspan.propagation import install as carry  # noqa: PLC0415 - not needed to import this module

    carry(chosen, service=service_name, counts=counts)
    counts.publish()


def hook_instrumentors(extractors: Iterable[Extractor]) -> None:
    """Let each instrumentor that starts from now on have the hooks of all *extractors* that know it, in order.

    Where two give a request a source, the last one's counts.
    """
    original: Callable[..., Any] = BaseInstrumentor.instrument
    if hasattr(original, _INSTRUMENT):
        return
    known: dict[str, list[Extractor]] = {}
    for extractor in extractors:
        for name in extractor.INSTRUMENTORS:
            known.setdefault(name, []).append(extractor)
    early = [name.partition(":")[2] for name in known if _has_started(name)]
    if early:
        _log.warning(
            "Auditspan: %s had started before it, so nobody tells it who acts there; where OTEL_CONFIG_FILE lists "
            "instrumentations, list `auditspan: {}` first, elsewhere call auditspan.bootstrap.pre_instrument() earlier",
            " and ".join(early),
        )

    @functools.wraps(original)
    def instrument(self: BaseInstrumentor, **kwargs: Any) -> Any:
        name = next(
            (n for cls in type(self).__mro__ if (n := f"{cls.__module__}:{cls.__name__}") in known), ""
        )
        if not name or self.is_instrumented_by_opentelemetry:
            return original(self, **kwargs)
        kwargs, afterwards = hooks(name, kwargs, known[name])
        result = original(self, **kwargs)
        if self.is_instrumented_by_opentelemetry:
            afterwards()
        return result

    setattr(instrument, _INSTRUMENT, True)
    BaseInstrumentor.instrument = instrument


def start_extractors(extractors: Iterable[Extractor]) -> None:
    """Let those that need no instrumentor begin. Never raises."""
    for extractor in extractors:
        start = getattr(extractor, "start", None)
        if callable(start):
            check_versions(extractor)
            _guarded(str(getattr(extractor, "__name__", extractor)), start)


def _has_started(instrumentor: str) -> bool:
    module, _, name = instrumentor.partition(":")
    kind = getattr(sys.modules.get(module), name, None)
    return bool(getattr(getattr(kind, "_instance", None), "is_instrumented_by_opentelemetry", False))


def hooks(
    instrumentor: str, arguments: dict[str, Any], extractors: Iterable[Extractor]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """*arguments* of ``module:Class`` with the hooks of those *extractors* that know it, and what to do afterwards."""
    steps = []
    for extractor in extractors:
        if instrumentor in extractor.INSTRUMENTORS:
            arguments, step = _prepare(extractor, instrumentor, arguments)
            steps.append(step)

    def afterwards() -> None:
        for step in steps:
            _guarded(instrumentor, step)

    return arguments, afterwards


def _prepare(
    extractor: Extractor, name: str, given: dict[str, Any]
) -> tuple[dict[str, Any], Callable[[], None]]:
    check_versions(extractor)
    try:
        prepared = extractor.instrument(name, dict(given))
        return prepared if isinstance(prepared, tuple) else (prepared, lambda: None)
    except Exception:  # noqa: BLE001 - a plugin's code; the framework is instrumented without it
        _log.warning("Auditspan: an extractor for %s failed and is left out", name, exc_info=True)
        return given, lambda: None


def check_versions(extractor: Extractor) -> None:
    """Say once when a framework is not of the versions that *extractor* was tested with; it is used all the same."""
    try:
        for distribution, (oldest, newest) in getattr(extractor, "TESTED", {}).items():
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # the extractor knows several
                _check_version(distribution, oldest, newest)
    except Exception:  # noqa: BLE001 - only a remark; a plugin may write its range in another way
        _log.debug("Auditspan: the version of a framework could not be compared", exc_info=True)


def _check_version(distribution: str, oldest: str, newest: str) -> None:
    installed = importlib.metadata.version(distribution)
    if not _numbers(oldest) <= _numbers(installed, like=oldest) or not (
        _numbers(installed, like=newest) <= _numbers(newest)
    ):
        _say_once(
            f"Auditspan: {distribution} {installed} is none of the versions that it was tested with ({oldest} to "
            f"{newest}); what it can't read there is missing in the records, the service is not affected"
        )


def _numbers(version: str, like: str = "") -> tuple[int, ...]:
    """The numbers of *version*, as many as *like* has."""
    found = re.findall(r"\d+", version)
    return tuple(int(number) for number in found[: like.count(".") + 1 if like else len(found)])


def installed_extractors() -> list[Extractor]:
    """All that are installed, ours first, so that another distribution's word on the same framework counts."""
    found = []
    for entry_point in sorted(entry_points(group=EXTRACTORS), key=lambda e: not e.value.startswith(_OURS)):
        try:
            found.append(_checked(entry_point.load()))
        except Exception:  # noqa: BLE001 - a plugin's code; the others go on
            _log.warning("Auditspan: the extractor %s can't be used", entry_point.name, exc_info=True)
    return found


def _checked(extractor: Any) -> Extractor:
    if not (isinstance(extractor.INSTRUMENTORS, tuple) and callable(extractor.instrument)):
        raise TypeError("INSTRUMENTORS must be a tuple and instrument a function; see auditspan.extractors")
    checked: Extractor = extractor
    return checked


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _log.warning("%s", text)


def _guarded(what: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:  # noqa: BLE001 - see the module
        _log.warning("Auditspan: %s could not be set up; the service is not affected", what, exc_info=True)
