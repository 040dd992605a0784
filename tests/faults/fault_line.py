"""A collector whose way to ClickHouse can fail, and which comes back when it ends, as a service manager would see to."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import loopback
from auditspan_collector.spool import Config, Spool, share
from collector.service.otlp_peer import wait_until
from faults.proxy import Proxy
from faults.senders import Senders
from integration.whole_line import WholeLine
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector.ledger.merkle import Frontier

SETTINGS = """
collector: {{deployment: test, name: faults, workers: {workers}}}
receiver:
  grpc: {{listen: "127.0.0.1:{grpc}"}}
  http: {{listen: "127.0.0.1:{http}"}}
telemetry: {{metrics_listen: "127.0.0.1:{metrics}"}}
clickhouse:
  url: "http://127.0.0.1:{proxy}"
  database: {database}
  connect_timeout_s: 1s
  insert_timeout_s: {insert_timeout_s}s
  query_timeout_s: 5s
store: {{listen: "127.0.0.1:{store}", path: "{folder}/store"}}
spool:
  path: "{folder}/spool"
  max_bytes: {spool_mb}MiB
  dedup_window_records: {window}
  allow_memory_filesystem: true
intake: {{group_bytes: {group_mb}MiB, queue_bytes: {queue_mb}MiB, queue_wait_s: {queue_wait_s}s}}
drain: {{linger_s: 20ms, max_rows: {max_rows}, retry_min_s: 20ms, retry_max_s: 200ms, token_memory_s: {token_memory_s}s}}
"""
DEFAULTS = {
    "workers": 1,
    "insert_timeout_s": 20,
    "spool_mb": 256,
    "window": 100_000,
    "max_rows": 10_000,
    "token_memory_s": 600,
    "group_mb": 8,
    "queue_mb": 64,
    "queue_wait_s": 5,
}
_databases = itertools.count(1)


class FaultLine(WholeLine):
    """Collector, proxy and a store: its own, or one that others use too and which is therefore never ended.

    Settings are those of DEFAULTS.
    """

    def __init__(self, folder: Path, store_port: int | None = None, **settings: float):
        super().__init__(folder)
        if store_port is not None:
            self.store_port = store_port
        self.database = f"faults_{next(_databases)}"
        self.table = "records"
        self.proxy = Proxy(self.store_port)
        self.settings = {**DEFAULTS, **settings}
        self._keeper: threading.Thread | None = None
        self._let_end = threading.Event()
        self.ends: list[int] = []  # exit statuses of collectors that the keeper replaced
        self.write_settings()

    def write_settings(self, **settings: float) -> None:
        """Change some; a collector reads them when it starts."""
        self.settings |= settings
        text = SETTINGS.format(
            grpc=self.grpc,
            http=self.http,
            metrics=self.metrics,
            proxy=self.proxy.port,
            store=self.store_port,
            folder=self.folder,
            database=self.database,
            **self.settings,
        )
        self.config.write_text(text)

    # The collector

    def launch_collector(self, **environ: str) -> None:
        """Start a collector that may end before it is up."""
        self.collector = self._start("collect", **environ)

    def start_collector(self, **environ: str) -> None:
        self.launch_collector(**environ)
        self.collector.ports()

    def collector_ended(self, *, limit_s: float = 30) -> int:
        """The exit status of the collector, which is about to end by itself."""
        return self.collector.process.wait(limit_s)

    def keep_collector_alive(self) -> None:
        """From now on another collector follows each that ends."""
        self._let_end.clear()
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def _keep(self) -> None:
        while not self._let_end.wait(0.02):
            status = self.collector.process.poll()
            if status is not None:
                self.ends.append(status)
                self.launch_collector()

    def let_collector_end(self) -> None:
        self._let_end.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None

    def collector_log(self) -> str:
        return self.collector.stderr

    def stop(self) -> None:
        self.let_collector_end()
        self.proxy.close()
        super().stop()

    # What it says of itself

    def senders(self, label: str = "orders", count: int = 4, *, pause_s: float = 0.02, **each) -> Senders:
        return Senders(label, (self.grpc, self.http), count, pause_s=pause_s, **each)

    def metric(self, name: str, **labels: str) -> float | None:
        """One value of ``/metrics``; None when the collector does not answer."""
        try:
            text = loopback.get(f"http://127.0.0.1:{self.metrics}/metrics").text
        except httpx.TransportError:
            return None
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    def drained(self) -> bool:
        labels = [{"worker": str(number)} for number in self.workers] if len(self.workers) > 1 else [{}]
        return all(self.metric("auditspan_spool_records", **each) == 0 for each in labels)

    def wait_until_stored(self) -> None:
        """Until something is in the table."""
        wait_until(
            lambda: self.metric("auditspan_drain_inserted_records_total"), limit_s=30, what="a stored record"
        )

    def wait_until_drained(self, *, limit_s: float = 60) -> None:
        wait_until(self.drained, limit_s=limit_s, what="an empty spool")

    # What it left

    def end_collector(self, *, limit_s: float = 30) -> int:
        """Ask it to stop; the exit status."""
        self.let_collector_end()
        return self.collector.end(limit_s=limit_s)

    def kill_now(self) -> None:
        """Kill whatever collector runs, and don't wait."""
        self.collector.process.kill()

    def kill_worker(self, which: int) -> None:
        """Kill one of the workers that run, if there is any, and don't wait."""
        if pids := self._worker_pids():
            with suppress(ProcessLookupError):
                os.kill(pids[which % len(pids)], signal.SIGKILL)

    def kill_everything_now(self) -> None:
        """Kill the collector and its workers at once, and don't wait."""
        pids = self._worker_pids()
        self.kill_now()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _worker_pids(self) -> list[int]:
        parent = self.collector.process.pid
        try:
            return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            return []

    @property
    def workers(self) -> range:
        """Their numbers."""
        return range(1, int(self.settings["workers"]) + 1)

    def spool(self, worker: int = 1) -> SpoolState:
        """What the spool of a worker of the stopped collector holds."""
        with self._opened_spool(worker) as spool:
            return SpoolState(spool.stream, spool._ledger.frontier, spool.released_index)

    def spools(self) -> list[SpoolState]:
        """Those of all workers."""
        return [self.spool(number) for number in self.workers]

    def waiting_rows(self) -> bytes:
        """The rows that the spool of the stopped collector still holds."""
        with self._opened_spool() as spool:
            batch = spool.read(1 << 30, 1 << 30)
            return b"" if batch is None else batch.rows

    @contextmanager
    def _opened_spool(self, worker: int = 1) -> Iterator[Spool]:
        config = Config(
            path=str(self.folder / "spool"),
            max_bytes=int(self.settings["spool_mb"]) << 20,
            dedup_window_records=int(self.settings["window"]),
            allow_memory_filesystem=True,
        )
        spool = Spool.open(share(config, worker, len(self.workers)), "test", "faults")
        try:
            yield spool
        finally:
            spool.close()


class SpoolState:
    """A stream, its tree, and the first index that is not released."""

    def __init__(self, stream: str, frontier: Frontier, released: int):
        self.stream, self.frontier, self.released = stream, frontier, released

    @property
    def backlog(self) -> int:
        return self.frontier.size - self.released
