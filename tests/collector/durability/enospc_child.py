"""A spool on a disk that is full: the process may not make files larger than so many bytes (EFBIG stands for ENOSPC).

Arguments: folder. Fills the spool until it refuses, empties it, fills it again, and prints what it saw as JSON.
"""

from __future__ import annotations

import json
import resource
import sys

from auditspan_collector.errors import SpoolFull
from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import empty, make_leaves, one_request

LIMIT_BYTES = 4 << 20


def fill(spool: Spool, first: int) -> tuple[int, str]:
    """Commit from record *first* on until refused; the next record, and the refusal."""
    while True:
        try:
            spool.commit(one_request(make_leaves(first, 50, size=2000)))
        except SpoolFull as error:
            return first, str(error)
        first += 50


def main() -> None:
    spool = Spool.open(
        Config(path=sys.argv[1], max_bytes=64 << 20, dedup_window_records=1000, allow_memory_filesystem=True),
        "test",
        "collector",
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    filled, refusal = fill(spool, 0)
    again, _ = fill(spool, filled)
    before = spool.backlog().records
    rows = [index for index, _ in empty(spool, max_rows=100)]
    refilled, _ = fill(spool, filled)
    # In one range: nothing is committed between what frees everything and what needs it.
    empty(spool, max_rows=1 << 30, max_bytes=1 << 30)
    again_refilled, _ = fill(spool, refilled)
    spool.close()
    print(
        json.dumps(
            {
                "filled": filled,
                "again": again,
                "refusal": refusal,
                "before": before,
                "rows_in_order": rows == list(range(filled)),
                "refilled": refilled,
                "again_refilled": again_refilled,
            }
        )
    )


if __name__ == "__main__":
    main()
