"""Insert a sealed range: as columns where that is cheap, under a name the server knows it by, whole or what it lacks."""

from __future__ import annotations

import logging
import struct
from hashlib import sha256
from typing import TYPE_CHECKING

from auditspan_collector.columnar import COMPILED, Columns
from auditspan_collector.schema import INSERT_COLUMNS, NATIVE_COLUMNS, TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.record import SealedBatch

log = logging.getLogger(__name__)


def token(batch: SealedBatch) -> str:
    """The name under which the server recognises *batch*; the root makes it the name of these very rows."""
    return f"{batch.stream}:{batch.first_index}-{batch.last_index}:{batch.root.hex()}"


def insert(client: ClickHouseClient, batch: SealedBatch, native: Columns | None = None) -> None:
    """Insert *batch* as one block; the server drops it when it remembers its token. On return it is stored.

    *native* (Columns of NATIVE_COLUMNS) is for one thread, and keeps its room for the next call.
    """
    _send(client, INSERT_COLUMNS, batch.rows, batch.count, token(batch), native=native)


def insert_missing(
    client: ClickHouseClient, batch: SealedBatch, columns: Sequence[str] = INSERT_COLUMNS
) -> int:
    """Insert what the store lacks of *batch*, whose rows have *columns*; returns how many records that were.

    For a range whose token the server may have forgotten.
    """
    found = client.rows(
        "SELECT DISTINCT ledger_index FROM records WHERE ledger_stream = {stream:String} "
        "AND ledger_index BETWEEN {first:UInt64} AND {last:UInt64}",
        {"stream": batch.stream, "first": batch.first_index, "last": batch.last_index},
    )
    present = {int(index) for (index,) in found}
    missing = [index for index in range(batch.first_index, batch.last_index + 1) if index not in present]
    log.info(
        "range %d-%d was tried before: the store has %d of its %d records",
        batch.first_index,
        batch.last_index,
        len(present),
        batch.count,
    )
    if len(missing) == batch.count:
        _send(client, columns, batch.rows, batch.count, token(batch))
    elif missing:
        # Other rows, so another token: under the old one the server would drop them.
        digest = sha256(struct.pack(f">{len(missing)}Q", *missing)).hexdigest()[:16]
        _send(client, columns, rows_of(batch, missing), len(missing), f"{token(batch)}:{digest}")
    return len(missing)


def rows_of(batch: SealedBatch, indexes: Sequence[int]) -> bytes:
    """The rows of *batch* that have one of *indexes*, which ascend."""
    wanted = set(indexes)
    rows = memoryview(batch.rows)
    parts = []
    at = 0
    for index, length in enumerate(batch.row_bytes, batch.first_index):
        if index in wanted:
            parts.append(rows[at : at + length])
        at += length
    return b"".join(parts)


def _send(
    client: ClickHouseClient,
    columns: Sequence[str],
    rows: bytes,
    count: int,
    name: str,
    *,
    native: Columns | None = None,
) -> None:
    # Interpreted, turning them costs more than it spares the store; rows of other columns come once in a restore.
    if COMPILED and tuple(columns) == INSERT_COLUMNS:
        head = client.insert_head(TABLE, columns, "Native")
        try:
            body = (native or Columns(NATIVE_COLUMNS)).block(rows, count, head)
        except ValueError as error:
            log.error("%s: %s; sent as they are, for the server to refuse", name, error)  # noqa: TRY400
        else:
            client.insert(body, name)
            return
    client.insert_block(TABLE, columns, rows, name)
