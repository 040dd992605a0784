"""A sink that speaks enough of ClickHouse's HTTP interface to take inserts, and counts the spans in them.

    python -m bench.collector.sink PORT

It stores nothing, so that what is measured is the collector and not a database. Each span carries one mark, whatever
form a system inserts it in; a block under a deduplication token that came before is not counted, as ClickHouse would
drop it. ``GET /counted`` answers with what was counted.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

from bench.collector.spans import SPAN_MARK

_ROWS: Final = re.compile(rb"INSERT INTO .{1,8000}? FORMAT (?:RowBinary|Native)\s", re.IGNORECASE | re.DOTALL)
_CHUNK_HEAD_BYTES: Final = 64


class Counted:
    """What was inserted so far; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: set[str] = set()
        self.spans = self.inserts = self.bytes = self.repeated = self.failed = 0

    def insert(self, body: bytes, token: str) -> None:
        """Count one block; *token* is empty when the system gives none."""
        spans = body.count(SPAN_MARK)
        with self._lock:
            if token and token in self._tokens:
                self.repeated += 1
                return
            self._tokens.add(token)
            self.spans += spans
            self.inserts += 1
            self.bytes += len(body)
            # A token names its range of indexes: as many rows as it says must be in the block.
            if token and (bounds := re.search(r":(\d+)-(\d+):", token)):
                self.failed += spans != int(bounds[2]) - int(bounds[1]) + 1

    def report(self) -> bytes:
        """As JSON."""
        with self._lock:
            return json.dumps(
                {
                    "spans": self.spans,
                    "inserts": self.inserts,
                    "bytes": self.bytes,
                    "repeated": self.repeated,
                    "failed": self.failed,
                }
            ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rbufsize = 1 << 20
    server: _Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """What was counted, or ClickHouse's ping."""
        self._reply(self.server.counted.report() if self.path == "/counted" else b"Ok.\n")

    def do_POST(self) -> None:
        """An insert or a question; the statement stands in the URL or in front of the body."""
        given = {key: values[-1] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self._body()
        statement = given.get("query", "")
        if _ROWS.match(statement.encode() + b"\n") or _ROWS.match(body[:10_000]):
            self.server.counted.insert(body, given.get("insert_deduplication_token", ""))
            self._reply(b"")
        else:
            self._reply(_answer(statement or body.decode(errors="replace")))

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(_CHUNK_HEAD_BYTES).split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline(_CHUNK_HEAD_BYTES)
        self.rfile.readline(_CHUNK_HEAD_BYTES)
        return b"".join(pieces)

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    counted: Counted


def _answer(question: str) -> bytes:
    """What an empty ClickHouse would say to the collector's questions, in the formats that its client asks for."""
    if "version()" in question:
        return b"26.9.1.1\tUTC\n"
    if "max(ledger_index)" in question:
        return _zeroes(b"max", b"count")
    if "count() FROM system.tables" in question:
        return _zeroes(b"count")
    return b""


def _zeroes(*names: bytes) -> bytes:
    """One block of Native with one row, each column UInt64 zero."""
    columns = (bytes([len(name)]) + name + b"\x06UInt64" + bytes(8) for name in names)
    return bytes([len(names), 1]) + b"".join(columns)


def main(port: int) -> None:
    """Serve on loopback until killed."""
    with _Server(("127.0.0.1", port), _Handler) as server:
        server.counted = Counted()
        server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
