"""A real embedded store in a process of its own, since a process can hold one engine only."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import clickhouse_connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clickhouse_connect.driver.client import Client

PROGRAM = Path(__file__).with_name("serve_store.py")
ANYWHERE = "127.0.0.1:0"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> int:
        """ClickHouse's error number, 0 for none."""
        return int(self.headers.get("x-clickhouse-exception-code", 0))


@dataclass
class StoreProcess:
    process: subprocess.Popen[bytes]
    url: str
    path: Path
    clients: list[Client] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        return self.process.pid

    def connection(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self,
        body: Any = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: dict[str, str] | None = None,
        chunked: bool = False,
        **parameters: Any,
    ) -> Answer:
        """One request on a connection of its own."""
        body = body.encode() if isinstance(body, str) else body
        connection = self.connection()
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        try:
            connection.request(method, target, body=body, headers=headers or {}, encode_chunked=chunked)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def sql(self, query: str, **parameters: Any) -> str:
        """The answer's text; fails the test unless it is 200."""
        answer = self.ask(query, **parameters)
        assert answer.status == 200, answer.text
        return answer.text.rstrip("\n")

    def client(self, **settings: Any) -> Client:
        """An unmodified clickhouse-connect client."""
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=self.port, dedicated_pool=True, **settings
        )
        self.clients.append(client)
        return client

    def memory_bytes(self) -> int:
        """Resident memory now, without pages of files."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) * 1024

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self._close()

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self._close()
        return self.process.wait(30)

    def _close(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()


def launch(config: dict[str, Any], *, environment: dict[str, str] | None = None) -> tuple[Any, str]:
    """The process and the first line that it says."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), json.dumps({"listen": ANYWHERE, **config})],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().decode().strip()


@contextmanager
def running(path: Path, **config: Any) -> Iterator[StoreProcess]:
    process, said = launch({"path": str(path), **config})
    store = StoreProcess(process, said, path)
    try:
        assert said.startswith("http://"), said
        yield store
    finally:
        if process.poll() is None:
            store.stop()
        else:
            store._close()


def row_binary(first: int, count: int, value: bytes = b"x") -> bytes:
    """Rows of ``(a UInt64, b String)``; *value* is at most 127 bytes."""
    tail = bytes([len(value)]) + value
    return b"".join(number.to_bytes(8, "little") + tail for number in range(first, first + count))
