"""Collectors to deliver to, and processes that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from instrumentation.delivery.otlp_peers import GrpcPeer, HttpPeer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from instrumentation.delivery.otlp_peers import Peer

TESTS = Path(__file__).parents[2]


@pytest.fixture
def grpc_peer() -> Iterator[GrpcPeer]:
    peer = GrpcPeer()
    yield peer
    peer.stop()


@pytest.fixture(params=[GrpcPeer, HttpPeer], ids=["grpc", "http"])
def peer(request) -> Iterator[Peer]:
    """The same collector, once over gRPC and once over HTTP."""
    made = request.param()
    yield made
    made.stop()


class Child(NamedTuple):
    """A Python process that runs *code*, one line of input at a time."""

    process: subprocess.Popen[str]

    def read(self) -> str:
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return line.strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def finish(self, timeout_s: float = 60.0) -> str:
        out, err = self.process.communicate(timeout=timeout_s)
        assert self.process.returncode == 0, err
        return out


PRELUDE = """
import os, sys, time, json, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from instrumentation.delivery.otlp_payloads import payload, names_in, wait_until
from auditspan.spool import Spool
from auditspan.shipper import Shipper, Target, worker
worker._LOOK_S = 0.2
folder = Path(sys.argv[1])
def target():
    return Target(endpoint=sys.argv[2], protocol=sys.argv[3])
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Start a process: ``child(code, *arguments)``; none outlives the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **options: object) -> Child:
        script = tmp_path / f"child-{len(processes)}.py"
        script.write_text(PRELUDE.format(tests=str(TESTS)) + textwrap.dedent(code))
        command = [sys.executable, str(script), *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        processes.append(process)
        return Child(process)

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its forked children too
        process.communicate()
