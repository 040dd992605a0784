"""A full spool: a moment's wait for room, never a long one, and afterwards a word about what was lost."""

from __future__ import annotations

import threading
import time

import pytest
from auditspan.spool import MAX_PAYLOAD_BYTES, Spool

RECORD = b"x" * 4000


@pytest.fixture
def spool(tmp_path):
    """Full, and somebody reads."""
    made = Spool(tmp_path / "spool", max_bytes=1 << 20)
    made.on_append(lambda: None)
    while made._used_bytes + len(RECORD) + 12 <= made.max_bytes:
        assert made.append(RECORD)
    yield made
    made.close()


def deliver_one(spool: Spool) -> None:
    segment = spool.next_segment()
    while segment.fd >= 0:
        batch = segment.read(512, MAX_PAYLOAD_BYTES)
        spool.acknowledge(segment, batch.end, len(batch.payloads))


def test_an_append_waits_for_room_that_comes_within_50_ms(spool):
    began = threading.Event()
    wait = spool._room._made.wait

    def waiting(left):
        began.set()
        return wait(left)

    spool._room._made.wait = waiting
    reader = threading.Thread(target=lambda: began.wait(10) and deliver_one(spool))
    reader.start()
    assert spool.append(RECORD)
    reader.join()
    assert spool.counts().shed == 0


def test_an_append_waits_at_most_50_ms_and_the_next_ones_not_at_all(spool):
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert not spool.append(RECORD)
        took.append(time.monotonic() - began)
    assert took[0] >= 0.05
    assert sorted(took)[-2] < 0.05  # though the machine may be busy
    assert spool.counts().shed == 20


def test_without_a_reader_nobody_waits(spool):
    spool._doorbell = None
    spool._room.wait = lambda _: pytest.fail("waited")
    assert not spool.append(RECORD)


def test_what_was_lost_is_told_once_there_is_room_and_not_twice(spool):
    told = []
    spool.on_check(lambda *loss: told.append(loss) or True)
    before = time.time_ns()
    assert [spool.append(RECORD) for _ in range(3)] == [False] * 3
    spool.append(b"")
    spool.check()
    assert told == []
    deliver_one(spool)
    spool.check()
    spool.check()
    (lost, reason, since), again = told
    assert (lost, reason) == (4, "3 not kept: the spool was full or the disk hung, 1 not kept: too large")
    assert before <= since <= time.time_ns()
    assert again[0] == 0


def test_a_loss_that_could_not_be_told_is_told_later(spool):
    told = []
    spool.append(RECORD)
    deliver_one(spool)
    spool.on_check(lambda lost, *_: told.append(lost) or False)
    spool.check()
    spool.on_check(lambda lost, *_: told.append(lost) or True)
    spool.check()
    spool.check()
    assert told == [1, 1, 0]
