"""What a request costs in its own thread, with Auditspan and with the SDK alone, in turns in one process.

    python -m bench.instrumentation.request_path SPOOL_FOLDER ROUNDS [CASE ...]

Two copies of each application, alike but for their tracer provider, get the same requests in turns, a slice of each
at a time: what disturbs the machine disturbs both. Time is the thread's CPU time, so the exporter's and the shipper's
threads are not in it; of each copy's slices the lower quartile counts. Every answer of an audited request must have
left a record in the spool. A line of JSON for each case.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from auditspan.extractors import asgi
from auditspan.extractors import flask as flask_extractor
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind

from bench.instrumentation.apps import fastapi_app, flask_app
from bench.instrumentation.calls import HEADERS, environ_of, provider, records, scope_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import AnyValue

SLICE: Final = 100  # requests; 5 to 50 ms
WARM_UP: Final = 100  # requests


@dataclass(frozen=True)
class Subject:
    """Something that serves a request for each of some orders; `records` counts what became of them."""

    serve: Callable[[str, range], None]
    folder: Path | None

    def records(self) -> int:
        """Records in the spool."""
        return sum(1 for _ in records(self.folder)) if self.folder else 0


# -- the SDK alone: what an instrumentation does with a server span, without one


def spans(sampler: Sampler, folder: Path | None) -> Subject:
    """Server spans, without a framework."""
    tracer = provider(sampler, folder).get_tracer("bench")

    def serve(method: str, numbers: range) -> None:
        route = "/orders/{order_id}/refund" if method == "POST" else "/orders/{order_id}"
        for number in numbers:
            path = route.replace("{order_id}", str(number))
            attributes: dict[str, AnyValue] = {
                "http.scheme": "http",
                "http.host": "127.0.0.1:8000",
                "net.host.port": 8000,
                "http.flavor": "1.1",
                "http.target": path,
                "http.url": f"http://127.0.0.1:8000{path}",
                "http.method": method,
                "http.server_name": "shop:8000",
                "http.user_agent": "python-httpx/0.28.1",
                "net.peer.ip": "127.0.0.1",
                "net.peer.port": 51234,
                "http.route": route,
            }
            with tracer.start_as_current_span(
                f"{method} {route}", kind=SpanKind.SERVER, attributes=attributes
            ) as span:
                span.set_attribute("http.status_code", 200)

    return Subject(serve, folder)


# -- FastAPI


def fastapi(sampler: Sampler, folder: Path | None) -> Subject:
    """The application behind ASGI, without a server."""
    app = fastapi_app()
    hooks, _ = asgi.instrument(asgi.INSTRUMENTORS[0], {}) if folder is not None else ({}, None)
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider(sampler, folder), meter_provider=NoOpMeterProvider(), **hooks
    )
    loop = asyncio.new_event_loop()
    headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        return

    async def some(method: str, numbers: range) -> None:
        for number in numbers:
            scope = scope_of(method, number, headers)
            # A task of its own, as a server gives each request.
            await loop.create_task(app(scope, receive, send))

    return Subject(lambda method, numbers: loop.run_until_complete(some(method, numbers)), folder)


# -- Flask


def flask(sampler: Sampler, folder: Path | None) -> Subject:
    """The application behind WSGI, without a server."""
    app = flask_app()
    hooks, _ = (
        flask_extractor.instrument(flask_extractor.INSTRUMENTORS[0], {}) if folder is not None else ({}, None)
    )
    instrument: Any = FlaskInstrumentor.instrument_app
    instrument(app, tracer_provider=provider(sampler, folder), meter_provider=NoOpMeterProvider(), **hooks)

    def start_response(*_: Any) -> Callable[[bytes], object]:
        return len

    def serve(method: str, numbers: range) -> None:
        for number in numbers:
            environ = environ_of(method, number)
            answer: Any = app(environ, start_response)
            for _ in answer:
                pass
            answer.close()

    return Subject(serve, folder)


SUBJECTS: Final = {"spans": spans, "FastAPI": fastapi, "Flask": flask}
CASES: Final = (
    ("audited", "POST", ParentBased(ALWAYS_ON)),
    ("not_audited", "GET", ParentBased(ALWAYS_ON)),
    ("audited_not_sampled", "POST", ParentBased(ALWAYS_OFF)),
    ("not_sampled", "GET", ParentBased(ALWAYS_OFF)),
)


def measure(without: Subject, with_us: Subject, method: str, rounds: int) -> tuple[float, float]:
    """CPU us a request of each, the lower quartile of *rounds* slices."""
    spent: tuple[list[float], list[float]] = ([], [])
    for subject in (without, with_us):
        subject.serve(method, range(WARM_UP))
    for turn in range(rounds):
        orders = range(WARM_UP + turn * SLICE, WARM_UP + (turn + 1) * SLICE)
        # Whoever comes second finds warmer caches, so they take turns in that too.
        for which in (0, 1) if turn % 2 else (1, 0):
            gc.collect()
            started = time.thread_time()
            (without, with_us)[which].serve(method, orders)
            spent[which].append((time.thread_time() - started) / SLICE * 1e6)
    base, ours = (sorted(times)[rounds // 4] for times in spent)
    return base, ours


def main() -> None:
    """Measure the cases that the command line names, all when it names none."""
    folder, rounds, only = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    for framework, make in SUBJECTS.items():
        for case, method, sampler in CASES:
            if only and case not in only:
                continue
            without, with_us = make(sampler, None), make(sampler, folder / f"{framework}-{case}")
            base, ours = measure(without, with_us, method, rounds)
            requests = rounds * SLICE + WARM_UP
            expected, kept = (requests if method == "POST" else 0), with_us.records()
            if kept != expected:
                raise RuntimeError(f"{framework}, {case}: {expected} answers were to be kept, {kept} are")
            found = {
                "case": case,
                "on": framework,
                "base_us": round(base, 1),
                "us": round(ours, 1),
                "added_us": round(ours - base, 1),
                "ratio": round(ours / base, 3),
                "requests": requests,
                "records": kept,
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
