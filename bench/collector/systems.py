"""The systems that are measured: how each is started, and what it must store of what it acknowledged.

floor        throws the bytes away: what a gRPC server in Python costs at least
auditspan    `auditspan collect` as it is installed
interpreted  the same with the hot path not compiled
rotel        a Rust collector with a ClickHouse exporter, from its Python package; stores every span
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from bench.process import Process, free_port, listens, wait_until

if TYPE_CHECKING:
    from pathlib import Path

START_LIMIT_S: Final = 60.0
_SETTINGS: Final = """
collector: {{deployment: bench, name: measured}}
receiver:
  grpc: {{listen: "127.0.0.1:{grpc}"}}
  http: {{listen: "127.0.0.1:{http}"}}
telemetry: {{metrics_listen: "127.0.0.1:{metrics}", log_level: warning}}
clickhouse: {{url: "http://127.0.0.1:{store}"}}
spool: {{path: "{folder}/spool", max_bytes: {spool_bytes}}}
"""


@dataclass(frozen=True, slots=True)
class System:
    """One of them: *stores* is "tagged", "all" or "nothing" of what it acknowledges."""

    name: str
    stores: str
    program: str = ""
    spool_bytes: int = 8 << 30  # auditspan's default

    def start(
        self, folder: Path, *, store_port: int, workers: int, cores: frozenset[int]
    ) -> tuple[Process, int]:
        """Start it in *folder*; the process, and the port of OTLP/gRPC, on which it answers now."""
        port = free_port()
        command = {"floor": self._floor, "rotel": self._rotel}.get(self.name, self._auditspan)(
            folder, port, store_port, workers
        )
        process = Process(command, log=folder / f"{self.name}.log", cores=cores)
        try:
            wait_until(
                f"{self.name} listening", lambda: listens(port), limit_s=START_LIMIT_S, process=process
            )
        except BaseException:
            process.__exit__()
            raise
        return process, port

    def _floor(self, folder: Path, port: int, store_port: int, workers: int) -> list[str]:  # noqa: ARG002 - one shape
        return [sys.executable, "-m", "bench.collector.floor", str(port), str(workers)]

    def _auditspan(self, folder: Path, port: int, store_port: int, workers: int) -> list[str]:
        config = folder / "auditspan.yaml"
        config.write_text(
            _SETTINGS.format(
                grpc=port,
                http=free_port(),
                metrics=free_port(),
                store=store_port,
                folder=folder,
                spool_bytes=self.spool_bytes,
            )
        )
        program = {"interpreted": "bench.collector.interpreted"}.get(self.name, "auditspan_collector.cli")
        command = [sys.executable, "-m", program, "collect", "--config", str(config)]
        return command + (["--workers", str(workers)] if workers > 1 else [])

    def _rotel(self, folder: Path, port: int, store_port: int, workers: int) -> list[str]:  # noqa: ARG002 - one shape
        return [
            self.program,
            "start",
            f"--otlp-grpc-endpoint=127.0.0.1:{port}",
            f"--otlp-http-endpoint=127.0.0.1:{free_port()}",
            "--exporter=clickhouse",
            f"--clickhouse-exporter-endpoint=http://127.0.0.1:{store_port}",
            "--clickhouse-exporter-compression=none",
        ]


@cache
def several_workers() -> bool:
    """Whether `auditspan collect` can run more than one."""
    answer = subprocess.run(
        [sys.executable, "-m", "auditspan_collector.cli", "collect", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return "--workers" in answer.stdout
