"""Each process leaves its counters where somebody else can read them, and nothing else of itself."""

from __future__ import annotations

import os
import stat

from auditspan.shipper import DeliveryCounts, Shipper, Target, notes
from auditspan.spool import Spool
from instrumentation.delivery.otlp_payloads import payload, wait_until


def test_what_a_process_counted_is_there_when_it_has_ended(tmp_path, grpc_peer):
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(spool, Target(endpoint=grpc_peer.endpoint))
    try:
        shipper.start()
        spool.append(payload("one"))
        spool.append(b"x" * (4 << 20))
        assert shipper.flush(20)
    finally:
        shipper.stop()
    (noted,) = notes.read(spool.folder)
    assert (noted.stream_id, noted.pid, noted.running) == (spool.stream_id, os.getpid(), True)
    assert (noted.counts.acknowledged, noted.counts.oversize) == (1, 1)
    (path,) = spool.folder.glob("*.counters*")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_process_that_is_killed_has_left_them_too(tmp_path, child, grpc_peer):
    code = """
        spool = Spool(folder)
        Shipper(spool, target()).start()
        spool.append(payload("one"))
        print("ready", flush=True)
        sys.stdin.read()
    """
    process = child(code, tmp_path, grpc_peer.endpoint, "grpc")
    process.read()
    wait_until(lambda: [noted for noted in notes.read(tmp_path) if noted.counts.acknowledged])
    process.kill()
    (noted,) = notes.read(tmp_path)
    assert (noted.pid, noted.counts.appended) == (process.process.pid, 1)


def test_a_process_without_records_makes_no_folder(tmp_path, grpc_peer):
    spool = Spool(tmp_path / "spool")
    shipper = Shipper(spool, Target(endpoint=grpc_peer.endpoint))
    shipper.start()
    shipper.stop()
    assert not spool.folder.exists()


def test_counters_of_processes_that_ended_are_swept_after_an_hour(tmp_path):
    notes.write(tmp_path, "abc", DeliveryCounts(appended=3))
    notes.sweep(tmp_path)
    assert [noted.counts.appended for noted in notes.read(tmp_path)] == [3]
    os.utime(tmp_path / "abc.counters", (1, 1))
    assert notes.read(tmp_path)[0].running is False
    notes.sweep(tmp_path)
    assert notes.read(tmp_path) == []
    (tmp_path / "x.counters").write_text("no JSON")
    assert notes.read(tmp_path) == []
