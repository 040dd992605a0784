"""The insert path alone: the client that the drain uses, and the embedded store behind it.

Rows are real ones: records of the collector suite's spans, each with a trace id of its own, encoded before the clock
starts. Per-row costs of client and store stand beside the rate, since on a small machine both share its cores.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from auditspan_collector.cli.foreground import keep_freed_memory
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.columnar import Columns
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.readable import encode
from auditspan_collector.processor.enrich import Limits
from auditspan_collector.record import Leaf, OtlpRequest, Sender
from auditspan_collector.schema import INSERT_COLUMNS, NATIVE_COLUMNS, TABLE, seal_row

from bench.collector.spans import messages
from bench.collector.suite import start_store

if TYPE_CHECKING:
    from bench.process import Process
    from bench.results import Case
    from bench.settings import Settings

# Rows of a block, and how many such blocks: enough of each for seconds of work. The third is about as large as the
# collector's inserts get (drain.max_bytes), the last seven times that.
BLOCKS: Final = ((1_000, 60), (10_000, 15), (15_000, 10), (100_000, 3))
# What the collector sends, made of rows while the clock runs, and the rows as they are.
FORMATS: Final = ("Native", "RowBinary")
STREAM: Final = "bench/store/0123456789abcdef"
# In each trace id that is sent, so that it can be found in a row and replaced.
NUMBER: Final = bytes.fromhex("5bd1e9950f8a47c3")


def run(settings: Settings) -> list[Case]:
    """Rows a second for each size of block and each format."""
    keep_freed_memory()  # as the collector does when it starts
    leaves = _leaves()
    every = frozenset(os.sched_getaffinity(0))
    process, port = start_store(settings.folder, every)
    config = ClickHouseConfig(url=f"http://127.0.0.1:{port}")
    cases = []
    first = 0
    with process, closing(ClickHouseClient(config)) as client:
        migrate(client, config.database)
        for rows, times in BLOCKS:
            if rows > settings.rows // 10:
                continue
            count = max(1, times // 3) if settings.quick else times
            for form in FORMATS:
                blocks = [_block(leaves, first + at * rows, rows) for at in range(count)]
                first += rows * count
                cases.append(_inserted(client, process, blocks, rows, form))
                settings.say(
                    f"  blocks of {rows:7,}  {form:9}  {cases[-1]['rows_per_s']:9,} rows/s"
                    f"  store {cases[-1]['store_cpu_us_per_row']:.1f} us/row"
                )
        ((stored,),) = client.rows("SELECT count() FROM records")
    if stored != first:
        raise RuntimeError(f"{first} rows were inserted, {stored} are stored")
    return cases


def _inserted(client: ClickHouseClient, process: Process, blocks: list[bytes], rows: int, form: str) -> Case:
    started, store_s, client_s = time.monotonic(), process.cpu_s(), time.process_time()
    native = Columns(NATIVE_COLUMNS)
    head = client.insert_head(TABLE, INSERT_COLUMNS, form)
    for at, block in enumerate(blocks):
        body = native.block(block, rows, head) if form == "Native" else head + block
        client.insert(body, f"{STREAM}:{form}:{rows}-{at}")
    total = rows * len(blocks)
    return {
        "system": "embedded",
        "block_rows": rows,
        "format": form,
        "rows_per_s": round(total / (time.monotonic() - started)),
        "bytes_per_row": round(sum(map(len, blocks)) / total),
        "store_cpu_us_per_row": round((process.cpu_s() - store_s) * 1e6 / total, 2),
        "client_cpu_us_per_row": round((time.process_time() - client_s) * 1e6 / total, 2),
    }


def _leaves() -> list[Leaf]:
    sender = Sender("bench", "default", None, instrumented=True)
    now = time.time_ns()
    requests = [
        OtlpRequest(message.numbered(NUMBER), "protobuf", sender, "127.0.0.1", now)
        for message in messages(100)
    ]
    return [leaf for request in requests for leaf in encode(request, Limits()).leaves]


def _block(leaves: list[Leaf], first: int, rows: int) -> bytes:
    parts = []
    for index in range(first, first + rows):
        leaf = leaves[index % len(leaves)]
        # Only the row's bytes count here; nobody asks for the hash.
        content = leaf.content.replace(NUMBER, os.urandom(8), 1)
        parts.append(seal_row(STREAM, index, Leaf(content, leaf.hash, leaf.identity)))
    return b"".join(parts)
