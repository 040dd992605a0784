"""What can go wrong between a collector and its ClickHouse: a proxy for HTTP that goes wrong when told to.

The store behind it is the real one, so what happened to half an insert is the engine's answer, not ours. An insert
passes four moments, and a test may have anything done at each, to the connection or to a process:

    arrived    the collector has sent all of it, the store has nothing
    half       the store has half of it
    sent       the store has all of it and has not answered
    answered   the store has answered, the collector does not know
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Moment = Literal["arrived", "half", "sent", "answered"]
Mode = Literal["pass", "refuse", "500", "hang"]

INSERT_MARK = re.compile(rb"INSERT INTO .* FORMAT (RowBinary|Native)\n")
LIMIT_S = 60.0
_HEAD_BYTES = 8192


class CutError(Exception):
    """The connection to the collector ends here, without an answer."""


def cut() -> None:
    """What a fault does to a connection when it does nothing else."""
    raise CutError


@dataclass(frozen=True)
class Fault:
    """At *moment* of an insert, *do*; after it the insert goes on, unless *do* was `cut`."""

    moment: Moment
    do: Callable[[], None] = cut


class Proxy:
    """On a port of its own, until `close`."""

    def __init__(self, store_port: int):
        self.store_port = store_port
        self.mode: Mode = "pass"  # of every request
        self.bytes_per_s = 0.0  # of all inserts together; 0 for no limit
        self.next_inserts: deque[Fault] = deque()  # one for each of the next inserts
        self.inserts = 0  # that arrived
        self._lane = threading.Lock()
        self._over = threading.Event()
        self._go_on = threading.Event()
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def heal(self) -> None:
        """Pass everything from now on; what hangs is cut."""
        self.mode = "pass"
        self.bytes_per_s = 0.0
        self.next_inserts.clear()
        self._go_on.set()

    def hang(self) -> None:
        """Take every request and answer none, until healed."""
        self._go_on.clear()
        self.mode = "hang"

    def close(self) -> None:
        self._over.set()
        self._go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_while_hanging(self) -> None:
        self._go_on.wait(LIMIT_S)
        raise CutError

    def slow_down(self, size: int) -> None:
        """Take as long as *size* bytes take at the limit; inserts wait for each other."""
        with self._lane:
            left = size
            while left > 0 and self.bytes_per_s and not self._over.is_set():
                step = min(left, self.bytes_per_s / 20)
                self._over.wait(step / self.bytes_per_s)
                left -= step


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    proxy: Proxy

    def __init__(self, proxy: Proxy):
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request, client_address):
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._open.discard(request)
        super().shutdown_request(request)

    def shutdown(self):
        super().shutdown()
        # Idle connections of a collector that was killed, or is about to be, would keep their threads.
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """A connection whose other end was killed, or which was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args):
        """Quiet."""

    def do_GET(self):
        self._pass()

    def do_POST(self):
        self._pass()

    def _pass(self) -> None:
        proxy = self.server.proxy
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        try:
            if (
                len(body) < size or proxy.mode == "refuse"
            ):  # less came: the collector was killed while it sent
                cut()
            if proxy.mode == "hang":
                proxy.wait_while_hanging()
            if proxy.mode == "500":
                self._answer(500, {}, b"the server is not well")
            elif INSERT_MARK.match(body[:_HEAD_BYTES]):
                self._insert(proxy, body)
            else:
                self._answer(*self._ask(body, None))
        except (CutError, OSError, http.client.HTTPException):
            # Whatever became of the store: the collector sees its connection cut.
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def _insert(self, proxy: Proxy, body: bytes) -> None:
        proxy.inserts += 1
        fault = proxy.next_inserts.popleft() if proxy.next_inserts else None
        self._at("arrived", fault)
        proxy.slow_down(len(body))
        answer = self._ask(body, fault)
        self._at("answered", fault)
        self._answer(*answer)

    @staticmethod
    def _at(moment: Moment, fault: Fault | None) -> None:
        if fault is not None and fault.moment == moment:
            fault.do()

    def _ask(self, body: bytes, fault: Fault | None) -> tuple[int, dict[str, str], bytes]:
        """The store's answer."""
        store = http.client.HTTPConnection("127.0.0.1", self.server.proxy.store_port, timeout=LIMIT_S)
        try:
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    store.putheader(name, value)
            store.endheaders()
            middle = len(body) // 2
            store.send(body[:middle])
            self._at("half", fault)
            store.send(body[middle:])
            self._at("sent", fault)
            answer = store.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            store.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "keep-alive", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
