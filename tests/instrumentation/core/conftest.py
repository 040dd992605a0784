"""Services that run for real, and Auditspan in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from auditspan.bootstrap import install
from auditspan.settings import Settings
from instrumentation.services import Collector, Sink
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from opentelemetry.trace import SpanKind

from instrumentation import services

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    server = Collector()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def harness() -> Any:
    """The functions of ``services``, for tests that start services of their own."""
    return services


@dataclass
class Running:
    """Auditspan in this process, on a provider of its own."""

    sink: Sink
    provider: TracerProvider
    exported: InMemorySpanExporter

    @property
    def tracer(self) -> Any:
        return self.provider.get_tracer("test")

    def serve(
        self, method: str = "POST", route: str = "/orders/{id}", context: Any = None, **attributes: Any
    ) -> Any:
        """An entry span, as an instrumentation starts it; use it with ``with``."""
        path = route.replace("{id}", "7")
        known = {"http.request.method": method, "http.route": route, "url.path": path} | attributes
        return self.tracer.start_as_current_span(
            f"{method} {route}", context=context, kind=SpanKind.SERVER, attributes=known
        )


@pytest.fixture(params=[ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not-sampled"])
def running(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    sink, exported = Sink(), InMemorySpanExporter()
    provider = TracerProvider(sampler=request.param, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    install(provider, Settings(reads=("/reports/*",)), sink)
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield Running(sink, provider, exported)
    provider.shutdown()
