"""A real store for the tests of queries, and databases in it that are filled as the drain fills them."""

from __future__ import annotations

import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.clickhouse import ClickHouseClient, Config
from auditspan_collector.migrations import migrate
from auditspan_collector.schema import INSERT_COLUMNS, encode_leaf, seal_row

if TYPE_CHECKING:
    from auditspan_collector.record import AuditRecord


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
        self.client.insert_block("records", INSERT_COLUMNS, b"".join(rows), token)
        self._next[stream] = max(self._next.get(stream, 0), start + len(rows))


@contextmanager
def serving(folder, port=0):
    """The address of a store on *folder*, as long as it runs."""
    program = [sys.executable, str(Path(__file__).with_name("serving_store.py")), str(folder), str(port)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()  # it ends when we do, however we do
        process.wait(timeout=30)
