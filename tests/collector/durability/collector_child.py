"""Spool, intake and drain in a process of its own, to be killed: takes requests on stdin, answers on stdout.

Arguments: folder, ClickHouse's address, database. A line "N COUNT" is a request with records N to N+COUNT-1; it is
answered "N FIRST-LAST DUPLICATES" once they are durable.
"""

from __future__ import annotations

import sys
from functools import partial

from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.migrations import migrate
from auditspan_collector.pipeline.drain import Config as DrainConfig
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.pipeline.intake import Intake
from auditspan_collector.record import Leaves, OtlpRequest, Selection, Sender
from auditspan_collector.schema import encode_leaf
from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import make_record

SENDER = Sender("anonymous", "default", None, instrumented=True)


def encode(request: OtlpRequest) -> Selection:
    first, count = map(int, request.body.split())
    leaves = Leaves.of(encode_leaf(make_record(n)) for n in range(first, first + count))
    return Selection(leaves, spans=count, tagged=count)


def main() -> None:
    folder, url, database = sys.argv[1:]
    spool = Spool.open(
        Config(path=folder, max_bytes=64 << 20, dedup_window_records=10_000, allow_memory_filesystem=True),
        "test",
        "collector",
    )
    client = ClickHouseClient(ClickHouseConfig(url=url, database=database))
    drain = Drain(
        spool,
        client,
        prepare=partial(migrate, client, database),
        config=DrainConfig(linger_s=0.001, max_rows=50, retry_min_s=0.01, retry_max_s=0.1),
    )
    intake = Intake(spool, encode)
    drain.start()
    intake.start()
    for line in sys.stdin:
        accepted = intake.submit(OtlpRequest(line.encode(), "protobuf", SENDER, "127.0.0.1", 1))
        ranges = " ".join(f"{each.first}-{each.last}" for each in accepted.receipt.ranges)
        print(line.split()[0], ranges or "-", accepted.receipt.duplicates, flush=True)
    intake.stop()
    drain.stop(30)
    spool.close()


if __name__ == "__main__":
    main()
