"""The spool: full, its disk full, damaged, shared, lost, or an old copy of itself."""

from __future__ import annotations

import resource
import shutil
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
from auditspan_collector.spool.config import BALLAST_BYTES, BALLAST_FILE
from collector.service.child_process import run
from collector.service.otlp_peer import wait_until
from faults.verdict import finish, judge, stored

pytestmark = pytest.mark.timeout(600)

# Half a megabyte a request: it takes seconds to fill the smallest spool.
LARGE = {"records": (8, 12), "value_bytes": 50_000}


def refused(senders, words):
    """Wait until a request is refused with *words*."""
    wait_until(
        lambda: any(words in each.message for each in senders.refusals),
        limit_s=60,
        what=f"a refusal with {words!r}",
    )


def test_a_full_spool_refuses_and_goes_on_by_itself_when_clickhouse_is_back(make_line, shared_store, judged):
    line = make_line(shared_store, spool_mb=64, window=10_000)
    line.proxy.mode = "refuse"
    line.start_collector()
    with line.senders(**LARGE) as senders:
        refused(senders, "is full")
        waiting = line.metric("auditspan_spool_records")
        line.proxy.heal()
        senders.progress(200)
    assert all(each.retry_after_s for each in senders.refusals)
    verdict = judge(line, senders, finish(line))
    judged(
        "spool full", verdict, f"{waiting:.0f} records waited; {len(senders.refusals)} requests told to wait"
    )


class Tmpfs:
    """A disk of its own for a folder, whose limit is as hard as that of any disk: ENOSPC."""

    name = "ENOSPC"

    def __init__(self, line, mb):
        self._folder = line.folder / "spool"
        self._mount("-t", "tmpfs", "-o", f"size={mb}m,mode=0700", "tmpfs")

    def _mount(self, *arguments):
        command = ["mount", *arguments, str(self._folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)

    def watch(self):
        """The collector has started: nothing to do, it is the disk that is small."""

    def grow(self, mb):
        self._mount("-o", f"remount,size={mb}m")

    def fill(self):
        """Let others take the rest, to the last byte; gives what undoes that."""
        # lost+found is a name that the spool lets others have in its folder.
        other = self._folder / "lost+found"
        with other.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        assert shutil.disk_usage(self._folder).free == 0
        return other.unlink

    def close(self):
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True, timeout=30)


class FileSizeLimit:
    """Where mounting is not allowed: the collector may not make its files larger, which fails with EFBIG instead."""

    name = "EFBIG"

    def __init__(self, line, mb):
        self._line, self._bytes = line, mb << 20

    def watch(self):
        """The collector has started: from now on the limit holds for it."""
        pid = self._line.collector.process.pid
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (self._bytes, hard))

    def _set(self, size):
        self._bytes = size
        self.watch()

    def grow(self, mb):
        self._set(mb << 20)

    def fill(self):
        before = self._bytes
        self._set((self._line.folder / "spool" / "data.mdb").stat().st_size)
        return lambda: self._set(before)

    def close(self):
        """The limit ends with the collector."""


@contextmanager
def small_disk(line, mb, kinds=(Tmpfs, FileSizeLimit)):
    """The spool of *line* on a disk with so little room, of the first of *kinds* that is allowed."""
    (line.folder / "spool").mkdir(mode=0o700)
    try:
        disk = kinds[0](line, mb)
    except (subprocess.CalledProcessError, FileNotFoundError):
        disk = kinds[1](line, mb)
    try:
        yield disk
    finally:
        disk.close()


@pytest.mark.parametrize(
    ("kinds", "what_helps"),
    [
        pytest.param((Tmpfs, FileSizeLimit), "ClickHouse is back", id="disk"),
        pytest.param((Tmpfs, FileSizeLimit), "the disk gets room", id="disk grows", marks=pytest.mark.long),
        pytest.param((FileSizeLimit,), "ClickHouse is back", id="limit", marks=pytest.mark.long),
    ],
)
def test_a_full_disk_refuses_and_goes_on_by_itself(make_line, shared_store, judged, kinds, what_helps):
    line = make_line(shared_store, spool_mb=256, window=10_000)
    with small_disk(line, 24, kinds) as disk:
        line.proxy.mode = "refuse"
        line.start_collector()
        disk.watch()
        with line.senders(**LARGE) as senders:
            refused(senders, "can't be written")
            waiting = line.metric("auditspan_spool_records")
            if what_helps == "ClickHouse is back":
                line.proxy.heal()
            else:
                disk.grow(48)
            senders.progress(100)
        assert all(each.retry_after_s for each in senders.refusals)
        verdict = judge(line, senders, finish(line))
    judged(
        f"disk full ({disk.name} at commit), then {what_helps}",
        verdict,
        f"{waiting:.0f} records waited; {len(senders.refusals)} requests told to wait",
    )


@pytest.mark.long
def test_a_disk_that_others_fill_to_the_last_byte(make_line, shared_store, judged):
    line = make_line(shared_store, spool_mb=256, window=10_000)
    with small_disk(line, 24) as disk:
        line.start_collector()
        disk.watch()
        with line.senders(**LARGE) as senders:
            senders.progress(20)
            line.proxy.mode = "refuse"
            senders.progress(20)
            make_room = disk.fill()
            refused(senders, "can't be written")
            line.proxy.heal()
            make_room()
            senders.progress(100)
        verdict = judge(line, senders, finish(line))
    told = f"{len(senders.refusals)} requests told to wait"
    judged("disk filled by others to the last byte", verdict, told)


def ballast(line):
    return (line.folder / "spool" / BALLAST_FILE).stat().st_size


@pytest.mark.parametrize(
    "restart",
    [pytest.param(False, id="goes on"), pytest.param(True, id="starts again", marks=pytest.mark.long)],
)
def test_a_disk_that_others_keep_full_does_not_hold_up_the_drain(make_line, shared_store, judged, restart):
    line = make_line(shared_store, spool_mb=256, window=10_000)
    with small_disk(line, 24) as disk:
        # Nothing is sent before the disk is full, so that the spool's file has next to no page to use again.
        line.proxy.mode = "refuse"
        line.start_collector()
        disk.watch()
        with line.senders(**LARGE) as senders:
            senders.progress(120)
            make_room = disk.fill()
            refused(senders, "can't be written")
            waiting = line.metric("auditspan_spool_records")
            if restart:
                line.kill_collector()
                line.start_collector()
                disk.watch()
            line.proxy.heal()
            if disk.name == "EFBIG":
                make_room()  # nothing that is given up helps a file that may not grow
            # What was sent leaves room in the spool's own file.
            senders.progress(100)
        make_room()
        disk.grow(64)
        with line.senders("after", count=1) as after:
            wait_until(
                lambda: ballast(line) == BALLAST_BYTES, limit_s=30, what="what is kept back being whole"
            )
        verdict = judge(line, [senders, after], finish(line))
    judged(
        f"disk kept full by others to the last byte, ClickHouse is back{', restart' * restart}",
        verdict,
        f"{waiting:.0f} records waited; all sent without room on the disk",
    )


def flip(path, needle):
    """Flip one bit of *needle* wherever it stands in a file, and give what undoes that."""
    data = path.read_bytes()
    places = []
    at = data.find(needle)
    while at >= 0:
        places.append(at)
        at = data.find(needle, at + 1)
    assert places

    def write(mask):
        with path.open("r+b") as file:
            for place in places:
                file.seek(place)
                file.write(bytes([data[place] ^ mask]))

    write(1)
    return lambda: write(0)


@pytest.mark.long
def test_a_damaged_value_stops_the_drain_before_it_and_nothing_is_skipped(line, judged):
    line.proxy.mode = "refuse"
    line.write_settings(max_rows=1)  # a range of its own for each commit
    line.start_collector()
    with line.senders("before", count=1) as before:
        before.progress(50)
    with line.senders("after", count=1) as after:
        after.progress(50)
    line.kill_collector()
    # The bytes of one record in the middle of what waits.
    middle = before.acknowledged[-1]
    repair = flip(line.folder / "spool" / "data.mdb", middle.record_ids[0].encode())
    line.proxy.heal()
    line.start_collector()
    line.collector.wait_for("STOPPED sending to ClickHouse.*its checksum does not match")
    with line.senders("meanwhile", count=1) as meanwhile:
        meanwhile.progress(20)  # it goes on taking
    sent = {record for _, _, record, _ in stored(line).rows}
    acknowledged = [record for each in before.acknowledged for record in each.record_ids]
    assert sent == set(acknowledged[: acknowledged.index(middle.record_ids[0])]), (
        "all before the damage, none after"
    )
    assert line.end_collector() == 0
    repair()
    line.start_collector()
    verdict = judge(line, [before, after, meanwhile], finish(line))
    judged(
        "a damaged value in the spool",
        verdict,
        f"STOPPED, named; {len(sent)} records before it were sent, the rest once the disk was mended",
    )


@pytest.mark.long
def test_a_second_collector_on_the_same_spool_refuses_to_start(make_line, shared_store, judged, tmp_path):
    line = make_line(shared_store)
    line.start_collector()
    second = make_line(shared_store)
    second.config.write_text(
        second.config.read_text().replace(f"{second.folder}/spool", f"{line.folder}/spool")
    )
    with line.senders() as senders:
        for _ in range(2):
            senders.progress(50)
            status, _, stderr = run(tmp_path / "second", "collect", "--config", second.config)
            assert status == 1
            assert f"is in use by process {line.collector.process.pid}" in stderr
            senders.progress(50)
    judged(
        "two collectors on one spool",
        judge(line, senders, finish(line)),
        "the second does not start, and says why",
    )


@pytest.mark.long
def test_a_lost_spool_starts_a_new_stream(line, judged):
    line.start_collector()
    with line.senders("before") as before:
        before.progress(100)
    first = finish(line)
    shutil.rmtree(line.folder / "spool")
    line.start_collector()
    with line.senders("after") as after:
        after.progress(100)
    second = finish(line)
    verdict = judge(line, [before, after], [first, second])
    assert (verdict.streams, first.stream != second.stream) == (2, True)
    judged("spool lost, all of it sent before", verdict, "a new stream; the old one's root still holds")


@pytest.mark.long
def test_a_spool_that_is_lost_while_it_is_in_use_acknowledges_nothing_more(line, judged):
    line.start_collector()
    with line.senders("before") as before:
        before.progress(100)
    line.wait_until_drained()
    shutil.rmtree(line.folder / "spool")
    with line.senders("after") as after:
        wait_until(lambda: len(after.refusals) > 8, limit_s=30, what="refusals")
        assert not after.acknowledged
        line.collector.wait_for("was removed or replaced while in use")
        line.end_collector()
        line.start_collector()
        after.progress(100)
    verdict = judge(line, [before, after], finish(line))
    assert verdict.streams == 2
    judged("spool folder deleted while in use", verdict, "nothing taken until restarted, then a new stream")


@pytest.mark.long
def test_a_spool_restored_from_an_old_copy_takes_nothing_and_sends_nothing(line, judged):
    line.start_collector()
    with line.senders("before") as before:
        before.progress(100)
    finish(line)
    shutil.copytree(line.folder / "spool", line.folder / "copy")
    line.start_collector()
    with line.senders("since") as since:
        since.progress(100)
    first = finish(line)
    shutil.rmtree(line.folder / "spool")
    (line.folder / "copy").rename(line.folder / "spool")
    line.start_collector()
    line.collector.wait_for("STOPPED sending to ClickHouse.*its folder is an old copy")
    with line.senders("after") as after:
        refused(after, "the spool is an old copy")
        assert not after.acknowledged
        assert len(stored(line).rows) == first.frontier.size
        # What the message says: move it away.
        line.end_collector()
        (line.folder / "spool").rename(line.folder / "aside")
        line.start_collector()
        after.progress(100)
    second = finish(line)
    verdict = judge(line, [before, since, after], [first, second])
    assert verdict.streams == 2
    judged(
        "spool restored from an old copy",
        verdict,
        "nothing taken or sent until it was moved away; a new stream",
    )


@pytest.mark.long
def test_what_an_old_copy_takes_while_clickhouse_is_away_stays_in_it(line, judged):
    line.start_collector()
    with line.senders("before") as before:
        before.progress(100)
    finish(line)
    shutil.copytree(line.folder / "spool", line.folder / "copy")
    line.start_collector()
    with line.senders("since") as since:
        since.progress(100)
    first = finish(line)
    shutil.rmtree(line.folder / "spool")
    (line.folder / "copy").rename(line.folder / "spool")
    # Only ClickHouse can tell that the copy is old, and it is away.
    line.proxy.mode = "refuse"
    line.start_collector()
    with line.senders("taken") as taken:
        taken.progress(100)
        line.proxy.heal()
        line.collector.wait_for("STOPPED sending to ClickHouse.*keep it, it holds what was accepted since")
        refused(taken, "the spool is an old copy")
    line.end_collector()
    rows = line.waiting_rows()
    (line.folder / "spool").rename(line.folder / "aside")
    kept = {record for each in taken.acknowledged for record in each.record_ids if record.encode() in rows}
    line.start_collector()
    with line.senders("after") as after:
        after.progress(100)
    verdict = judge(line, [before, since, taken, after], [first, finish(line)])
    assert verdict.missing == kept == {record for each in taken.acknowledged for record in each.record_ids}
    assert verdict.streams == 2
    judged(
        "old copy of a spool, while ClickHouse is away",
        replace(verdict, missing=frozenset(), kept_aside=len(kept)),
        "what it took stays in the folder that was moved away, for a person to look at",
    )
