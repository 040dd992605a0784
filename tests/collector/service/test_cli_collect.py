"""``auditspan`` and ``auditspan collect`` as their users run them: in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys

import grpc
import pytest
from auditspan_collector.cli import COMMANDS, auditspan
from click.testing import CliRunner
from collector.service.child_process import Auditspan, run
from collector.service.otlp_peer import request_bytes

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SETTINGS = """
receiver:
  grpc: {listen: "127.0.0.1:0"}
  http: {listen: "127.0.0.1:0"}
  senders: [{name: shop, token: "${env:SHOP_TOKEN}"}]
telemetry: {metrics_listen: ""}
clickhouse: {url: "http://127.0.0.1:9", password: hunter2-hunter2}
spool: {max_bytes: 64MiB, dedup_window_records: 10000, allow_memory_filesystem: true}
"""
TOKEN = "a-token-of-32-characters-exactly"


@pytest.fixture
def collect(tmp_path):
    """Run ``auditspan collect`` on SETTINGS, with one data folder for all of a test's runs."""
    children = []

    def start():
        file = tmp_path / "auditspan.yaml"
        file.write_text(SETTINGS)
        child = Auditspan(tmp_path / f"run{len(children)}", "collect", "--config", file, "--data", tmp_path / "data", SHOP_TOKEN=TOKEN)  # fmt: skip
        children.append(child)
        return child

    yield start
    for child in children:
        child.end(signal.SIGKILL)


def export(port, body):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(EXPORT)
        _, details = call.with_call(body, metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=30)
        return dict(details.trailing_metadata())["auditspan-receipt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(collect, number):
    child = collect()
    export(child.ports()[0], request_bytes())
    assert child.end(number) == 0
    assert "collector stopped" in child.stderr
    assert "Traceback" not in child.stderr


def test_what_was_acknowledged_before_kill_9_is_there_after_the_restart(collect):
    first = collect()
    receipt = json.loads(export(first.ports()[0], request_bytes(spans=3)))
    assert receipt["ranges"] == [{"first": "0", "last": "2"}]
    first.end(signal.SIGKILL)
    second = collect()
    receipt = json.loads(export(second.ports()[0], request_bytes(spans=4)))
    assert receipt["ranges"] == [{"first": "3", "last": "3"}]
    assert receipt["duplicates"] == "3"


def test_a_second_signal_ends_it_at_once(collect):
    child = collect()
    # A request whose body never comes keeps the first stop waiting; the second does not wait.
    with socket.create_connection(("127.0.0.1", child.ports()[1])) as slow:
        slow.sendall(
            f"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\nexpect: 100-continue\r\n"
            "content-type: application/json\r\ncontent-length: 10\r\n\r\n".encode()
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 100")
        child.process.send_signal(signal.SIGINT)
        child.wait_for("collector stopping")
        child.process.send_signal(signal.SIGINT)
        assert child.process.wait(3) == 128 + signal.SIGINT


def test_no_secret_is_in_its_output(collect):
    child = collect()
    child.ports()
    with grpc.insecure_channel(f"127.0.0.1:{child.ports()[0]}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(EXPORT)(
            b"", metadata=(("authorization", "Bearer wrong-wrong-wrong-wrong"),), timeout=10
        )
    child.end()
    for secret in (TOKEN, "hunter2", "wrong-wrong"):
        assert secret not in child.stderr + child.stdout


def test_every_entry_of_the_log_is_one_line(collect):
    child = collect()
    child.ports()
    child.end()
    for line in child.stderr.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [\w.]+ \S", line), line


def test_a_port_in_use_is_one_line_and_exit_status_2(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "auditspan.yaml"
        file.write_text(
            SETTINGS.replace('grpc: {listen: "127.0.0.1:0"}', f'grpc: {{listen: "127.0.0.1:{port}"}}')
        )
        status, _, stderr = run(
            tmp_path, "collect", "--config", file, "--data", tmp_path / "data", SHOP_TOKEN=TOKEN
        )
    assert status == 2
    last = stderr.splitlines()[-1]
    assert last == f"auditspan: receiver.grpc.listen: 127.0.0.1:{port} is in use by another process; stop it or choose another port"  # fmt: skip


def invoke(*arguments, **environ):
    """Run a command that ends by itself in this process: (exit status, stdout, stderr)."""
    clean = dict.fromkeys(name for name in os.environ if name.startswith("AUDITSPAN_"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        result = CliRunner().invoke(auditspan, [str(word) for word in arguments], env={**clean, **environ})
    finally:  # a command's process would have ended, and what it does about signals with it
        for number, handler in before.items():
            signal.signal(number, handler)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("command", ["collect", "up", "store", "search"])
def test_a_wrong_configuration_is_one_line_and_exit_status_2(tmp_path, command):
    file = tmp_path / "auditspan.yaml"
    file.write_text("spool: {max_bytes: lots}")
    arguments = ("--config", file) if command == "search" else ("--config", file, "--data", tmp_path / "data")
    status, stdout, stderr = invoke(command, *arguments)
    assert (status, stdout) == (2, "")
    assert (
        stderr
        == f"auditspan: {file}: spool.max_bytes: 'lots'; allowed: bytes, or a size such as 16MiB (line 1)\n"
    )


def test_debug_shows_the_traceback_as_well(tmp_path):
    status, _, stderr = invoke("--debug", "collect", "--config", tmp_path / "missing.yaml")
    assert status == 2
    assert "Traceback" in stderr
    assert stderr.splitlines()[-1].endswith(
        "missing.yaml: can't be read (No such file or directory); give a configuration file"
    )


def test_config_check_prints_what_is_in_effect_and_hides_secrets(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text(SETTINGS)
    status, stdout, stderr = invoke("config", "check", file, SHOP_TOKEN=TOKEN)
    assert (status, stderr) == (0, "")
    assert stdout.startswith(f"OK: {file}\n")
    assert "max_bytes: 67108864" in stdout
    assert "token: (hidden)" in stdout
    assert "password: (hidden)" in stdout
    assert TOKEN not in stdout
    assert "hunter2" not in stdout


def test_config_check_looks_at_the_disk_too(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text("spool: {max_bytes: 1MiB}")
    status, stdout, stderr = invoke("config", "check", file)
    assert (status, stdout) == (2, "")
    assert stderr.startswith("auditspan: spool.max_bytes: 1048576 is too small")


def test_config_check_without_a_file_takes_the_one_of_the_environment(tmp_path):
    file = tmp_path / "auditspan.yaml"
    file.write_text("spol: {}")
    status, _, stderr = invoke("config", "check", AUDITSPAN_CONFIG=str(file))
    assert status == 2
    assert "spol: unknown; did you mean spool?" in stderr


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["nothing", "--help", "-h"])
def test_help_names_every_command_and_has_examples(arguments):
    _, stdout, stderr = invoke(*arguments)
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", stdout + stderr, re.MULTILINE)
    assert "Examples:" in stdout + stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "config"])
def test_help_of_every_command_has_examples(command):
    status, stdout, _ = invoke(command, "--help")
    assert status == 0
    assert "Examples:" in stdout


def test_the_version_is_told():
    status, stdout, _ = invoke("--version")
    assert status == 0
    assert re.fullmatch(r"auditspan, version \d+\.\d+\.\d+\n", stdout)


@pytest.mark.parametrize("arguments", [["serch"], ["collect", "--prot", "1"], ["up", "--grpc-port", "70000"]])
def test_a_wrong_argument_is_exit_status_2(arguments):
    status, stdout, stderr = invoke(*arguments)
    assert (status, stdout) == (2, "")
    assert "Error: " in stderr


@pytest.mark.parametrize("command", ["search", "trace", "sql"])
def test_a_reading_command_starts_without_the_servers_libraries(command):
    code = (
        f"import sys; sys.argv = ['auditspan', '{command}', '--help']\n"
        "from auditspan_collector.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('grpc', 'uvicorn', 'starlette', 'chdb', 'lmdb', 'prometheus_client')\n"
        "print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
