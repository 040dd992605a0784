"""A collector whose store is away while a large backlog builds up, in a process of its own, so that its memory is known.

Arguments: folder, port, megabytes. Prints as JSON the most memory it ever took, in bytes: before there was a backlog,
with all of it waiting, and with all of it sent.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.pipeline.drain import Config as DrainConfig
from auditspan_collector.pipeline.drain import Drain
from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import make_records, one_request

RECORD_BYTES = 2000
GROUP = 250
DRAIN = DrainConfig(linger_s=0, retry_min_s=0.01, retry_max_s=0.05, max_bytes=4 << 20)


def most_memory() -> int:
    """Peak resident set, file pages that are mapped included, in bytes."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


def main() -> None:
    folder, port, megabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    spool = Spool.open(
        Config(path=folder, max_bytes=1 << 30, dedup_window_records=10_000, allow_memory_filesystem=True),
        "test",
        "collector",
    )
    client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}"))
    away = threading.Event()

    def prepare() -> None:
        # The store is away for as long as the backlog grows; every try fails on the wire.
        if not away.is_set():
            nowhere.ping()

    nowhere = ClickHouseClient(ClickHouseConfig(url="http://127.0.0.1:9"))
    drain = Drain(spool, client, prepare=prepare, config=DRAIN)
    drain.start()
    for n in range(40):
        spool.commit(one_request(make_records(n * GROUP, GROUP, size=RECORD_BYTES)))
    at_first = most_memory()
    groups = (megabytes << 20) // (GROUP * RECORD_BYTES)
    for n in range(40, groups):
        spool.commit(one_request(make_records(n * GROUP, GROUP, size=RECORD_BYTES)))
    backlog = spool.backlog()
    waiting = most_memory()
    away.set()
    # Until it is seen that the store is there: a stop ends with the first failure, such as one that is under way.
    deadline = time.monotonic() + 60
    while spool.backlog().records == backlog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    left = 0 if drain.stop(60) else spool.backlog().records
    sent = most_memory()
    client.close()
    spool.close()
    print(
        json.dumps(
            {"at_first": at_first, "waiting": waiting, "sent": sent, "backlog": backlog.bytes, "left": left}
        )
    )


if __name__ == "__main__":
    main()
