"""The Dockerfiles, as far as they can be checked without an engine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
INSTRUCTIONS = {
    "FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "ARG",
    "STOPSIGNAL", "HEALTHCHECK",
}  # fmt: skip


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), continuation lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def last_stage(file: Path) -> list[tuple[str, str]]:
    steps = instructions(file)
    return steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM") :]


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def file(request):
    return request.param


def test_both_images_are_here():
    assert [file.name for file in FILES] == ["collector.Dockerfile", "shop.Dockerfile"]


def test_every_instruction_is_one_that_docker_knows(file):
    assert {name for name, _ in instructions(file)} <= INSTRUCTIONS
    assert instructions(file)[0][0] == "FROM"


def test_it_runs_as_a_user_without_rights_that_it_made_itself(file):
    stage = last_stage(file)
    names = [name for name, _ in stage]
    uid = dict(stage)["USER"].split(":")[0]
    assert int(uid) >= 10000
    assert any(f"useradd --system --uid {uid}" in arguments for name, arguments in stage if name == "RUN")
    assert "RUN" not in names[names.index("USER") :]


def test_it_is_built_in_stages_and_leaves_no_pip_behind(file):
    steps = instructions(file)
    assert sum(name == "FROM" for name, _ in steps) == 2
    assert any("pip uninstall --yes" in arguments for _, arguments in steps)
    assert not any("pip install" in arguments for _, arguments in last_stage(file))


def test_every_installation_obeys_the_pinned_versions(file):
    installs = [line for name, line in instructions(file) if name == "RUN" for line in line.split("&&")]
    installs = [line for line in installs if " pip install " in line]
    assert len(installs) == 2
    for line in installs:
        assert "--constraint constraints.txt" in line
        assert "--no-cache-dir" in line


def test_what_it_copies_is_in_the_repository_and_let_through_by_its_ignore_file(file):
    allowed = file.with_name(file.name + ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    for name, arguments in instructions(file):
        if name == "COPY" and "--from" not in arguments:
            for source in shlex.split(arguments)[:-1]:
                assert (ROOT / source).exists(), source
                assert any(
                    source == line[1:] or source.startswith(line[1:] + "/")
                    for line in allowed
                    if line[0] == "!"
                )


def test_it_says_what_it_is_and_stops_on_sigterm(file):
    stage = last_stage(file)
    labels = " ".join(arguments for name, arguments in stage if name == "LABEL")
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert dict(stage)["STOPSIGNAL"] == "SIGTERM"
    assert "VOLUME" in dict(stage)


def test_no_secret_is_built_in(file):
    for name, arguments in instructions(file):
        if name in {"ENV", "ARG"}:
            assert not re.search("password|token|secret|key", arguments, re.IGNORECASE)


def test_the_header_says_what_was_not_run(file):
    assert "Not run where it was written" in file.read_text().split("FROM")[0]


def ask(target: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "health.py"), target]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def grpc_server():
    server = grpc.server(ThreadPoolExecutor(2))
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", status
    server.stop(None).wait()


def test_a_serving_grpc_server_is_healthy(grpc_server):
    address, _ = grpc_server
    answer = ask(address)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_a_grpc_server_that_is_stopping_or_gone_is_not_healthy(grpc_server):
    address, status = grpc_server
    status.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    answer = ask(address)
    assert (answer.returncode, answer.stderr) == (1, f"{address}: NOT_SERVING\n")
    gone = ask("127.0.0.1:1")
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (204, 1), (503, 1)])
def test_an_http_server_is_healthy_when_it_answers_200(status, expected):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert ask(f"http://127.0.0.1:{server.server_port}/health").returncode == expected
        thread.join()


def test_a_wrong_call_of_the_health_check_says_how():
    answer = ask("nonsense")
    assert answer.returncode == 2
    assert answer.stderr.startswith("usage: ")
