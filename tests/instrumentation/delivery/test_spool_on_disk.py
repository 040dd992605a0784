"""What ``append`` took is on disk: whoever dies, whatever happens to the folder, next process or not."""

from __future__ import annotations

import os
import stat
import threading
import time

import pytest
from auditspan.spool import MAX_PAYLOAD_BYTES, Segment, Spool, place, prepare
from instrumentation.delivery.otlp_payloads import wait_until


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool")
    yield made
    made.close()


def drain(spool: Spool) -> list[bytes]:
    """Deliver everything in reach, own and left over, as the shipper does; what it was, in order."""
    found: list[bytes] = []
    while True:
        segment, left_over = spool.next_segment(), False
        if segment is None:
            segment, left_over = spool.left_over(), True
        if segment is None:
            return found
        while batch := segment.read(512, MAX_PAYLOAD_BYTES):
            spool.count_torn(batch.skipped)
            if not batch.payloads:
                break
            found += batch.payloads
            spool.acknowledge(segment, batch.end, len(batch.payloads))
            if segment.fd < 0:
                break
        if left_over and segment.fd >= 0:
            spool.release(segment)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_are_for_their_owner_only(spool):
    old = os.umask(0)
    try:
        assert spool.append(b"secret")
    finally:
        os.umask(old)
    spool.acknowledge(spool.next_segment(), spool.next_segment().read(1, 99).end, 1)
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {path.suffix for path in spool.folder.iterdir()} == {".spool", ".ack"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


def test_a_folder_that_was_open_to_others_is_closed(tmp_path):
    (tmp_path / "spool").mkdir(mode=0o755)
    spool = Spool(tmp_path / "spool")
    assert spool.append(b"x")
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    spool.close()


def test_a_link_in_place_of_the_folder_is_not_followed(tmp_path, caplog):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "spool").symlink_to(tmp_path / "elsewhere")
    spool = Spool(tmp_path / "spool")
    assert not spool.append(b"x")
    assert names(tmp_path / "elsewhere") == []
    assert "is a link or no folder" in caplog.text


def test_a_volume_of_another_user_is_used_through_a_folder_of_our_own(tmp_path, monkeypatch):
    volume = tmp_path / "volume"
    volume.mkdir()
    assert place(volume) == volume
    monkeypatch.setattr(os, "geteuid", lambda: volume.stat().st_uid + 1)
    assert place(volume) == volume / f"uid-{os.geteuid()}"
    monkeypatch.undo()
    if os.geteuid() == 0:  # giving it away for real takes root
        volume.chmod(0o777)
        os.chown(volume, 12345, 12345)
        spool = Spool(volume)
        assert spool.append(b"x")
        assert stat.S_IMODE((volume / "uid-0").stat().st_mode) == 0o700
        spool.close()
        assert drain(Spool(volume)) == [b"x"]


def test_a_folder_that_another_user_closed_is_left_to_them(tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != folder)
    assert place(folder) == tmp_path / f"shop.uid-{os.geteuid()}"


def test_another_user_s_folder_is_not_used(tmp_path, monkeypatch):
    user = os.geteuid() + 1
    (tmp_path / f"uid-{user}").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(PermissionError, match=f"belongs to user {user - 1}"):
        prepare(tmp_path)


def test_another_user_s_file_is_not_delivered_with_our_credentials(spool, monkeypatch):
    spool.append(b"forged")
    spool.close()
    forged = next(spool.folder.glob("*.spool"))
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert Segment.take(forged) is None
    monkeypatch.undo()
    assert drain(Spool(spool.folder)) == [b"forged"]


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "os._exit(3)", "os.abort()"])
def test_a_record_survives_its_process(child, spool, death):
    process = child(
        f"s = Spool(folder)\nfor n in range(100): assert s.append(b'r%d' % n)\n{death}", spool.folder
    )
    process.process.wait()
    assert drain(spool) == [b"r%d" % number for number in range(100)]
    assert names(spool.folder) == []


def test_a_process_killed_at_any_moment_leaves_every_record_that_it_was_told_is_kept(child, spool):
    for _ in range(5):
        process = child(
            """
            s = Spool(folder, segment_bytes=20_000)
            for n in range(10**9):
                assert s.append(b"%d " % n * 200)
                os.write(1, b"%d\\n" % n)
            """,
            spool.folder,
        )
        for _ in range(200):
            told = int(process.read())
        process.kill()
        told = max([told, *map(int, process.process.stdout.read().split()[:-1])])
        found = {int(record.split()[0]) for record in drain(spool)}
        assert set(range(told + 1)) <= found <= set(range(told + 3))
        assert spool.counts().torn <= 1


def test_a_live_process_s_segments_are_left_alone(child, spool):
    process = child("s = Spool(folder); s.append(b'mine'); print('ready', flush=True); input()", spool.folder)
    process.read()
    assert spool.left_over() is None
    process.kill()
    assert drain(spool) == [b"mine"]


def test_two_processes_that_race_for_left_over_segments_take_each_once(child, spool):
    writers = [
        child(f"s = Spool(folder)\nfor n in range(20): s.append(b'{name}%d' % n)\nos._exit(0)", spool.folder)
        for name in "abcdef"
    ]
    for writer in writers:
        writer.process.wait()
    code = """
    s = Spool(folder); print("ready", flush=True); input()
    while (segment := s.left_over()) is not None:
        batch = segment.read(512, 10**6)
        print(b" ".join(batch.payloads).decode(), flush=True)
        s.acknowledge(segment, batch.end, 0)
    """
    takers = [child(code, spool.folder) for _ in range(3)]
    for taker in takers:
        taker.read()
    for taker in takers:
        taker.process.stdin.write("\n")
        taker.process.stdin.flush()
    found = " ".join(taker.finish() for taker in takers).split()
    assert sorted(found) == sorted(f"{name}{number}" for name in "abcdef" for number in range(20))
    assert names(spool.folder) == []


def test_threads_lose_nothing_to_each_other(tmp_path):
    spool = Spool(tmp_path / "spool", segment_bytes=30_000)

    def work(name: int) -> None:
        for number in range(500):
            assert spool.append(b"%d-%d" % (name, number))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.check()
    spool.close()
    found = drain(Spool(tmp_path / "spool"))
    assert sorted(found) == sorted(b"%d-%d" % (name, number) for name in range(8) for number in range(500))
    for name in range(8):
        mine = [record for record in found if record.startswith(b"%d-" % name)]
        assert mine == [b"%d-%d" % (name, number) for number in range(500)]


def test_a_signal_handler_that_appends_in_the_middle_of_an_append_loses_nothing(child, spool):
    process = child(
        """
        import signal
        s = Spool(folder, segment_bytes=5_000)
        fired = 0
        def handler(*_):
            global fired
            fired += 1
            assert s.append(b"signal %d" % fired)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for n in range(20_000): assert s.append(b"main %d" % n)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(fired, s.counts().deferred)
        """,
        spool.folder,
    )
    fired, _ = map(int, process.finish().split())
    assert fired > 10
    expected = [b"main %d" % n for n in range(20_000)] + [b"signal %d" % n for n in range(1, fired + 1)]
    assert sorted(drain(spool)) == sorted(expected)


def test_a_thread_that_hangs_in_the_disk_holds_nobody_up_and_its_neighbours_records_are_written_after(spool):
    assert spool.append(b"first")
    with_lock, leave = threading.Event(), threading.Event()

    def hang() -> None:
        with spool._lock:
            with_lock.set()
            leave.wait()

    thread = threading.Thread(target=hang)
    thread.start()
    with_lock.wait()
    began = time.monotonic()
    assert spool.append(b"second")
    assert time.monotonic() - began < 0.5
    leave.set()
    thread.join()
    assert spool.counts().deferred == 1
    spool.check()
    assert drain(spool) == [b"first", b"second"]


def test_a_full_spool_sheds_and_counts_and_takes_again_once_there_is_room(tmp_path, caplog):
    spool = Spool(tmp_path / "spool", max_bytes=100_000)
    kept = [spool.append(b"x" * 1000) for _ in range(150)]
    assert kept.index(False) == kept.count(True) == 98
    assert spool.counts().shed == 52
    assert sum(path.stat().st_size for path in spool.folder.iterdir()) <= 100_000
    assert caplog.text.count("is full") == 1
    assert "OTEL_AUDITSPAN_SPOOL_MAX_BYTES" in caplog.text
    assert len(drain(spool)) == 98
    spool.check()
    assert spool.append(b"x" * 1000)
    assert "are kept in" in caplog.text
    spool.close()


def test_the_bound_covers_what_other_processes_left(tmp_path):
    first = Spool(tmp_path / "spool", max_bytes=100_000)
    while first.append(b"x" * 1000):
        pass
    first.close()
    second = Spool(tmp_path / "spool", max_bytes=100_000)
    second.check()
    assert not second.append(b"x" * 1000)
    second.close()


def test_a_delivered_segment_gives_its_room_back_while_the_process_lives(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=8_000_000)
    for _ in range(10):
        for _ in range(1200):
            assert spool.append(b"x" * 1000)
        assert len(drain(spool)) == 1200
    assert sum(path.stat().st_size for path in spool.folder.iterdir()) < 2_000_000
    spool.close()


def test_what_was_set_aside_takes_no_room_from_what_can_be_delivered(tmp_path):
    spool = Spool(tmp_path / "spool", max_bytes=20_000)
    for _ in range(19):
        assert spool.append(bytes(900))
        while not (batch := (segment := spool.next_segment()).read(1, 1 << 20)).payloads:
            spool.done(segment)
        spool.set_aside(segment, batch.payloads[0])
        spool.acknowledge(segment, batch.end, 1)
    spool.check()
    assert all(spool.append(bytes(900)) for _ in range(14))  # beside the rest of the live segment
    spool.close()


@pytest.mark.parametrize("size", [0, MAX_PAYLOAD_BYTES + 1], ids=["empty", "too large"])
def test_a_payload_of_impossible_size_is_refused_counted_and_said(spool, size, caplog):
    assert not spool.append(bytes(size))
    assert spool.counts().oversize == 1
    assert f"a record of {size} bytes is not kept" in caplog.text
    assert spool.append(bytes(MAX_PAYLOAD_BYTES))


def test_a_folder_that_can_t_be_made_costs_records_and_nothing_else_and_is_tried_again(tmp_path, caplog):
    (tmp_path / "in the way").write_text("")
    now = [0.0]
    spool = Spool(tmp_path / "in the way" / "spool", clock=lambda: now[0])
    assert [spool.append(b"x") for _ in range(1000)] == [False] * 1000
    assert spool.counts().failed == 1000
    assert caplog.text.count("can't keep audit records") == 1
    assert "OTEL_AUDITSPAN_SPOOL_DIR" in caplog.text
    (tmp_path / "in the way").unlink()
    assert not spool.append(b"x")  # not every record asks the disk
    now[0] = 1.5
    assert spool.append(b"y")
    assert drain(spool) == [b"y"]
    spool.close()


def test_a_disk_that_fills_up_in_mid_record_leaves_no_torn_one_behind_the_others(child, spool):
    process = child(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        s = Spool(folder)
        kept = [s.append(b"%04d" % n + b"x" * 996) for n in range(20)]
        print(sum(kept), s.counts().failed)
        os._exit(0)
        """,
        spool.folder,
    )
    assert process.finish().split() == ["9", "11"]
    assert [record[:4] for record in drain(spool)] == [b"%04d" % number for number in range(9)]
    assert spool.counts().torn == 0


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_records_outlive_the_removal_of_their_file_as_long_as_their_process_lives(spool, what, caplog):
    assert spool.append(b"before")
    for path in spool.folder.iterdir():
        path.unlink()
    if what == "the folder":
        spool.folder.rmdir()
    assert spool.append(b"between")
    spool.check()
    assert "somebody removed" in caplog.text
    assert spool.append(b"after")
    assert spool.waiting() == 3
    assert spool.counts().appended == 3
    spool.close()
    assert drain(Spool(spool.folder)) == [b"before", b"between", b"after"]


def test_a_rescue_that_finds_no_room_yet_is_tried_again(spool, tmp_path):
    assert spool.append(b"before")
    for path in spool.folder.iterdir():
        path.unlink()
    spool.folder.rmdir()
    spool.folder.write_text("in the way")
    spool.check()
    spool.folder.unlink()
    spool._next_try = 0.0
    spool.check()
    assert drain(spool) == [b"before"]


def test_foreign_files_are_left_alone(spool):
    spool.append(b"x")
    (spool.folder / "notes.txt").write_text("hands off")
    (spool.folder / "folder.spool").mkdir()
    (spool.folder / "link.spool").symlink_to("/etc/passwd")
    os.mkfifo(spool.folder / "pipe.spool")
    assert drain(spool) == [b"x"]
    assert drain(spool) == []
    assert {"notes.txt", "folder.spool", "link.spool", "pipe.spool"} <= set(names(spool.folder))


def test_what_a_process_left_in_mid_step_is_swept_after_a_while_and_not_before(spool):
    spool.append(b"x")
    for name in ("gone.new", "gone.ack", "gone.ack-new"):
        (spool.folder / name).write_text("")
        os.utime(spool.folder / name, (1, 1))
        (spool.folder / f"fresh-{name}").write_text("")
    spool.check()
    assert [name for name in names(spool.folder) if "gone" in name] == [
        "fresh-gone.ack",
        "fresh-gone.ack-new",
        "fresh-gone.new",
    ]


def test_a_forked_child_has_a_stream_and_a_file_of_its_own(child, spool):
    process = child(
        """
        s = Spool(folder)
        s.append(b"parent before")
        before = s.stream_id
        pid = os.fork()
        if pid == 0:
            assert s.stream_id != before and s.waiting() == 0 and s.counts().appended == 0
            s.append(b"child")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert s.stream_id == before
        s.append(b"parent after")
        print(len(list(folder.glob("*.spool"))))
        """,
        spool.folder,
    )
    assert process.finish() == "2\n"
    assert sorted(drain(spool)) == [b"child", b"parent after", b"parent before"]


@pytest.mark.parametrize(
    "birth",
    [
        "pid = os.fork() or (time.sleep(60), os._exit(0))",
        "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False)",
        "import subprocess; subprocess.Popen(['sleep', '60'], preexec_fn=lambda: None)",
        "import multiprocessing as m; m.get_context('fork').Process(target=time.sleep, args=(60,)).start()",
    ],
    ids=["os.fork", "subprocess", "subprocess with a hook", "multiprocessing"],
)
def test_a_child_that_lives_on_does_not_hold_its_dead_parent_s_records_back(child, spool, birth):
    process = child(
        f"s = Spool(folder); s.append(b'x')\n{birth}\nprint('ready', flush=True); time.sleep(60)",
        spool.folder,
    )
    process.read()
    assert spool.left_over() is None
    process.kill()
    found: list[bytes] = []
    wait_until(lambda: found.extend(drain(spool)) or found)  # the child may only just have been born
    assert found == [b"x"]


def test_a_fork_in_the_middle_of_other_threads_appends_breaks_neither_process(child, spool):
    process = child(
        """
        s = Spool(folder, segment_bytes=50_000)
        stop = False
        counts = [0] * 4
        def work(name):
            while not stop:
                assert s.append(b"p%d-%d" % (name, counts[name]))
                counts[name] += 1
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        [t.start() for t in threads]
        for n in range(40):
            pid = os.fork()
            if pid == 0:
                ok = all(s.append(b"c%d-%d" % (n, k)) for k in range(3))
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
        stop = True
        [t.join() for t in threads]
        s.check()
        print(*counts)
        """,
        spool.folder,
    )
    counts = list(map(int, process.finish().split()))
    expected = [b"c%d-%d" % (n, k) for n in range(40) for k in range(3)]
    expected += [b"p%d-%d" % (name, number) for name, count in enumerate(counts) for number in range(count)]
    assert sorted(drain(spool)) == sorted(expected)


def test_a_child_forked_without_python_s_hooks_still_writes_its_own_file(spool, monkeypatch):
    spool.append(b"parent")
    before = spool.stream_id
    monkeypatch.setattr(spool, "_pid", -1)  # what such a child finds
    spool.append(b"child")
    assert spool.stream_id != before
    assert len(list(spool.folder.glob("*.spool"))) == 2


def test_sync_waits_for_the_disk_and_threads_share_the_wait(tmp_path, monkeypatch):
    synced: list[int] = []
    first, go = threading.Event(), threading.Event()

    def fdatasync(fd: int) -> None:
        first.set()
        go.wait()
        synced.append(os.fstat(fd).st_size)

    spool = Spool(tmp_path / "spool", sync=True)
    go.set()
    spool.append(b"warm")
    monkeypatch.setattr(os, "fdatasync", fdatasync)
    go.clear()
    first.clear()
    threads = [threading.Thread(target=spool.append, args=(b"x" * 100,)) for _ in range(8)]
    threads[0].start()
    first.wait()
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: spool.counts().appended == 9)
    assert all(thread.is_alive() for thread in threads)  # nobody is told before the disk has it
    go.set()
    for thread in threads:
        thread.join()
    assert len(synced) == 2
    assert synced[-1] == spool.next_segment().size
    assert spool.counts().unsynced == 0
    spool.close()


def test_an_append_survives_a_reader_s_segment_being_taken_twice(spool):
    spool.append(b"x")
    spool.close()
    path = next(spool.folder.glob("*.spool"))
    first = Segment.take(path)
    assert Segment.take(path) is None
    first.acknowledge(first.read(1, 99).end)
    first.delete()
    assert Segment.take(path) is None
