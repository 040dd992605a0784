"""What the README tells a new user to do works as written, on free ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from collector.service.child_process import Auditspan
from collector.service.otlp_peer import wait_until
from integration.whole_line import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PORTS = {"4317": str(free_port()), "8000": str(free_port())}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def with_free_ports(text: str) -> str:
    return re.sub("|".join(PORTS), lambda found: PORTS[found.group()], text)


def the_block(language: str, having: str) -> str:
    (found,) = [block for block in blocks(language) if having in block]
    return with_free_ports(found)


@pytest.fixture
def folder(tmp_path):
    """A new user's folder, with a running `auditspan up` that keeps its data there."""
    assert "auditspan up\n" in blocks("sh")
    up = Auditspan(
        tmp_path / "up", "up", "--data", tmp_path / "data", "--grpc-port", PORTS["4317"],
        "--http-port", "0", "--store-port", "0", "--metrics-port", "0",
    )  # fmt: skip
    try:
        up.wait_for("Ctrl-C stops it", where="stdout", limit_s=60)
        yield tmp_path
    finally:
        status = up.end()
    assert status == 0


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )


def environment(folder: Path) -> dict[str, str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "AUDITSPAN_"))
    }
    return {
        **clean,
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AUDITSPAN_DATA": str(folder / "data"),
    }


def test_an_audited_service_and_the_first_questions(folder):
    (folder / "app.py").write_text(the_block("python", "FastAPI()"))
    start = the_block("sh", "opentelemetry-instrument")
    request, ask = the_block("sh", "curl -X PUT").splitlines()
    with (folder / "service.log").open("w") as log:
        service = subprocess.Popen(
            start,
            shell=True,
            cwd=folder,
            # A minute of metrics in half a second: what an exporter has to complain about is in the log at once.
            env={**environment(folder), "OTEL_METRIC_EXPORT_INTERVAL": "500"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: shell(request, folder).stdout == '{"order":7,"state":"changed"}',
            limit_s=30,
            what="the service's answer",
        )
        wait_until(
            lambda: "orders:7" in shell(ask, folder).stdout,
            limit_s=30,
            what="the record",
        )
    finally:
        os.killpg(service.pid, 15)
        service.wait(30)
    assert "export" not in (folder / "service.log").read_text().lower()
    found = shell(ask, folder)
    assert found.returncode == 0
    assert re.search(r"unknown +UPDATE +orders:7 +✓ success +orders ", found.stdout)
    for question in the_block("sh", "auditspan sql").splitlines():
        command = question.partition("#")[0].strip()
        if "--follow" in command:  # has no end of its own
            continue
        asked = shell(command, folder)
        # No trace begins with the README's id here; everything else has an answer.
        assert asked.returncode == (1 if "trace" in command else 0), (command, asked.stderr)


def test_what_the_application_may_say_runs_as_written():
    (code,) = [block for block in blocks("python") if "auditspan.set_actor" in block]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_each_link_leads_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:tests|docs|deploy|examples)/[\w./-]+)`", README)))
)
def test_each_file_that_is_named_exists(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake (\w+)", README))))
def test_each_make_target_exists(target):
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()
