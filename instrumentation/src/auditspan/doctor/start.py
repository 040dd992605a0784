"""Start what ``opentelemetry-instrument`` starts, in the doctor's own process, with everything that sends left out.

The SDK's configurator is what makes exporters, so none runs: its place takes a TracerProvider without exporters, whose
records go nowhere. Distro, hooks and instrumentors are the real ones, in their order. What they say in the log becomes
part of the report.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.instrumentation.auto_instrumentation import initialize
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined] # has no types
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.util._importlib_metadata import entry_points

from auditspan import settings
from auditspan.bootstrap import install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import SpanProcessor

    from auditspan.doctor.report import Report
    from auditspan.processor import AuditSpanProcessor
    from auditspan.settings import Settings

_PART: Final = "opentelemetry"
_CONFIG_FILE: Final = "OTEL_CONFIG_FILE"
_CONFIGURATOR: Final = "OTEL_PYTHON_CONFIGURATOR"
_LOGGERS: Final = ("opentelemetry", "auditspan")
_EXPORTERS: Final = {
    "OTEL_TRACES_EXPORTER": "opentelemetry_traces_exporter",
    "OTEL_METRICS_EXPORTER": "opentelemetry_metrics_exporter",
    "OTEL_LOGS_EXPORTER": "opentelemetry_logs_exporter",
}
_PACKAGES: Final = (
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-distro",
    "opentelemetry-instrumentation",
)


class Nowhere:
    """A sink that keeps nothing."""

    stream_id = "doctor"

    def append(self, payload: bytes) -> bool:
        """Drop it."""
        del payload
        return True


def start(report: Report) -> tuple[Settings, AuditSpanProcessor]:
    """Instrument this process and add the part ``opentelemetry``; the service's settings, and what decides with them."""
    config = _configuration(report)
    startable = report.healthy
    resource = _resource(config)
    service = str(resource.attributes.get("service.name", ""))
    chosen = settings.read(os.environ, service_name=service)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    with listening(report, "settings"):  # the operator's files are read here
        processor = install(provider, chosen, Nowhere())
    # Exporters that others add hear of nothing: neither the hooks of other distributions, nor an application that sets
    # up OpenTelemetry itself, sends spans of an import.
    TracerProvider.add_span_processor = _leave_out  # type: ignore[method-assign]
    trace.set_tracer_provider(provider)
    report.parts[_PART] = {
        "service": service,
        "packages": {name: _version(name) for name in _PACKAGES},
        "config_file": os.environ.get(_CONFIG_FILE, ""),
        "disabled": chosen.disabled,
        "starts": startable and not chosen.disabled,
    }
    if chosen.disabled:
        report.problem(_PART, f"{settings.DISABLED} or OTEL_SDK_DISABLED is set, so nothing is audited")
    if service.startswith("unknown_service"):
        report.note(_PART, "OTEL_SERVICE_NAME is not set: records don't say which service they are from")
    _check_exporters(report)
    with listening(report, _PART):
        _instrument(config, report)
    return chosen, processor


def _leave_out(self: TracerProvider, span_processor: SpanProcessor) -> None:
    del self, span_processor


def started() -> frozenset[str]:
    """The instrumentors that run in this process, as ``module:Class``."""
    kinds, found = [BaseInstrumentor], set()
    while kinds:
        for kind in kinds.pop().__subclasses__():
            kinds.append(kind)
            instance = getattr(kind, "_instance", None)
            if getattr(instance, "is_instrumented_by_opentelemetry", False):
                found.add(f"{kind.__module__}:{kind.__name__}")
    return frozenset(found)


@contextlib.contextmanager
def listening(report: Report, part: str) -> Iterator[None]:
    """Let warnings of OpenTelemetry and Auditspan become notes in *part*, instead of lines on the terminal."""
    handler = _Noting(report, part)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Noting(logging.Handler):
    def __init__(self, report: Report, part: str) -> None:
        super().__init__(logging.WARNING)
        self._report, self._part = report, part

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if _CONFIGURATOR in text:  # our own doing
            return
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        (self._report.problem if record.levelno >= logging.ERROR else self._report.note)(self._part, text)


def _configuration(report: Report) -> Any:
    """The declarative configuration's model, or None."""
    path = os.environ.get(_CONFIG_FILE)
    if not path:
        return None
    try:
        from opentelemetry.configuration import (  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - an extra of OpenTelemetry's
            load_config_file,
        )

        config = load_config_file(path)
    except ImportError:
        report.problem(
            _PART, f"{_CONFIG_FILE} is set, but opentelemetry-configuration is not installed: install it"
        )
        return None
    except Exception as problem:  # noqa: BLE001 - whatever is wrong with the file, OpenTelemetry would not start
        report.problem(_PART, f"{_CONFIG_FILE}={path}: OpenTelemetry can't start with it: {problem}")
        return None
    if config.disabled:
        report.problem(
            _PART, f"{_CONFIG_FILE}={path} says disabled: true, so there are no spans and no records"
        )
    elif config.tracer_provider is None:
        report.problem(
            _PART,
            f"{_CONFIG_FILE}={path} has no section tracer_provider, so there are no spans and no records: add one",
        )
    return config


def _resource(config: Any) -> Resource:
    if config is None:
        return Resource.create({})
    from opentelemetry.configuration._resource import (  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - as above
        create_resource,
    )

    found: Resource = create_resource(config.resource)
    return found


def _instrument(config: Any, report: Report) -> None:
    file, configurator = os.environ.pop(_CONFIG_FILE, None), os.environ.get(_CONFIGURATOR)
    os.environ[_CONFIGURATOR] = "none: see auditspan.doctor.start"
    try:
        if config is not None:
            from opentelemetry.configuration.instrumentation import (  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415 - as above
                configure_instrumentation,
            )

            configure_instrumentation(config.instrumentation_development)
        initialize(swallow_exceptions=False)
    except Exception as problem:  # noqa: BLE001 - a distro's or an instrumentation's own code
        report.problem(_PART, f"OpenTelemetry can't start: {type(problem).__name__}: {problem}")
        report.parts[_PART]["starts"] = False
    finally:
        if file is not None:
            os.environ[_CONFIG_FILE] = file
        if configurator is None:
            del os.environ[_CONFIGURATOR]
        else:
            os.environ[_CONFIGURATOR] = configurator


def _check_exporters(report: Report) -> None:
    """Exporters by a name that nobody has end OpenTelemetry's start, and with it everything."""
    if os.environ.get(_CONFIG_FILE):
        return
    for variable, group in _EXPORTERS.items():
        installed = {entry_point.name for entry_point in entry_points(group=group)}
        for name in filter(None, map(str.strip, os.environ.get(variable, "").split(","))):
            if name not in installed and name not in ("none", "otlp"):
                report.problem(
                    _PART, f"{variable}={name}: no such exporter is installed, so OpenTelemetry can't start"
                )
                report.parts[_PART]["starts"] = False


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
