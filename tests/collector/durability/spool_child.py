"""A collector's spool in a process of its own, to be killed: commits, and says on stdout what it acknowledged.

Arguments: folder, number of the first record. Prints "a b" once records a to b are durable. Drains some of it on
the way, so that deaths between begin_insert and release happen too.
"""

from __future__ import annotations

import random
import sys

from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import make_leaves


def main() -> None:
    folder, first = sys.argv[1], int(sys.argv[2])
    spool = Spool.open(
        Config(path=folder, max_bytes=64 << 20, dedup_window_records=300, allow_memory_filesystem=True),
        "test",
        "collector",
    )
    rng = random.Random(first)
    while True:
        count = rng.randint(1, 40)
        spool.commit(make_leaves(first, count, size=rng.randint(0, 3000)))
        sys.stdout.write(f"{first} {first + count - 1}\n")
        sys.stdout.flush()
        first += count
        if rng.random() < 0.2 and (batch := spool.read(50, 1 << 20)) is not None:
            spool.begin_insert(batch)
            # The store is this pipe: what is written here has been inserted.
            sys.stdout.write(f"stored {batch.first_index} {batch.last_index} {batch.root.hex()}\n")
            sys.stdout.flush()
            spool.release(batch.last_index)


if __name__ == "__main__":
    main()
