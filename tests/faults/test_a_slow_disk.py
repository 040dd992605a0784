"""The disk takes seconds to say that it has something: senders wait for a bounded time, or are told to come back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from collector.service.otlp_peer import wait_until
from faults.senders import DEADLINE_S
from faults.verdict import finish, judge

pytestmark = pytest.mark.timeout(600)

SHIM = Path(__file__).with_name("slow_disk")


class Disk:
    """Of collectors that are started with ``environ``; each wait for it takes as long as *take* says."""

    def __init__(self, folder):
        self._file = folder / "seconds"
        self.take(0)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            slow = {"PYTHONPATH": str(SHIM)}
        else:
            library = folder / "slow_sync.so"
            command = [compiler, "-shared", "-fPIC", "-o", library, SHIM / "slow_sync.c", "-ldl"]
            subprocess.run(command, check=True, timeout=60)
            slow = {"LD_PRELOAD": str(library)}
        self.environ = {"SLOW_DISK_FILE": str(self._file), **slow}

    def take(self, seconds):
        self._file.write_text(f"{seconds}\n")


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


@pytest.mark.long
def test_on_a_disk_that_takes_a_second_for_each_commit_every_sender_is_answered_before_its_deadline(
    line, judged, disk
):
    line.start_collector(**disk.environ)
    with line.senders() as senders:
        senders.progress(50)
        fast = len(senders.acknowledged)
        disk.take(1.0)
        senders.progress(100)
        slowest_s = max(each.elapsed_s for each in senders.acknowledged[fast:])
        disk.take(0)
    verdict = judge(line, senders, finish(line))
    assert not senders.refusals
    assert not senders.unreachable
    assert 1.0 <= slowest_s < DEADLINE_S
    judged("each wait for the disk takes 1 s", verdict, f"none refused; OK took {slowest_s:.1f} s at most")


@pytest.mark.long
def test_more_than_a_slow_disk_takes_is_pushed_back_to_the_senders(make_line, shared_store, judged, disk):
    line = make_line(shared_store, spool_mb=512, group_mb=1, queue_mb=4, queue_wait_s=1)
    line.start_collector(**disk.environ)
    with line.senders(count=16, pause_s=0, records=(8, 12), value_bytes=50_000) as senders:
        disk.take(0.5)
        wait_until(lambda: len(senders.refusals) >= 40, limit_s=60, what="refusals")
        senders.progress(50)  # meanwhile it takes what the disk can take
        disk.take(0)
        refused = len(senders.refusals)
        senders.progress(500)
    verdict = judge(line, senders, finish(line))
    for each in senders.refusals:
        assert "wait for the disk already" in each.message
        assert each.retry_after_s
    slowest_refusal_s = max(each.elapsed_s for each in senders.refusals)
    slowest_ok_s = max(each.elapsed_s for each in senders.acknowledged)
    assert senders.unreachable == []
    assert slowest_refusal_s < DEADLINE_S / 2
    assert slowest_ok_s < DEADLINE_S
    judged(
        "more than the disk takes (0.5 s a wait)",
        verdict,
        f"{refused} requests told to wait, after {slowest_refusal_s:.1f} s at most; OK took {slowest_ok_s:.1f} s at most",
    )
