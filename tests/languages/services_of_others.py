"""One service of orders in each language, with the stock OpenTelemetry SDK and nothing of ours: how it is built and started.

Node's runs with every run of the tests where Node is there. The others take minutes to build the first time, so they run
where AUDITSPAN_LANGUAGES names them (``make test-languages``), and then a missing tool is a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import loopback
from collector.service.otlp_peer import wait_until
from integration.whole_line import free_port

if TYPE_CHECKING:
    from integration.whole_line import WholeLine

EXAMPLES = Path(__file__).parents[2] / "examples/languages"
TOKENS = {"stock": "stock-token-0123456789", "trusted": "trusted-token-0123456789"}


@dataclass(frozen=True)
class Language:
    """*build* commands run in a copy of the example, then *start*; ``@file`` in it is that file's content."""

    name: str
    tools: tuple[str, ...]
    build: tuple[tuple[str, ...], ...]
    start: tuple[str, ...]

    def there(self) -> bool:
        return all(map(shutil.which, self.tools))


NODE = Language(
    "node",
    ("node", "npm"),
    (("npm", "ci", "--prefer-offline", "--no-audit", "--no-fund"),),
    ("node", "--require", "./tracing.js", "app.js"),
)
GO = Language("go", ("go",), (("go", "vet", "."), ("go", "build", "-o", "orders", ".")), ("./orders",))
JAVA = Language(
    "java",
    ("java", "mvn"),
    (("mvn", "-q", "-B", "compile", "dependency:build-classpath", "-Dmdep.outputFile=target/classpath"),),
    ("java", "-cp", "target/classes:@target/classpath", "example.Orders"),
)


def to_run() -> list[Language]:
    """Those that AUDITSPAN_LANGUAGES names; without it those that build in seconds, where their tools are."""
    named = os.environ.get("AUDITSPAN_LANGUAGES", "").split()
    if named:
        return [language for language in (NODE, GO, JAVA) if language.name in named]
    return [NODE] if NODE.there() else []


class Service:
    """A process of it that sends its spans to a line, with the credential of one of TOKENS."""

    def __init__(self, language: Language, built: Path, line: WholeLine, sender: str):
        self.name = f"orders-{language.name}"
        self._port = free_port()
        self._log = built / f"{sender}.log"
        clean = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
        environment = clean | {
            "PORT": str(self._port),
            "OTEL_SERVICE_NAME": self.name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{line.http}",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{TOKENS[sender]}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [_with_file(part, built) for part in language.start],
                cwd=built,
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._listening, limit_s=60, what="the service's port")
        except BaseException:
            self.stop()
            raise

    def call(self, method: str, path: str, trace_id: str, who: str = "") -> int:
        """The status of a request that is part of a trace."""
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        if who:
            headers["authorization"] = f"Bearer {who}-token"
        return loopback.request(
            method, f"http://127.0.0.1:{self._port}{path}", headers=headers, trust_env=False, timeout=30
        ).status_code

    def _listening(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def built(language: Language, folder: Path) -> Path:
    """A copy of the example, built."""
    missing = [tool for tool in language.tools if shutil.which(tool) is None]
    assert not missing, f"{language.name} needs {', '.join(missing)}"
    copy = shutil.copytree(
        EXAMPLES / language.name,
        folder / language.name,
        ignore=shutil.ignore_patterns("node_modules", "target"),
    )
    for command in language.build:
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return copy


def _with_file(part: str, folder: Path) -> str:
    before, found, name = part.partition("@")
    return before + (folder / name).read_text().strip() if found else part
