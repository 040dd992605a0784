"""Start services as real processes, and read what they wrote down. For the tests of all folders here."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import loopback
from auditspan.spool import frames
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

HERE = Path(__file__).parent / "core"
BIN = Path(sys.executable).parent
DEADLINE_S = float(os.environ.get("AUDITSPAN_TESTS_DEADLINE_S", "30"))  # more where much else runs


@dataclass(frozen=True)
class Written:
    """One span as it was written down, its attributes as Python values."""

    span: Any
    resource: dict[str, Any]
    scope: str

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def attributes(self) -> dict[str, Any]:
        return {pair.key: value(pair.value) for pair in self.span.attributes}

    def __getitem__(self, name: str) -> Any:
        """An ``audit.`` attribute by the rest of its name, None when it isn't there."""
        return self.attributes.get(f"audit.{name}")


def value(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind == "array_value":
        return [value(item) for item in any_value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: value(pair.value) for pair in any_value.kvlist_value.values}
    return getattr(any_value, kind) if kind else None


def decode(payload: bytes) -> list[Written]:
    request = ExportTraceServiceRequest.FromString(payload)
    return [
        Written(span, {p.key: value(p.value) for p in group.resource.attributes}, scoped.scope.name)
        for group in request.resource_spans
        for scoped in group.scope_spans
        for span in scoped.spans
    ]


def spooled(folder: Path) -> list[Written]:
    """All records in a spool folder, in the order in which each file has them."""
    found = []
    for path in sorted(folder.rglob("*.spool")):
        content, offset = path.read_bytes(), 0
        while not isinstance(frame := frames.parse(content, offset), str):
            found += decode(frame.payload)
            offset = frame.end
    return found


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"{what} did not come about in {DEADLINE_S} s")
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_trace() -> str:
    return secrets.token_hex(16)


def traceparent(trace_id: str, *, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-0{int(sampled)}"}


def _client() -> httpx.Client:
    # A new connection for each request: a server that closes one after an exception may do so while we reuse it.
    return loopback.ClosingClient(timeout=DEADLINE_S)


@dataclass
class Service:
    """A service process under ``opentelemetry-instrument``, its spool, and its log."""

    process: subprocess.Popen[bytes]
    port: int
    spool: Path
    log_file: Path
    client: httpx.Client = field(default_factory=_client)

    def call(
        self,
        method: str,
        path: str,
        *,
        trace_id: str = "",
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> tuple[httpx.Response, str]:
        trace_id = trace_id or new_trace()
        url = f"http://127.0.0.1:{self.port}{path}"
        self.client.cookies.clear()  # a session is sent where a test says so
        response = self.client.request(method, url, headers=traceparent(trace_id) | (headers or {}), **kwargs)
        return response, trace_id

    def records(self, trace_id: str, count: int = 1) -> list[Written]:
        """The records of a trace, once there are *count* or more."""

        def enough() -> list[Written]:
            found = [record for record in spooled(self.spool) if record.trace_id == trace_id]
            return found if len(found) >= count else []

        return wait_for(enough, f"{count} records of trace {trace_id}")

    def record(self, method: str, path: str, **kwargs: Any) -> Written:
        """The one record of a request."""
        _, trace_id = self.call(method, path, **kwargs)
        (record,) = self.records(trace_id)
        return record

    def nothing(self, method: str, path: str, *, after: tuple[str, str], **kwargs: Any) -> httpx.Response:
        """Make a request that must leave no record; *after* is one that does, to know when it would be there."""
        response, trace_id = self.call(method, path, **kwargs)
        self.record(*after)
        assert [record for record in spooled(self.spool) if record.trace_id == trace_id] == []
        return response

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def stop(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def environment_of(spool: Path, changes: dict[str, str] | None = None) -> dict[str, str]:
    """A service's whole environment; an empty value in *changes* takes a variable away."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
    known = {
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_AUDITSPAN_ENDPOINT": f"http://127.0.0.1:{free_port()}",  # nobody listens: records stay on disk
        "OTEL_AUDITSPAN_SPOOL_DIR": str(spool),
        # Tests of these say otherwise: each start of another service would import them for nothing.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "asyncpg,falcon,psycopg,psycopg2,sqlite3",
        "PYTHONUNBUFFERED": "1",
    }
    return clean | {name: text for name, text in (known | (changes or {})).items() if text}


def start(
    folder: Path,
    command: list[str],
    environment: dict[str, str] | None = None,
    runner: str = "",
    apps: Path = HERE / "apps",
) -> Service:
    """Start *command* in *apps* under opentelemetry-instrument, or *runner*; ``{port}`` in it becomes a free port."""
    port, spool, log_file = free_port(), folder / "spool", folder / "service.log"
    environment = environment_of(spool, {"PORT": str(port)} | (environment or {}))
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [
                runner or str(BIN / "opentelemetry-instrument"),
                *(part.replace("{port}", str(port)) for part in command),
            ],
            cwd=apps,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    service = Service(process, port, spool, log_file)

    def listening() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the service ended:\n{service.log}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_for(listening, "the service's port")
    except AssertionError:
        service.stop()
        raise
    return service


def uvicorn(app: str) -> list[str]:
    return [str(BIN / "uvicorn"), app, "--port", "{port}", "--no-access-log", "--loop", "asyncio"]


class Collector:
    """A real OTLP/gRPC server that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Written] = []
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": handler}
                ),
            )
        )
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _export(self, body: bytes, _: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.spans += decode(body)
        return ExportTraceServiceResponse().SerializeToString()

    def of(self, trace_id: str) -> list[Written]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def ordinary(self, record: Written) -> Written:
        """The ordinary span of *record*, once it is there; those inside it may come in an earlier batch."""

        def same() -> list[Written]:
            return [span for span in self.of(record.trace_id) if span.span.span_id == record.span.span_id]

        (found,) = wait_for(same, f"the ordinary span of a record of trace {record.trace_id}")
        return found

    def stop(self) -> None:
        self._server.stop(0).wait()


class Sink:
    """A sink in memory, as the spool is one on disk."""

    def __init__(self) -> None:
        self.stream_id = "s1"
        self.payloads: list[bytes] = []
        self.full = False

    def append(self, payload: bytes) -> bool:
        if self.full:
            return False
        self.payloads.append(payload)
        return True

    @property
    def records(self) -> list[Written]:
        return [record for payload in self.payloads for record in decode(payload)]
