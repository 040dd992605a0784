"""``auditspan up`` and ``auditspan store`` as their users run them: OTLP in, rows out, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import clickhouse_connect
import grpc
import loopback
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from collector.service.child_process import Auditspan, run
from collector.service.otlp_peer import request_bytes, wait_until

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
STOCK_APP = Path(__file__).with_name("stock_sdk_app.py")
SMALL_SPOOL = "spool: {max_bytes: 64MiB, dedup_window_records: 10000, allow_memory_filesystem: true}\n"


class Up(Auditspan):
    """``auditspan up`` on free ports."""

    def __init__(self, folder, data, *, ports=("0", "0", "0", "0")):
        file = folder / "auditspan.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(SMALL_SPOOL + "telemetry: {log_level: info}")
        names = ("--grpc-port", "--http-port", "--store-port", "--metrics-port")
        options = [word for pair in zip(names, ports, strict=True) for word in pair]
        super().__init__(folder, "up", "--data", data, "--config", file, *options)
        self.data = data

    def ready(self):
        self.wait_for("Ctrl-C stops it(.|\n)*GROUP BY", where="stdout", limit_s=60)
        return self

    @property
    def connection(self):
        return json.loads((self.data / "connection").read_text())

    @property
    def grpc_port(self):
        return int(self.wait_for(r"OTLP/gRPC +http://127\.0\.0\.1:(\d+)", where="stdout")[1])

    @property
    def store_pid(self):
        """The child's process id, from the kernel."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def export(self, body):
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            channel.unary_unary(EXPORT)(body, timeout=30)

    def client(self, **changes):
        found = {**self.connection, **changes}
        host, port = found["url"].removeprefix("http://").split(":")
        return clickhouse_connect.get_client(
            host=host,
            port=int(port),
            username=found["user"],
            password=found["password"],
            database=found["database"],
        )

    def names(self):
        """Span names of the stored records; empty while the store can't say."""
        try:
            with self.client() as client:
                return sorted(row[0] for row in client.query("SELECT span_name FROM records").result_rows)
        except (ClickHouseError, OSError):
            return []


def is_running(pid):
    return (
        Path(f"/proc/{pid}").exists()
        and "\tZ" not in re.search(r"State:.*", Path(f"/proc/{pid}/status").read_text())[0]
    )


@pytest.fixture
def up(tmp_path):
    """Start ``auditspan up``, each time on the same data folder."""
    running = []

    def start(**options):
        child = Up(tmp_path / f"run{len(running)}", tmp_path / "data", **options)
        running.append(child)
        return child

    yield start
    for child in running:
        store = child.store_pid if child.process.poll() is None else 0
        child.end(signal.SIGKILL)
        if store:
            wait_until(lambda pid=store: not is_running(pid), limit_s=20, what="the store's end")


def test_spans_of_a_stock_sdk_become_rows_that_search_finds_and_ctrl_c_stops_it_all(up, tmp_path):
    running = up().ready()
    for transport, pattern in (("grpc", r"OTLP/gRPC +(\S+)"), ("http", r"OTLP/HTTP +(\S+)")):
        url = running.wait_for(pattern, where="stdout")[1]
        done = subprocess.run(
            [sys.executable, STOCK_APP, transport, url],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == "SUCCESS\n"
    wait_until(lambda: len(running.names()) == 10, what="ten rows")
    with running.client() as client:
        rows = client.query(
            "SELECT DISTINCT service_name, actor_id, action, actor_origin FROM records ORDER BY 1"
        ).result_rows
    # Nobody vouches for a stock SDK, but on loopback without senders everyone is trusted.
    assert [row[:3] for row in rows] == [("stock-grpc", "alice", "UPDATE"), ("stock-http", "alice", "UPDATE")]

    status, stdout, stderr = run(
        tmp_path / "search", "search", "--data", running.data, "--actor", "alice", "--format", "jsonl"
    )
    assert (status, len(stdout.splitlines())) == (0, 10), stderr

    metrics = loopback.get(running.wait_for(r"metrics +(\S+)", where="stdout")[1]).text
    wait_until(lambda: running.store_pid)
    assert re.search(r"^auditspan_drain_inserted_records_total 10\.0$", metrics, re.MULTILINE)

    port, store = running.grpc_port, running.store_pid
    assert running.end(signal.SIGINT) == 0
    assert not is_running(store)
    assert not (running.data / "connection").exists()
    with socket.create_server(("127.0.0.1", port)):
        pass
    assert "Traceback" not in running.stderr


def test_files_are_private_and_the_reader_can_only_read(up):
    running = up().ready()
    for name in ("connection", "credentials", "up.lock", "store.lock"):
        assert (running.data / name).stat().st_mode & 0o777 == 0o600, name
    for name in (".", "spool", "store"):
        assert (running.data / name).stat().st_mode & 0o777 == 0o700, name
    password = running.connection["password"]
    command_line = Path(f"/proc/{running.store_pid}/cmdline").read_text()
    environment = Path(f"/proc/{running.store_pid}/environ").read_text()
    assert password not in command_line + environment + running.stdout + running.stderr
    with running.client() as client:
        assert client.query("SELECT count() FROM records").result_rows == [(0,)], (
            "ready means that it can be asked"
        )
    with running.client() as client, pytest.raises(ClickHouseError):
        client.command("INSERT INTO records (ledger_index) VALUES (1)")
    with pytest.raises(ClickHouseError):
        running.client(user="default", password="")
    with pytest.raises(ClickHouseError):
        running.client(password="wrong")


def test_records_and_passwords_are_there_in_the_next_run(up):
    first = up().ready()
    first.export(request_bytes(name="first run"))
    password = first.connection["password"]
    assert first.end(signal.SIGTERM) == 0
    second = up().ready()
    second.export(request_bytes(name="second run"))
    wait_until(lambda: second.names() == ["first run", "second run"])
    assert second.connection["password"] == password


def test_a_store_that_dies_is_said_loudly_and_started_again_and_nothing_is_lost(up):
    running = up().ready()
    running.export(request_bytes(name="before"))
    wait_until(lambda: running.names() == ["before"])
    url, killed = running.connection["url"], running.store_pid
    os.kill(killed, signal.SIGKILL)
    running.export(request_bytes(name="meanwhile"))
    running.wait_for(r"ERROR cli\.store_process the store DIED \(killed by SIGKILL\)")
    wait_until(lambda: running.names() == ["before", "meanwhile"], limit_s=40)
    assert running.connection["url"] == url
    assert running.store_pid != killed
    assert running.end(signal.SIGINT) == 0


def test_killed_with_9_its_store_ends_by_itself_and_what_was_acknowledged_is_stored_by_the_next_run(up):
    first = up().ready()
    store = first.store_pid
    first.export(request_bytes(spans=3, name="acknowledged"))
    first.end(signal.SIGKILL)
    second = up()  # at once: it waits for the folder
    wait_until(lambda: not is_running(store), limit_s=20, what="the orphan's end")
    second.ready()
    wait_until(lambda: second.names() == ["acknowledged"] * 3, limit_s=40)


def test_a_second_one_on_the_same_folder_is_one_line(up):
    first = up().ready()
    second = up()
    assert second.process.wait(30) == 1
    assert second.stderr == (
        f"auditspan: {first.data} is in use by `auditspan up` with process id {first.process.pid}; "
        "stop that one, or give this one another folder (--data)\n"
    )


@pytest.mark.parametrize(
    ("position", "setting"),
    [
        (0, "receiver.grpc.listen"),
        (2, "store.listen"),
    ],
)
def test_a_port_in_use_is_one_line_and_leaves_nothing_running(up, position, setting):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = ["0"] * 4
        ports[position] = str(taken.getsockname()[1])
        child = up(ports=ports)
        assert child.process.wait(40) == 2
        last = child.stderr.splitlines()[-1]
        assert (
            last
            == f"auditspan: {setting}: 127.0.0.1:{ports[position]} is in use by another process; stop it or choose another port"
        )
    assert not (child.data / "connection").exists()


def test_the_store_alone_answers_clients_and_stops_on_a_signal(tmp_path):
    child = Auditspan(tmp_path / "run", "store", "--path", tmp_path / "store", "--listen", "127.0.0.1:0")
    try:
        url = child.wait_for(r"The store answers on (\S+);", where="stdout")[1]
        assert loopback.get(url, params={"query": "SELECT 40 + 2"}).text == "42\n"
        second = Auditspan(
            tmp_path / "second", "store", "--path", tmp_path / "store", "--listen", "127.0.0.1:0"
        )
        assert second.process.wait(30) == 1
        assert re.fullmatch(r"auditspan: [^\n]*in use[^\n]*\n", second.stderr)
        assert child.end(signal.SIGTERM) == 0
    finally:
        child.end(signal.SIGKILL)


def test_a_collector_that_started_before_its_store_delivers_when_the_store_comes(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    file = tmp_path / "auditspan.yaml"
    file.write_text(
        SMALL_SPOOL + 'receiver: {grpc: {listen: "127.0.0.1:0"}, http: {listen: "127.0.0.1:0"}}\n'
        f'telemetry: {{metrics_listen: ""}}\nclickhouse: {{url: "http://{address}"}}\nstore: {{listen: "{address}"}}\n'
        "drain: {retry_max_s: 500ms}\n"
    )
    options = ("--config", file, "--data", tmp_path / "data")
    collector = Auditspan(tmp_path / "collector", "collect", *options)
    try:
        port = collector.ports()[0]
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            channel.unary_unary(EXPORT)(request_bytes(name="early"), timeout=30)
        collector.wait_for("records stay in the spool")
        store = Auditspan(tmp_path / "store", "store", *options)
        try:
            collector.wait_for("records are stored again")
            host, store_port = address.split(":")
            with clickhouse_connect.get_client(host=host, port=int(store_port)) as client:
                assert client.query("SELECT span_name FROM audit.records").result_rows == [("early",)]
            assert collector.end() == 0
        finally:
            store.end(signal.SIGKILL)
    finally:
        collector.end(signal.SIGKILL)
