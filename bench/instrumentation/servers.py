"""Requests a second and memory of real servers under ``opentelemetry-instrument``, with Auditspan and with it disabled.

uvicorn serves FastAPI, gunicorn with threads serves Flask, each on a core of its own; ordinary spans and records go to
one counting collector. Every answer to an audited request must reach that collector as a record, once.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.process import Cores, Process, free_port, listens, wait_until

if TYPE_CHECKING:
    from bench.results import Case
    from bench.settings import Settings

BIN: Final = Path(sys.executable).parent
PATH: Final = "/orders/7/refund"
SERVERS: Final = {
    "FastAPI": [
        "uvicorn",
        "bench.instrumentation.apps:fastapi_app",
        "--factory",
        "--no-access-log",
        "--port",
    ],
    "Flask": [
        "gunicorn",
        "bench.instrumentation.apps:flask_app()",
        "--worker-class=gthread",
        "--threads=4",
        "--log-level=error",
        "--bind",
    ],
}


def cases(settings: Settings) -> list[Case]:
    """A case a framework: requests a second of both, and CPU time and memory between them."""
    found = []
    for framework, command in SERVERS.items():
        runs: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        for turn in range(settings.repetitions):
            for audited in (False, True) if turn % 2 else (True, False):
                folder = settings.folder / f"{framework}-{turn}-{audited}"
                folder.mkdir()
                runs[audited].append(_run(settings, command, folder, audited=audited))
        base, ours = ([median(column) for column in zip(*runs[kind], strict=True)] for kind in (False, True))
        found.append(
            {
                "case": "requests_per_s",
                "on": framework,
                "base_us": round(base[1], 1),
                "us": round(ours[1], 1),
                "added_us": round(ours[1] - base[1], 1),
                "ratio": round(ours[0] / base[0], 3),
                "base_requests_per_s": round(base[0]),
                "requests_per_s": round(ours[0]),
                "added_memory_mb": round(ours[2] - base[2], 1),
            }
        )
    return found


def _run(
    settings: Settings, command: list[str], folder: Path, *, audited: bool
) -> tuple[float, float, float]:
    """Requests a second, CPU us a request of all threads and processes, and RssAnon in MB."""
    cores = Cores(1)
    port, collector_port = free_port(), free_port()
    address = f"127.0.0.1:{port}" if "gunicorn" in command[0] else str(port)
    endpoint = f"http://127.0.0.1:{collector_port}"
    environ = {
        "OTEL_SERVICE_NAME": "bench",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_AUDITSPAN_ENDPOINT": endpoint,
        "OTEL_AUDITSPAN_SPOOL_DIR": str(folder / "spool"),
        "OTEL_AUDITSPAN_DISABLED": "off" if audited else "on",
    }
    with ExitStack() as running:
        collector = running.enter_context(
            Process(
                [sys.executable, "-m", "bench.instrumentation.collector", str(collector_port)],
                log=folder / "collector.log",
                cores=cores.load,
                talking=True,
            )
        )
        wait_until("the collector", partial(listens, collector_port), limit_s=30, process=collector)
        server = running.enter_context(
            Process(
                [str(BIN / "opentelemetry-instrument"), str(BIN / command[0]), *command[1:], address],
                log=folder / "server.log",
                cores=cores.system,
                environ=environ,
            )
        )
        wait_until("the server", partial(listens, port), limit_s=60, process=server)
        warm, _ = _load(port, 1.0, folder, cores)
        cpu_s = server.cpu_s()
        answers, seconds = _load(port, settings.seconds, folder, cores)
        cpu_us = (server.cpu_s() - cpu_s) / answers * 1e6
        memory_mb = server.rss_anon_mb()
        expected = warm + answers if audited else 0

        def records() -> int:
            collector.tell("count")
            return int(collector.hear())

        wait_until("the last records", lambda: records() >= expected, limit_s=30, process=server)
        if records() != expected:
            raise RuntimeError(f"{expected} requests were answered, the collector has {records()} records")
    return answers / seconds, cpu_us, memory_mb


def _load(port: int, seconds: float, folder: Path, cores: Cores) -> tuple[int, float]:
    """How many requests were answered, and in how many seconds."""
    command = [sys.executable, "-m", "bench.instrumentation.load", str(port), str(seconds), "POST", PATH]
    with Process(command, log=folder / "load.log", cores=cores.load, talking=True) as load:
        answers, took = load.hear().split()
    return int(answers), float(took)
