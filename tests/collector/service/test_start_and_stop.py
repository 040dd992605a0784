"""A stop is bounded and turns new work away so that it comes back; a start takes work at once, whatever waits."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.schema import encode_leaf
from auditspan_collector.spool import Config as SpoolConfig
from auditspan_collector.spool import Spool
from collector.durability.sealing import make_record, one_request
from collector.service.child_process import Auditspan
from collector.service.otlp_peer import request_bytes, wait_until

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STOP_LIMIT_S = 3
BACKLOG = 30_000


@pytest.fixture
def collect(tmp_path):
    """Run ``auditspan collect`` in front of a ClickHouse on *port*, all runs on one spool."""
    children = []

    def start(port):
        file = tmp_path / "auditspan.yaml"
        file.write_text(f"""
collector: {{name: test, stop_limit_s: {STOP_LIMIT_S}}}
receiver: {{grpc: {{listen: "127.0.0.1:0"}}, http: {{listen: "127.0.0.1:0"}}}}
telemetry: {{metrics_listen: ""}}
clickhouse: {{url: "http://127.0.0.1:{port}"}}
drain: {{retry_min_s: 0.1, retry_max_s: 0.2}}
spool: {{path: "{tmp_path}/spool", max_bytes: 256MiB, allow_memory_filesystem: true}}
""")
        child = Auditspan(tmp_path / f"run{len(children)}", "collect", "--config", file)
        children.append(child)
        child.ports()
        return child

    yield start
    for child in children:
        child.end(signal.SIGKILL)


def export(channel, body):
    """The receipt."""
    _, details = channel.unary_unary(EXPORT).with_call(body, timeout=30)
    return json.loads(dict(details.trailing_metadata())["auditspan-receipt"])


@contextmanager
def store(folder, port):
    """The embedded store on *folder*, in a process of its own."""
    tests = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "collector.durability.store_child", str(folder), str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tests,
        env={"PYTHONPATH": str(tests)},
    )
    try:
        yield process.stdout.readline().strip()
        process.stdin.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_stop_ends_in_time_though_clickhouse_hangs_and_turns_new_work_away_to_come_back(collect):
    # It accepts connections and never answers: the worst that can happen to a drain.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        child = collect(silent.getsockname()[1])
        grpc_port, http_port = child.ports()
        keep_alive = http.client.HTTPConnection("127.0.0.1", http_port, timeout=10)
        with contextlib.closing(keep_alive), grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            assert export(channel, request_bytes(spans=2))["ranges"] == [{"first": "0", "last": "1"}]
            keep_alive.request("GET", "/v1/traces")
            keep_alive.getresponse().read()
            asked = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
            until_turned_away(channel)
            with pytest.raises(grpc.RpcError) as refused:
                export(channel, request_bytes(spans=1, name="late"))
            # gRPC itself says CANCELLED to a call that meets the moment of its stop; senders try both again (OTLP).
            assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            assert turned_away(keep_alive)
        assert child.process.wait(30) == 0
        # No promise about time is tested but this one, and with room for a busy machine.
        assert time.monotonic() - asked < STOP_LIMIT_S + 15
        again = collect(silent.getsockname()[1])
        with grpc.insecure_channel(f"127.0.0.1:{again.ports()[0]}") as channel:
            receipt = export(channel, request_bytes(spans=3))
    assert (receipt["ranges"], receipt["duplicates"]) == ([{"first": "2", "last": "2"}], "2"), (
        "the rest was left"
    )


def until_turned_away(channel):
    """Return when requests are refused; a signal is a moment on its way. What is asked meanwhile keeps nothing."""
    for _ in range(1000):
        try:
            channel.unary_unary(EXPORT)(b"", timeout=30)
        except grpc.RpcError:
            return
        time.sleep(0.01)
    pytest.fail("requests were taken for ten seconds after the signal")


def turned_away(connection):
    """Whether a request over *connection* gets what a sender tries again: no connection, no answer, or 503."""
    headers = {"content-type": "application/x-protobuf"}
    try:
        connection.request("POST", "/v1/traces", body=request_bytes(name="late"), headers=headers)
        answer = connection.getresponse()
    except OSError:
        return True
    return answer.status == 503 and answer.headers["retry-after"]


def test_a_start_with_a_backlog_takes_requests_at_once_and_sends_what_waits_behind_them(collect, tmp_path):
    settings = SpoolConfig(path=str(tmp_path / "spool"), max_bytes=256 << 20, allow_memory_filesystem=True)
    spool = Spool.open(settings, "default", "test")
    for first in range(0, BACKLOG, 5000):
        spool.commit(one_request([encode_leaf(make_record(n), "sender") for n in range(first, first + 5000)]))
    spool.close()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    child = collect(port)
    with grpc.insecure_channel(f"127.0.0.1:{child.ports()[0]}") as channel:
        receipt = export(channel, request_bytes(spans=1))
    assert receipt["ranges"] == [{"first": str(BACKLOG), "last": str(BACKLOG)}], (
        "with ClickHouse not even there"
    )
    with store(tmp_path / "store", port) as url:
        client = ClickHouseClient(ClickHouseConfig(url=url))

        def all_there():
            try:
                found = client.rows("SELECT count(), uniqExact(ledger_index), max(ledger_index) FROM records")
            except Exception:  # noqa: BLE001 - the table is yet to be made
                return False
            return found == [(BACKLOG + 1, BACKLOG + 1, BACKLOG)]

        wait_until(all_there, limit_s=60, what="the backlog in the store")
        client.close()
        assert child.end(signal.SIGTERM) == 0
