"""A spool with impatient senders, in a process of its own, to be killed at any moment. Arguments: folder, seed, state.

The state is JSON: what each sender's sequence has had acknowledged, {"a": 12, ...}. A sender goes on behind that, and
also sends again what was acknowledged long ago, in any order. "acked NAME N" is printed once all up to N are durable.
"""

from __future__ import annotations

import json
import random
import sys

from auditspan_collector.spool import Config, Spool
from collector.durability.sealing import make_leaves, make_numbered, one_request


def main() -> None:
    folder, seed, state = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    # A window of a few records: what is recognised here is recognised by its number.
    config = Config(path=folder, max_bytes=64 << 20, dedup_window_records=20, allow_memory_filesystem=True)
    spool = Spool.open(config, "test", "collector")
    rng = random.Random(seed)
    others = seed << 32
    while True:
        name = rng.choice(list(state))
        done, count = state[name], rng.randint(1, 60)
        leaves = make_numbered(name.encode(), done + 1, count, received=rng.getrandbits(32))
        for _ in range(rng.randint(0, 2)):
            again = rng.choice(list(state))
            first = rng.randint(1, max(1, state[again]))
            many = min(rng.randint(0, 40), state[again] - first + 1)
            leaves += make_numbered(again.encode(), first, many, received=rng.getrandbits(32))
        if rng.random() < 0.3:
            rng.shuffle(leaves)
        spool.commit(one_request(leaves))
        state[name] = done + count
        sys.stdout.write(f"acked {name} {done + count}\n")
        sys.stdout.flush()
        spool.commit(one_request(make_leaves(others, 30)))  # of other senders, which push the window on
        others += 30


if __name__ == "__main__":
    main()
