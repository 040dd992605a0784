"""The spool: full, its disk full, damaged, shared, lost, or an old copy of itself."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager

import pytest
from collector.service.child_process import run
from collector.service.otlp_peer import wait_until
from faults.verdict import finish, judge, stored

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


@contextmanager
def small_disk(folder, mb):
    """*folder* on a disk of its own with so little room; gives what makes the disk larger.

    A tmpfs, whose limit is as hard as that of a disk. It takes the right to mount, which is asked for in a namespace
    of users and mounts of its own when this process does not have it.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    options = f"size={mb}m,mode=0700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True, timeout=30)
    try:
        yield lambda size: subprocess.run(
            ["mount", "-o", f"remount,size={size}m", str(folder)], check=True, timeout=30
        )
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


@pytest.mark.parametrize("what_helps", ["clickhouse is back", "the disk gets room"])
def test_a_full_disk_refuses_and_goes_on_by_itself(make_line, shared_store, judged, what_helps):
    line = make_line(shared_store, spool_mb=256, window=10_000)
    with small_disk(line.folder / "spool", 24) as resize:
        line.proxy.mode = "refuse"
        line.start_collector()
        with line.senders(**LARGE) as senders:
            refused(senders, "can't be written")
            waiting = line.metric("auditspan_spool_records")
            if what_helps == "clickhouse is back":
                line.proxy.heal()
            else:
                resize(48)
            senders.progress(100)
        assert all(each.retry_after_s for each in senders.refusals)
        verdict = judge(line, senders, finish(line))
    judged(
        f"disk full (ENOSPC at commit), then {what_helps}",
        verdict,
        f"{waiting:.0f} records waited; {len(senders.refusals)} requests told to wait",
    )


def test_a_disk_that_others_fill_to_the_last_byte(make_line, shared_store, judged):
    line = make_line(shared_store, spool_mb=256, window=10_000)
    with small_disk(line.folder / "spool", 24):
        line.start_collector()
        with line.senders(**LARGE) as senders:
            senders.progress(20)
            line.proxy.mode = "refuse"
            senders.progress(20)
            # lost+found is a name that the spool lets others have in its folder.
            other = line.folder / "spool" / "lost+found"
            with other.open("wb", buffering=0) as file:
                try:
                    while file.write(b"x" * 4096):
                        pass
                except OSError as error:
                    full = error
            refused(senders, "can't be written")
            line.proxy.heal()
            senders.progress(100)
            other.unlink()
            senders.progress(100)
        verdict = judge(line, senders, finish(line))
    assert "space" in str(full)
    judged(
        "disk filled by others to the last byte", verdict, f"{len(senders.refusals)} requests told to wait"
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
