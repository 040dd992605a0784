"""Records, and a store with them in it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import struct
import subprocess
import sys
import termios
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from auditspan_collector.cli import auditspan as command_line
from auditspan_collector.clickhouse import ClickHouseClient, Config
from auditspan_collector.migrations import migrate
from auditspan_collector.query.rows import StoredRecord
from auditspan_collector.record import AuditRecord
from auditspan_collector.schema import INSERT_COLUMNS, encode_leaf, seal_row
from click.testing import CliRunner
from collector.query import shop_day

_numbers = itertools.count()

START_NS = 1_795_516_200_000_000_000  # 2026-11-24 10:30:00 UTC


def _record(**changes):
    """A record of alice's; a plain one, with *changes*."""
    plain = {
        "leaf_version": 1,
        "start_time_unix_ns": START_NS,
        "received_time_unix_ms": START_NS // 1_000_000 + 50,
        "duration_ns": 12_300_000,
        "trace_id": bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"),
        "span_id": bytes.fromhex("00f067aa0ba902b7"),
        "parent_span_id": bytes(8),
        "audit_parent_span_id": bytes(8),
        "trace_state": "",
        "span_name": "POST /orders/{order_id}/refund",
        "span_kind": "Server",
        "status_code": "Unset",
        "status_message": "",
        "service_name": "gateway",
        "tenant": "default",
        "record_id": uuid.UUID("01936f5e-0000-7000-8000-000000000001").bytes,
        "actor_id": "alice",
        "actor_type": "user",
        "actor_origin": "authenticated",
        "actor_roles": ("support",),
        "actor_session": "",
        "actor_auth_method": "basic",
        "actor_delegate": "",
        "reason": "",
        "action": "CREATE",
        "outcome": "success",
        "target_type": "order",
        "target_id": "1234",
        "client_address": "192.0.2.7",
        "sequence_stream": "gateway-1",
        "sequence_number": 1,
        "scope_name": "opentelemetry.instrumentation.fastapi",
        "scope_version": "0.66b1",
        "flags": 257,
        "dropped_attributes_count": 0,
        "dropped_events_count": 0,
        "dropped_links_count": 0,
        "resource_dropped_attributes_count": 0,
        "scope_dropped_attributes_count": 0,
        "resource_schema_url": "",
        "scope_schema_url": "",
        "attributes": (("http.request.method", "POST"), ("http.response.status_code", "200")),
        "attribute_types": (("http.response.status_code", "int"),),
        "resource_attributes": (("service.name", "gateway"),),
        "resource_attribute_types": (),
        "resource_entity_refs": "",
        "scope_attributes": (),
        "scope_attribute_types": (),
        "events": (),
        "links": (),
    }
    return AuditRecord(**{**plain, **changes})


def _stored(index=0, *, stream="default/collector/00", **changes):
    return StoredRecord(stream, index, _record(**changes))


@pytest.fixture(scope="session")
def make_record():
    """A factory of AuditRecords."""
    return _record


@pytest.fixture(scope="session")
def make_stored():
    """A factory of StoredRecords."""
    return _stored


class Shelf:
    """A database of its own with the product's schema, and the means to fill it as the drain does."""

    def __init__(self, url: str, database: str) -> None:
        self.client = ClickHouseClient(Config(url=url, database=database))
        self.database = database
        self.url = url
        self._next: dict[str, int] = {}
        migrate(self.client, database)

    def clear(self) -> None:
        """Take all records out."""
        self.client.execute("TRUNCATE TABLE records", in_database=True)
        self._next.clear()

    def add(
        self, *records: AuditRecord, stream: str = "default/collector/00", first: int | None = None
    ) -> None:
        """Store *records* as the next ones of *stream*, in one insert; *first* places them elsewhere."""
        start = self._next.get(stream, 0) if first is None else first
        rows = [seal_row(stream, start + n, encode_leaf(record)) for n, record in enumerate(records)]
        token = f"{stream}:{start}-{start + len(rows) - 1}:{uuid.uuid4().hex}"
        self.client.insert_row_binary("records", INSERT_COLUMNS, b"".join(rows), token)
        self._next[stream] = max(self._next.get(stream, 0), start + len(rows))


@pytest.fixture(scope="session")
def store_url(tmp_path_factory):
    """A running embedded store's address."""
    folder = tmp_path_factory.mktemp("store")
    program = [sys.executable, str(Path(__file__).with_name("serving_store.py")), str(folder)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()  # it ends when we do, however we do
        process.wait(timeout=30)


@contextmanager
def _shelf(url, database=None):
    shelf = Shelf(url, database or f"t{next(_numbers)}")
    yield shelf
    shelf.client.execute(f"DROP DATABASE {shelf.database}")
    shelf.client.close()


@pytest.fixture
def shelf(store_url):
    """An empty `Shelf`."""
    with _shelf(store_url) as shelf:
        yield shelf


@pytest.fixture(scope="session")
def shop(store_url, make_record):
    """A `Shelf` with the shop's day in it, in the database ``audit``; nothing may be added."""
    with _shelf(store_url, "audit") as shelf:
        shelf.add(*shop_day.records(make_record))
        yield shelf


@pytest.fixture(scope="module")
def module_shelf(store_url):
    """A `Shelf` that the tests of a module fill and read together."""
    with _shelf(store_url) as shelf:
        yield shelf


@dataclass(frozen=True)
class Ended:
    """How a command ended; *output* is what a terminal got, both streams together."""

    status: int
    output: str = ""
    stdout: str = ""
    stderr: str = ""


class Commands:
    """Run ``auditspan`` on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AUDITSPAN_")},
            "AUDITSPAN_CLICKHOUSE_URL": shelf.url,
            "AUDITSPAN_CLICKHOUSE_DATABASE": shelf.database,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TZ": "Europe/Berlin",
        }

    def __call__(self, *arguments: str, text: str | None = None) -> Ended:
        """In this process, which is quicker; output as in a pipe, *text* on standard input."""
        done = CliRunner().invoke(
            command_line, arguments, input=text, env=self.environment, catch_exceptions=False
        )
        return Ended(done.exit_code, stdout=done.stdout, stderr=done.stderr)

    def as_program(self, *arguments: str, text: str = "") -> Ended:
        """As a program of its own, with pipes."""
        done = subprocess.run(
            ["auditspan", *arguments],
            input=text.encode(),
            capture_output=True,
            env=self.environment,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())

    def in_terminal(self, *arguments: str, width: int = 80, **environment: str) -> Ended:
        """In a terminal *width* columns wide; line ends as a program writes them."""
        with self.started_in_terminal(*arguments, width=width, **environment) as (process, terminal):
            output = b""
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                while chunk := os.read(terminal, 65536):
                    output += chunk
            status = process.wait(timeout=60)
        return Ended(status, output=output.decode().replace("\r\n", "\n"))

    @contextmanager
    def started_in_terminal(self, *arguments: str, width: int = 80, **environment: str):
        """The running process, and the file descriptor of the terminal that it writes to."""
        terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        environment = {**self.environment, "TERM": "xterm-256color", **environment}
        process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        try:
            yield process, terminal
        finally:
            process.kill()
            process.wait()
            os.close(terminal)


@pytest.fixture
def auditspan(shelf):
    """Run a command on the test's own `shelf`."""
    return Commands(shelf)


@pytest.fixture(scope="session")
def ask_shop(shop):
    """Run a command on the `shop`."""
    return Commands(shop)
