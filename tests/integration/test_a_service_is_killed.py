"""The service's side of promise 1: a record whose response was seen outlives its service, and is stored once."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import loopback
import pytest
from collector.service.otlp_peer import wait_until
from integration.whole_line import free_port

APP = """
from fastapi import FastAPI

app = FastAPI()


@app.put("/orders/{order_id}")
def change(order_id: int):
    return {"order": order_id}
"""


@pytest.fixture
def service(tmp_path, line):
    """Start the service: ``service(port)``; its records go to *line*."""
    running = []
    (tmp_path / "orders.py").write_text(APP)
    settings = {
        "OTEL_SERVICE_NAME": "orders",
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_AUDITSPAN_ENDPOINT": f"http://127.0.0.1:{line.grpc}",
        "OTEL_AUDITSPAN_SPOOL_DIR": str(tmp_path / "records"),
    }

    def start():
        port = free_port()
        command = ["opentelemetry-instrument", "uvicorn", "orders:app", "--port", str(port)]
        command[0] = str(Path(sys.executable).with_name(command[0]))
        command[1] = str(Path(sys.executable).with_name(command[1]))
        with (tmp_path / "service.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=tmp_path, env={**os.environ, **settings}, stdout=log, stderr=subprocess.STDOUT
            )
        running.append(process)
        wait_until(lambda: answers(port), limit_s=30, what="the service")
        return process, port

    yield start
    for process in running:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        return loopback.get(f"http://127.0.0.1:{port}/none").status_code == 404
    except httpx.TransportError:
        return False


def change_orders(port: int, numbers: range) -> list[str]:
    """The trace ids of so many changes, each of which was answered."""
    traces = []
    for number in numbers:
        trace = secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace}-{secrets.token_hex(8)}-00"}
        assert loopback.put(f"http://127.0.0.1:{port}/orders/{number}", headers=headers).status_code == 200
        traces.append(trace)
    return traces


@pytest.mark.parametrize(
    "collector_is_up",
    [pytest.param(True, id="collector up", marks=pytest.mark.long), pytest.param(False, id="collector down")],
)
def test_each_response_of_a_service_that_is_killed_has_its_record_after_the_restart_once(
    line, service, collector_is_up
):
    line.start_store()
    if collector_is_up:
        line.start_collector()
    process, port = service()
    before = change_orders(port, range(20))
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not collector_is_up:
        line.start_collector()
    _, port = service()
    after = change_orders(port, range(20, 25))
    found = "SELECT trace_id_hex, action, target_id, outcome FROM audit.records"
    wait_until(
        lambda: line.stored_ids() and {row[0] for row in line.rows(found)} >= {*before, *after},
        limit_s=30,
        what="25 records",
    )
    assert sorted(line.rows(found)) == sorted(
        [trace, "UPDATE", str(number), "success"] for number, trace in enumerate(before + after)
    )
