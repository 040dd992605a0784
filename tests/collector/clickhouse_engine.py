"""ClickHouse's real engine for tests: chDB in a process of its own, since a process can hold one engine only.

Run as a program it serves its parent over the socket whose file descriptor is its first argument.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Engine:
    """A ClickHouse that answers SQL; `execute` and `rows` are what migrations ask of a client."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), str(folder)], pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())

    def _ask(self, *request: Any) -> bytes:
        self._connection.send(request)
        ok, answer = self._connection.recv()
        if not ok:
            raise RuntimeError(answer)
        return answer

    def execute(self, sql: str, parameters: dict[str, Any] | None = None) -> None:
        self._ask("query", sql, "Null", parameters)

    def raw(self, sql: str, output_format: str, parameters: dict[str, Any] | None = None) -> bytes:
        """What the query gives, in any of ClickHouse's formats."""
        return self._ask("query", sql, output_format, parameters)

    def rows(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of a query as JSON has them; 64-bit integers as int."""
        text = self.raw(sql, "JSONCompactEachRow", parameters).decode()
        return [tuple(json.loads(line)) for line in text.split("\n")[:-1]]

    def insert(self, sql: str, data: bytes, input_format: str = "RowBinary") -> None:
        """Run the INSERT *sql*, which names table and columns, with *data*."""
        self._ask("insert", sql, input_format, data)

    def close(self) -> None:
        self._connection.close()
        self._process.wait(timeout=30)


def escape(value: Any) -> Any:
    """A parameter as ClickHouse reads it: text escaped as in TabSeparated."""
    if not isinstance(value, str):
        return value
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def serve(descriptor: int, folder: str) -> None:
    import chdb

    parent = Connection(descriptor)
    engine = chdb.connect(f"{folder}/engine")
    while True:
        try:
            kind, sql, data_format, payload = parent.recv()
        except EOFError:
            engine.close()
            return
        try:
            if kind == "query":
                escaped = {name: escape(value) for name, value in (payload or {}).items()}
                answer = engine.query(sql, data_format, params=escaped or None).bytes()
            else:
                with engine.send_insert(sql, data_format) as insert:
                    insert.append(payload)
                    insert.finish()
                answer = b""
        except Exception as error:  # noqa: BLE001 - all of it belongs to the test that asked
            parent.send((False, str(error)))
        else:
            parent.send((True, answer))


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
    os._exit(0)  # the engine's threads have nothing left to say
