"""ClickHouse away for long: the backlog costs disk, memory stays flat, and everything is stored when it is back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from collector.durability.scripted_store import Store, serve
from collector.durability.sealing import CHILD_DEADLINE_S

TESTS = Path(__file__).parents[2]
MIB = 1 << 20


def test_memory_stays_flat_while_a_backlog_grows_and_while_it_is_sent(tmp_path):
    store = Store()
    with serve(store) as port:
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "collector.durability.outage_child",
                str(tmp_path / "spool"),
                str(port),
                "120",
            ],
            capture_output=True,
            text=True,
            timeout=2 * CHILD_DEADLINE_S,
            cwd=TESTS,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            check=False,
        )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["backlog"] > 100 * MIB
    assert seen["waiting"] - seen["at_first"] < 30 * MIB
    assert seen["sent"] - seen["at_first"] < 60 * MIB, "a few ranges of 4 MiB, whatever the backlog"
    assert seen["left"] == 0
    stored = [index for _, index in store.rows]
    assert stored == list(range(len(stored)))
    assert store.duplicated == []
