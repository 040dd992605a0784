"""The collector and its store as two processes that can be ended and started again, each on its own."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import loopback
from collector.service.child_process import Auditspan
from collector.service.otlp_peer import wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SETTINGS = """
collector: {{deployment: test, name: line}}
receiver:
  grpc: {{listen: "127.0.0.1:{grpc}"}}
  http: {{listen: "127.0.0.1:{http}"}}
telemetry: {{metrics_listen: "127.0.0.1:{metrics}"}}
clickhouse: {{url: "http://127.0.0.1:{store}", connect_timeout_s: 1s}}
store: {{listen: "127.0.0.1:{store}", path: "{folder}/store"}}
spool: {{path: "{folder}/spool", max_bytes: 512MiB, dedup_window_records: 20000, allow_memory_filesystem: true}}
drain: {{retry_max_s: 500ms}}
"""


def free_port() -> int:
    """One below those that the system gives to clients: until a server has it, no connection gets it by chance."""
    while True:
        port = random.randint(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class WholeLine:
    """One collector, one store, fixed ports, one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.grpc, self.http, self.metrics, self.store_port = (free_port() for _ in range(4))
        self.config = folder / "auditspan.yaml"
        self.config.write_text(
            SETTINGS.format(
                grpc=self.grpc, http=self.http, metrics=self.metrics, store=self.store_port, folder=folder
            )
        )
        self.collector: Auditspan | None = None
        self.store: Auditspan | None = None
        self._starts = 0

    def start_store(self) -> None:
        self.store = self._start("store")
        wait_until(self._store_answers, limit_s=30, what="the store")

    def start_collector(self, *options: str) -> None:
        self.collector = self._start("collect", *options)
        self.collector.ports()

    def _start(self, command: str, *options: str, **environ: str) -> Auditspan:
        self._starts += 1
        folder = self.folder / f"{self._starts}-{command}"
        return Auditspan(folder, command, "--config", self.config, *options, **environ)

    def _store_answers(self) -> bool:
        assert self.store.process.poll() is None, self.store.stderr
        try:
            return loopback.get(f"http://127.0.0.1:{self.store_port}/ping").text == "Ok.\n"
        except httpx.TransportError:
            return False

    def kill_collector(self) -> None:
        self.collector.end(signal.SIGKILL)

    def stop(self) -> None:
        for process in (self.collector, self.store):
            if process is not None:
                process.end()

    def rows(self, sql: str) -> list[list[str]]:
        """What any ClickHouse client would get."""
        answer = loopback.post(
            f"http://127.0.0.1:{self.store_port}/?default_format=JSONCompactEachRow", content=sql, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return [json.loads(line) for line in answer.text.splitlines()]

    def has_table(self) -> bool:
        """The collector makes the table once it finds a store."""
        return bool(self.rows("SELECT 1 FROM system.tables WHERE database = 'audit' AND name = 'records'"))

    def stored_ids(self) -> list[str]:
        """The record id of every row, repeated ones repeated."""
        if not self.has_table():
            return []
        return [row[0] for row in self.rows("SELECT toString(record_id) FROM audit.records")]

    def _stored(self) -> int:
        return int(self.rows("SELECT count() FROM audit.records")[0][0]) if self.has_table() else 0

    def wait_for_records(self, ids: Iterable[str], *, limit_s: float = 30) -> None:
        """Until every one of *ids* is stored."""
        wanted = set(ids)

        def there() -> bool:
            # The count costs little, and is asked again and again.
            return self._stored() >= len(wanted) and wanted <= set(self.stored_ids())

        wait_until(there, limit_s=limit_s, what=f"{len(wanted)} records")


def request(record_ids: Iterable[str], **attributes: str) -> bytes:
    """An OTLP request with one audited span for each of *record_ids*."""
    message = ExportTraceServiceRequest()
    in_resource = message.resource_spans.add()
    in_resource.resource.attributes.add(key="service.name").value.string_value = "orders"
    spans = in_resource.scope_spans.add().spans
    for record_id in record_ids:
        seed = uuid.UUID(record_id).bytes
        span = spans.add(trace_id=seed, span_id=seed[8:], name="POST /orders", start_time_unix_nano=1)
        values = {
            "audit.record.id": record_id,
            "audit.actor.id": "alice",
            "audit.action": "CREATE",
            **attributes,
        }
        for key, value in values.items():
            span.attributes.add(key=key).value.string_value = value
    return message.SerializeToString()


class Client:
    """Sends numbered records until told to stop, and remembers which were acknowledged."""

    def __init__(
        self,
        port: int,
        *,
        records_per_request: int = 5,
        pause_s: float = 0.0,
        attributes: dict[str, str] | None = None,
    ):
        self.acknowledged: list[str] = []
        self._target = f"127.0.0.1:{port}"
        self._records_per_request, self._pause_s = records_per_request, pause_s
        self._attributes = attributes or {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        # As an exporter does: the same records again until they are acknowledged.
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(self._target, options=options) as channel:
            export = channel.unary_unary(EXPORT)
            while not self._over.is_set():
                ids = [str(uuid.uuid4()) for _ in range(self._records_per_request)]
                if self._until_acknowledged(export, request(ids, **self._attributes)):
                    self.acknowledged += ids
                self._over.wait(self._pause_s)

    def _until_acknowledged(self, export, body: bytes) -> bool:
        while True:
            try:
                export(body, timeout=5)
            except grpc.RpcError as error:
                if error.code() not in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                    raise
                if self._over.wait(0.05):
                    return False
            else:
                return True


def anonymous_memory_mb(pid: int) -> float:
    """Resident memory of a process that is not a file's (RssAnon in proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")
