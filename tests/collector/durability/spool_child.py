"""A collector's spool in a process of its own, to be killed at any moment.

Arguments: folder, number of the first record, "drain" or "keep". Commits records in order and prints "acked N" once
all up to N are durable. With "drain" it also empties the spool on the way, into a store that is this pipe: "stored
FIRST LAST ROOT" means that the store has that range, whatever becomes of the release.
"""

from __future__ import annotations

import random
import sys

from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import make_leaves, one_request


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    folder, first, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    spool = Spool.open(
        Config(path=folder, max_bytes=64 << 20, dedup_window_records=300, allow_memory_filesystem=True),
        "test",
        "collector",
    )
    rng = random.Random(first)
    while True:
        count = rng.randint(1, 40)
        spool.commit(one_request(make_leaves(first, count)))
        first += count
        say(f"acked {first - 1}")
        if mode == "drain" and rng.random() < 0.5 and (batch := spool.read(50, 1 << 20)) is not None:
            spool.begin_insert(batch)
            say(f"stored {batch.first_index} {batch.last_index} {batch.root.hex()}")
            spool.release(batch.last_index)


if __name__ == "__main__":
    main()
