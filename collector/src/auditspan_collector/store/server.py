"""HTTP on a socket: connections, who may speak to it at all, and one request after the other on each.

A thread per connection; the engine releases the GIL while it works, and this was as fast as an asynchronous server.

Requests that a web page makes are refused before anything is read of them.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit

from auditspan_collector.hosts import Hosts
from auditspan_collector.store import exchange, forms
from auditspan_collector.store.body import Body
from auditspan_collector.store.config import split_address
from auditspan_collector.store.failures import (
    BAD_ARGUMENTS,
    SOCKET_TIMEOUT,
    QueryFailed,
)
from auditspan_collector.store.reply import Reply, Shape, choose_encoding
from auditspan_collector.store.running import Running
from auditspan_collector.store.users import Users

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from auditspan_collector.store.config import Config
    from auditspan_collector.store.engine import Engine

log = logging.getLogger(__name__)

_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64 << 20
_MAX_FIELDS: Final = 10_000
_NOT_FOUND: Final = (
    b"There is no handle %s\n\nUse / or /ping for health checks.\n"
    b"Or /replicas_status for more sophisticated health checks.\n\n"
    b"Send queries with POST, or reading ones with GET /?query=...\n"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # what is not HTTP still gets a status line
    wbufsize = 64 << 10
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.config.idle_timeout_s)

    def version_string(self) -> str:
        return "auditspan-store"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing: a URL may hold a password or what somebody looked for."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is not HTTP, or a method that nobody serves."""
        del explain
        body = f"{message or 'Bad request'}\n".encode()
        self.head(code, {"Content-Type": "text/plain; charset=UTF-8", "Content-Length": str(len(body))})
        self.send(body)
        self.close_connection = True

    def handle_expect_100(self) -> bool:
        """Ask for the body at once; the answer to come would wait in the buffer otherwise."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    # What reply.Wire asks for.

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        if not self.close_connection:
            headers = {"Keep-Alive": f"timeout={max(1, int(self.server.config.idle_timeout_s))}", **headers}
        for name, value in headers.items():
            self.send_header(name, value.replace("\r", " ").replace("\n", " "))
        self.send_header("Connection", "close" if self.close_connection else "Keep-Alive")
        self.end_headers()

    def send(self, data: bytes | memoryview) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def cut(self) -> None:
        self.close_connection = True

    def chunks_allowed(self) -> bool:
        return self.request_version == "HTTP/1.1"

    # The methods.

    def do_GET(self) -> None:
        self._serve(readonly=True)

    def do_HEAD(self) -> None:
        self._serve(readonly=True)

    def do_POST(self) -> None:
        self._serve(readonly=False)

    def do_PUT(self) -> None:
        self._serve(readonly=False)

    def _serve(self, *, readonly: bool) -> None:
        """Answer one request, and leave the connection so that another can follow, or close it cleanly."""
        body: Body | None = None
        with self._told(Reply(self, Shape(), self._headers(), self.server.folder)):
            self._check_origin()
            body = Body(self.rfile, self.headers)
            self._answer(body, readonly=readonly)
        self._finish_body(body)

    def _finish_body(self, body: Body | None) -> None:
        """A next request starts where this body ends; where that is far away or unknown, close instead.

        The answer is read before that: what the client still sends is taken for a while, so that the system does
        not reset the connection under it.
        """
        if body is not None and body.discard(1 << 20):
            return
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            deadline, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
            while left > 0 and time.monotonic() < deadline:
                dropped = self.rfile.read1(1 << 18)
                if not dropped:
                    break
                left -= len(dropped)

    def _headers(self) -> dict[str, str]:
        engine = self.server.engine
        return {"X-ClickHouse-Server-Display-Name": engine.host, "X-ClickHouse-Timezone": engine.timezone}

    def _check_origin(self) -> None:
        host = self.headers.get("Host")
        if host is None and self.request_version == "HTTP/1.1":
            raise QueryFailed.because(BAD_ARGUMENTS, "The request has no Host header.")
        refused = self.server.hosts.refusal(
            host, self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")
        )
        if refused is not None:
            raise QueryFailed.because(BAD_ARGUMENTS, refused.message, status=refused.status)

    def _answer(self, body: Body, *, readonly: bool) -> None:
        try:
            parts = urlsplit(self.path)
        except ValueError:
            raise QueryFailed.because(BAD_ARGUMENTS, "The request's address is malformed.") from None
        if parts.path in ("/ping", "/replicas_status"):
            self._say(
                200 if self.server.serving else 503, b"Ok.\n" if self.server.serving else b"Stopping.\n"
            )
            return
        if parts.path not in ("", "/"):
            self._say(404, _NOT_FOUND % parts.path.encode("ascii", "replace"))
            return
        given = self._parameters(parts.query)
        if self.command in ("GET", "HEAD") and not given.get("query"):
            self._say(200, b"Ok.\n")
            return
        user = self.server.users.identify(self.headers, given)
        form = forms.read(body, self.headers.get("Content-Type") or "", self.server.config.max_form_bytes)
        encoding = choose_encoding(self.headers.get("Accept-Encoding") or "")
        asked = exchange.wanted({**given, **form}, self.headers, encoding)
        headers = {**self._headers(), "X-ClickHouse-Query-Id": asked.query_id}
        if "session_timezone" in asked.settings:
            headers["X-ClickHouse-Timezone"] = asked.settings["session_timezone"]
        reply = Reply(self, asked.shape, headers, self.server.folder)
        with (
            self._told(reply),
            self.server.running.turn(
                asked.query_id, self.connection, reading=readonly or user.readonly
            ) as turn,
            self._told(reply),
        ):
            connection = self.server.engine.connect()
            try:
                one = exchange.Exchange(
                    asked, body, connection, reply, config=self.server.config, folder=self.server.folder
                )
                one.run(user, turn, readonly=readonly)
            finally:
                connection.close()

    @contextlib.contextmanager
    def _told(self, reply: Reply) -> Iterator[None]:
        """Tell the client what goes wrong in here, and let everything leave before the statement's turn is over."""
        try:
            yield
        except QueryFailed as failure:
            reply.fail(failure, self.server.engine.version)
        except TimeoutError:
            self.close_connection = True
            late = QueryFailed.because(SOCKET_TIMEOUT, "Timeout: nothing came for too long.", status=408)
            reply.fail(late, self.server.engine.version)
        with contextlib.suppress(OSError):
            self.wfile.flush()

    def _parameters(self, query: str) -> dict[str, str]:
        try:
            pairs = parse_qsl(
                query, keep_blank_values=True, errors="surrogateescape", max_num_fields=_MAX_FIELDS
            )
        except ValueError:
            raise QueryFailed.because(BAD_ARGUMENTS, f"More than {_MAX_FIELDS} URL parameters.") from None
        return dict(pairs)

    def _say(self, status: int, body: bytes) -> None:
        self.head(status, {"Content-Type": "text/html; charset=UTF-8", "Content-Length": str(len(body))})
        self.send(body)


class Server(ThreadingHTTPServer):
    """Accepts connections from construction on; `serve_forever` answers them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    allow_reuse_address = True

    def __init__(self, config: Config, engine: Engine, folder: Path) -> None:
        """Listen. *folder* takes what is too large for memory. Raises OSError when it can't."""
        host, port = split_address(config.listen)
        self.config = config
        self.engine = engine
        self.folder = folder
        self.hosts = Hosts(host, config.hosts, hint="store.hosts names further ones")
        self.users = Users(config.users)
        self.running = Running(config.max_concurrent_requests, config.queue_wait_s, engine.stop_statement)
        self.serving = True
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without looking up names, as the base class would; that can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or tell it to come back when there are too many."""
        with self._open_lock:
            full = len(self._open) >= self.config.max_connections
            if not full:
                self._open.add(request)
        if full:
            with contextlib.suppress(OSError):
                request.settimeout(1)
                request.sendall(_TOO_MANY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class calls it so
        """A client that left is no error; everything else is a defect to be seen."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            log.error("a request from %s failed", client_address[0], exc_info=error)

    def hang_up(self) -> None:
        """Close the connections that are still open."""
        with self._open_lock:
            remaining = list(self._open)
        for connection in remaining:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


_FULL_BODY = (
    b"Code: 202. DB::Exception: Too many connections. Try again later. (TOO_MANY_SIMULTANEOUS_QUERIES)\n"
)
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nX-ClickHouse-Exception-Code: 202\r\nRetry-After: 1\r\n"
    b"Content-Type: text/plain; charset=UTF-8\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
) % (len(_FULL_BODY), _FULL_BODY)
