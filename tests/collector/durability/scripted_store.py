"""A server that speaks as much of ClickHouse's HTTP interface as the drain uses, and misbehaves when told to.

It remembers tokens as ClickHouse does, drops a block under a token that it knows, and answers questions about indexes
from what it stored. The engine itself is tested elsewhere; here it is about what can happen on the way to it.
"""

from __future__ import annotations

import re
import struct
import threading
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from collector import native_block

if TYPE_CHECKING:
    import ssl

INSERT = re.compile(rb"INSERT INTO `?audit`?\.`?records`? \(.*\) FORMAT (RowBinary|Native)\n")


def native(columns: dict[str, list[int]]) -> bytes:
    """A block of UInt64 columns in ClickHouse's Native format."""
    rows = len(next(iter(columns.values())))
    block = bytes([len(columns), rows]) if rows < 128 else bytes([len(columns), rows & 127 | 128, rows >> 7])
    for name, values in columns.items():
        block += bytes([len(name)]) + name.encode() + b"\x06UInt64" + struct.pack(f"<{rows}Q", *values)
    return block


class Store:
    def __init__(self):
        self.rows: dict[tuple[str, int], bytes] = {}
        self.tokens: set[str] = set()
        self.inserts: list[
            tuple[str, list[int]]
        ] = []  # token and indexes of each block that came, dropped or not
        self.queries: list[str] = []
        self.settings: list[dict[str, str]] = []
        self.duplicated: list[tuple[str, int]] = []
        self.faults: deque[str] = (
            deque()
        )  # for the next inserts: a status, "code N", "cut", "cut late", "hang"
        self.query_faults: deque[str] = deque()
        self.mib_taken = lambda: None  # called in the middle of a body, after each MiB of it
        self.release_hang = threading.Event()
        self.arrived = threading.Semaphore(0)

    def indexes(self, stream: str) -> list[int]:
        return sorted(index for of, index in self.rows if of == stream)

    def forget_tokens(self) -> None:
        self.tokens.clear()

    def insert(self, token: str, body: bytes, fmt: bytes = b"RowBinary") -> None:
        stream, _, bounds = token.partition(":")
        prefix = bytes([len(stream)]) + stream.encode()
        block = {}
        rows = (
            native_block.read(body)[1]
            if fmt == b"Native"
            else [prefix + row for row in body.split(prefix)[1:]]
        )
        for row in rows:
            assert row.startswith(prefix)
            (index,) = struct.unpack_from("<Q", row, len(prefix))
            block[stream, index] = row[len(prefix) + 8 :]
        assert block, f"an insert without rows, range {bounds}"
        self.inserts.append((token, [index for _, index in block]))
        if token in self.tokens:
            return
        self.tokens.add(token)
        self.duplicated += self.rows.keys() & block.keys()
        self.rows |= block

    def answer(self, query: str, parameters: dict[str, str]) -> bytes:
        self.queries.append(query)
        if query.startswith("SELECT version()"):
            return b"26.9.1.1\tUTC\n"
        if "system.settings" in query:
            return b""
        if "max(ledger_index)" in query:
            found = [
                i for i in self.indexes(parameters["param_stream"]) if i >= int(parameters["param_next"])
            ]
            return native({"max": [max(found, default=0)], "count": [len(found)]})
        if "DISTINCT ledger_index" in query:
            first, last = int(parameters["param_first"]), int(parameters["param_last"])
            return native(
                {"ledger_index": [i for i in self.indexes(parameters["param_stream"]) if first <= i <= last]}
            )
        return b"1\n"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args):
        """Quiet."""

    def do_POST(self):
        store = self.server.store
        given = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        body = self._body()
        head = INSERT.match(body)
        faults = store.faults if head else store.query_faults
        fault = faults.popleft() if faults else ""
        if fault == "hang":
            store.arrived.release()
            store.release_hang.wait(30)
            fault = "cut"
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
            return
        if fault.startswith("code"):
            code = fault.split()[1]
            self.reply(
                404, f"Code: {code}. DB::Exception: scripted. (SCRIPTED) (version 26.9.1.1)".encode(), code
            )
        elif fault and fault != "cut late":
            self.reply(int(fault), b"scripted")
        elif head:
            store.settings.append(given)
            store.insert(given["insert_deduplication_token"], body[head.end() :], head[1])
            if fault == "cut late":
                self.close_connection = True
                self.connection.close()
                return
            self.reply(200, b"")
        else:
            self.reply(200, store.answer(body.decode(), given))

    def _body(self) -> bytes:
        left = int(self.headers["Content-Length"])
        pieces = []
        while left and (piece := self.rfile.read(min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
            if left:
                self.server.store.mib_taken()
        return b"".join(pieces)

    def reply(self, status: int, body: bytes, code: str | None = None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-ClickHouse-Exception-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    store: Store

    def handle_error(self, request, client_address):
        """A connection that was cut on purpose."""


@contextmanager
def serve(store: Store, port: int = 0, tls: ssl.SSLContext | None = None):
    """Serve *store* on loopback, over *tls* if given; yields the port."""
    server = _Server(("127.0.0.1", port), _Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.store = store
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        store.release_hang.set()
        server.shutdown()
        thread.join()
        server.server_close()
