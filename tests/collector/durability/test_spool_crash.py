"""kill -9 at any moment: what was acknowledged is there, once, without a gap; what was sent keeps its range."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from auditspan_collector.ledger.merkle import Frontier
from collector.durability.sealing import CHILD_DEADLINE_S, make_leaf, rows_of

TESTS = Path(__file__).parents[2]
LIVES = 8


def live_and_die(rng: random.Random, module: str, *arguments: str) -> list[str]:
    """Run a child until some time after a number of its lines, kill it, and return every line that it got out."""
    child = subprocess.Popen(
        [sys.executable, "-m", f"collector.durability.{module}", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    watchdog = threading.Timer(CHILD_DEADLINE_S, child.kill)
    watchdog.start()
    try:
        lines = [child.stdout.readline() for _ in range(rng.randint(1, 40))]
        threading.Event().wait(rng.random() * 0.005)
        child.kill()
        lines += child.stdout.readlines()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        watchdog.cancel()
    # A line that was cut by the kill says nothing.
    return [line.strip() for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("mode", ["keep", "drain"])
def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9(spool_config, open_spool, mode):
    config = msgspec.structs.replace(spool_config, dedup_window_records=300)
    rng = random.Random(mode)
    acked, stored = -1, {}
    for _ in range(LIVES):
        # As a sender would: from the first record that was not acknowledged on, committed or not.
        for line in live_and_die(rng, "spool_child", config.path, str(acked + 1), mode):
            what, *values = line.split()
            if what == "acked":
                acked = int(values[0])
                continue
            first, last, root = int(values[0]), int(values[1]), values[2]
            assert stored.setdefault(first, (last, root)) == (last, root), "a range is sent again as it was"

    spool = open_spool(config)
    assert spool.next_index > acked
    reached = 0
    for first in sorted(stored):
        assert first == reached
        reached = stored[first][0] + 1
    assert spool.released_index in (reached, max(stored, default=0)), "the last range may still be in flight"

    hashes = []
    for index, content in (row for batch in batches(spool) for row in rows_of(batch)):
        assert content == b"record %d " % index, (
            "each record has the index of its own number: no gap, no double"
        )
        hashes.append(make_leaf(content).hash)
    assert spool.released_index + len(hashes) == spool.next_index
    if mode == "keep":
        assert Frontier().append(b"".join(hashes)) == spool._ledger.frontier
        assert hashes[0] == sha256(b"\x00" + b"record 0 " + bytes(8)).digest()


def test_senders_that_send_again_after_every_crash_have_each_record_stored_once(spool_config, open_spool):
    config = msgspec.structs.replace(spool_config, dedup_window_records=20)
    rng = random.Random("retries")
    acked = {"a": 0, "b": 0, "c": 0}
    for life in range(LIVES):
        for line in live_and_die(rng, "retrying_child", config.path, str(life), json.dumps(acked)):
            _, name, number = line.split()
            acked[name] = int(number)
    spool = open_spool(config)
    stored = [content for batch in batches(spool) for _, content in rows_of(batch)]
    numbered = [content for content in stored if not content.startswith(b"record ")]
    assert len(set(numbered)) == len(numbered), "none twice"
    wanted = {b"%s %d" % (name.encode(), n) for name, last in acked.items() for n in range(1, last + 1)}
    assert wanted <= set(numbered), "all that was acknowledged"
    assert sum(acked.values()) > 500


def batches(spool):
    """All that is left, as one range, without releasing it."""
    if (in_flight := spool.in_flight()) is not None:
        batch = spool.read(1, 1)
        assert (batch.first_index, batch.last_index, batch.root) == (
            in_flight.range.first,
            in_flight.range.last,
            in_flight.root,
        )
    spool._in_flight = None
    whole = spool.read(1 << 30, 1 << 30)
    return [] if whole is None else [whole]
