"""Auditspan in this process under a policy of the test's, and the services of the neighbouring tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from auditspan import bootstrap, context
from auditspan.policy import Policy
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from instrumentation import services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan.pseudonyms import ActorNames
    from auditspan.rules import Rules
    from auditspan.settings import Settings
    from instrumentation.postgresql import PostgreSQL


@dataclass
class Running:
    """Auditspan on a provider of its own."""

    sink: Any
    provider: TracerProvider
    exported: InMemorySpanExporter

    @property
    def tracer(self) -> Any:
        return self.provider.get_tracer("test")

    @staticmethod
    def state(span: Any) -> Any:
        return context.of_span(span)

    def serve(self, method: str = "POST", route: str = "/orders/{id}", **attributes: Any) -> Any:
        known = {"http.request.method": method, "http.route": route, "url.path": route.replace("{id}", "7")}
        return self.tracer.start_as_current_span(
            f"{method} {route}", kind=trace.SpanKind.SERVER, attributes=known | attributes
        )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    providers = []

    def install(
        settings: Settings,
        *,
        rules: Rules | None = None,
        actors: ActorNames | None = None,
        sampler: Any = None,
    ) -> Running:
        sink, exported = services.Sink(), InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exported))
        made = Policy.of(settings)
        policy = Policy(made.rules if rules is None else rules, actors or made.actors, made.proxies)
        bootstrap.install(provider, settings, sink, policy)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
        providers.append(provider)
        return Running(sink, provider, exported)

    yield install
    for provider in providers:
        provider.shutdown()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    from instrumentation.postgresql import PostgreSQL  # here: the other tests run without drivers

    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def harness() -> Any:
    return services


@pytest.fixture(scope="module")
def collector(harness: Any) -> Iterator[Any]:
    server = harness.Collector()
    yield server
    server.stop()
