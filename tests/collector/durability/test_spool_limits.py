"""A full spool, a full disk, a damaged file: refused or said, never lost in silence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
import msgspec
import pytest
from auditspan_collector.errors import ConfigError, SpoolDamaged, SpoolFull
from auditspan_collector.spool import Config, Spool, check
from auditspan_collector.spool.ballast import PIECE_BYTES, Ballast
from auditspan_collector.spool.config import BALLAST_BYTES, BALLAST_FILE, file_system
from collector.durability.sealing import (
    CHILD_DEADLINE_S,
    disk_bytes,
    empty,
    make_leaf,
    make_leaves,
    one_request,
)

TESTS = Path(__file__).parents[2]


def fill(spool, first, size=60_000):
    """Commit until the spool is full; the next record's number."""
    while True:
        try:
            spool.commit(one_request(make_leaves(first, 5, size=size)))
        except SpoolFull:
            return first
        first += 5


# Full


def test_a_full_spool_refuses_and_keeps_nothing_of_what_it_refused(spool):
    filled = fill(spool, 0)
    before = spool.backlog()
    with pytest.raises(SpoolFull, match=r"full.*raise spool\.max_bytes") as caught:
        spool.commit(one_request(make_leaves(filled, 5, size=60_000)))
    assert caught.value.retryable
    assert caught.value.retry_after_s > 0
    assert (spool.backlog(), spool.next_index) == (before, filled)


def test_what_was_refused_is_not_remembered_as_seen(spool):
    filled = fill(spool, 0)
    empty(spool)
    assert spool.commit(one_request(make_leaves(filled, 5))).indexes == tuple(range(filled, filled + 5))


def test_a_full_spool_takes_new_records_once_some_are_released(spool):
    filled = fill(spool, 0)
    spool.release(spool.read(100, 1 << 30).last_index)
    assert fill(spool, filled) > filled


def test_some_disk_is_kept_back_given_up_piece_by_piece_and_taken_again(tmp_path):
    kept = tmp_path / BALLAST_FILE
    ballast = Ballast(tmp_path)
    assert not ballast.give_up_a_piece()
    ballast.make()
    assert ballast.whole
    assert kept.stat().st_blocks * 512 >= BALLAST_BYTES
    sizes = []
    while ballast.give_up_a_piece():
        sizes.append(kept.stat().st_size)
    assert sizes == [BALLAST_BYTES - n * PIECE_BYTES for n in (1, 2, 3, 4)]
    assert not ballast.whole
    ballast.make()
    assert (ballast.whole, kept.stat().st_size) == (True, BALLAST_BYTES)


def test_a_spool_takes_it_when_it_is_opened_and_again_when_it_releases(spool, spool_config):
    kept = Path(spool_config.path) / BALLAST_FILE
    assert kept.stat().st_size == BALLAST_BYTES
    spool._environment._ballast.give_up_a_piece()
    spool.commit(one_request(make_leaves(0, 5)))
    assert kept.stat().st_size < BALLAST_BYTES
    empty(spool)
    assert kept.stat().st_size == BALLAST_BYTES


def test_the_folder_never_grows_beyond_its_limit_however_often_it_is_filled(spool, spool_config, tmp_path):
    first = 0
    out = []
    for size in (400_000, 90_000, 900_000, 150_000):
        first = fill(spool, first, size)
        assert disk_bytes(tmp_path / "spool") <= spool_config.max_bytes
        out += [index for index, _ in empty(spool)]
    assert out == list(range(first))


def test_releasing_works_when_lmdb_has_no_page_left(open_spool, spool_config, monkeypatch):
    # Without the reserve, batches fill the map to its last page.
    monkeypatch.setattr(Config, "capacity_bytes", property(lambda self: self.max_bytes * 2))
    spool = open_spool()
    filled = fill(spool, 0)
    assert disk_bytes(Path(spool_config.path)) > spool_config.max_bytes - (8 << 20)
    assert [index for index, _ in empty(spool)] == list(range(filled))
    assert fill(spool, filled) > filled


def test_a_map_whose_only_free_pages_were_freed_last_takes_records_again(open_spool, monkeypatch):
    monkeypatch.setattr(Config, "capacity_bytes", property(lambda self: self.max_bytes * 2))
    spool = open_spool()
    half = 35 << 20
    for content in (b"a", b"b"):
        spool.commit(one_request([make_leaf(content * half)]))
        spool.release(spool.read(1, 1).last_index)
    assert spool.commit(one_request([make_leaf(b"c" * half)])).indexes == (2,)


def test_a_spool_that_was_filled_under_a_larger_limit_empties_under_a_smaller_one(open_spool, spool_config):
    larger = open_spool(msgspec.structs.replace(spool_config, max_bytes=128 << 20))
    filled = fill(larger, 0)
    larger.close()
    spool = open_spool()
    with pytest.raises(SpoolFull):
        spool.commit(one_request(make_leaves(filled, 1)))
    assert len(empty(spool)) == filled
    assert spool.commit(one_request(make_leaves(filled, 1))).indexes == (filled,)


def test_a_record_larger_than_the_spool_is_refused(spool, spool_config):
    with pytest.raises(SpoolFull):
        spool.commit(one_request([make_leaf(bytes(spool_config.max_bytes))]))
    assert spool.commit(one_request(make_leaves(0, 1))).indexes == (0,)


def test_a_full_disk_refuses_and_leaves_the_spool_usable(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "collector.durability.enospc_child", str(tmp_path / "spool")],
        capture_output=True,
        text=True,
        timeout=CHILD_DEADLINE_S,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["filled"] > 500
    assert seen["again"] == seen["filled"], "refused again, nothing kept"
    assert "can't be written" in seen["refusal"]
    assert "free disk space" in seen["refusal"]
    assert seen["before"] == seen["filled"]
    assert seen["rows_in_order"]
    assert seen["refilled"] > seen["filled"]
    assert seen["again_refilled"] > seen["refilled"], "all of it was free"


# Damage


def flip(path: Path, needle: bytes) -> None:
    """Flip one bit in the first place where *needle* stands."""
    data = path.read_bytes()
    at = data.rindex(needle)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


def test_a_flipped_bit_in_a_record_is_found_and_named(open_spool, tmp_path):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 3)))
    first.commit(one_request([make_leaf(b"the record that rots")]))
    first.close()
    flip(tmp_path / "spool" / "data.mdb", b"the record that rots")
    spool = open_spool()
    assert spool.read(10, 1 << 20).count == 3, "what lies before it can still be sent"
    spool.release(2)
    with pytest.raises(SpoolDamaged, match=r"batch at index 3.*checksum.*Check the disk"):
        spool.read(10, 1 << 20)


@pytest.mark.parametrize(
    ("needle", "named"),
    [
        (lambda spool: spool.stream.encode(), "ledger"),
        (lambda spool: spool._position.released.to_bytes(8, "big") + spool._position.batch_bytes.to_bytes(8, "big"), "position"),
        (lambda _: make_leaf(b"record 1 ").identity, "remembered records"),
    ],
    ids=["ledger", "position", "seen"],
)  # fmt: skip
def test_a_flipped_bit_in_the_state_is_found_at_the_start(open_spool, tmp_path, needle, named):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 3)))
    empty(first)
    pattern = needle(first)
    first.close()
    path = tmp_path / "spool" / "data.mdb"
    data = path.read_bytes()
    # Every place: LMDB leaves old copies of the page behind.
    with path.open("r+b") as file:
        at = data.find(pattern)
        while at >= 0:
            file.seek(at)
            file.write(bytes([data[at] ^ 1]))
            at = data.find(pattern, at + 1)
    with pytest.raises(SpoolDamaged, match=named):
        open_spool()


def test_a_value_under_another_index_is_found(open_spool, spool_config):
    first = open_spool()
    for n in range(3):
        first.commit(one_request([make_leaf(n)]))
    first.close()
    env = lmdb.open(spool_config.path, max_dbs=3, map_size=64 << 20)
    with env.begin(write=True) as txn:
        batches = env.open_db(b"batches", txn=txn)
        value = txn.get((0).to_bytes(8, "big"), db=batches)
        txn.put((1).to_bytes(8, "big"), value, db=batches)
    env.close()
    with pytest.raises(SpoolDamaged, match="batch at index 1"):
        empty(open_spool())


def test_a_missing_batch_is_found(open_spool, spool_config):
    first = open_spool()
    for n in range(3):
        first.commit(one_request([make_leaf(n)]))
    first.close()
    env = lmdb.open(spool_config.path, max_dbs=3, map_size=64 << 20)
    with env.begin(write=True) as txn:
        txn.delete((1).to_bytes(8, "big"), db=env.open_db(b"batches", txn=txn))
    env.close()
    with pytest.raises(SpoolDamaged, match="index 1 of test/collector"):
        empty(open_spool())


@pytest.mark.parametrize("keep", [0, 100, 50_000], ids=["nothing", "no page", "a part"])
def test_a_cut_file_is_said_to_be_damaged_and_does_not_kill_the_process(open_spool, spool_config, keep):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 100, size=50_000)))
    first.close()
    os.truncate(Path(spool_config.path) / "data.mdb", keep)
    if keep == 0:
        # Nothing is left that could be told from a new spool; its new stream keeps the ledgers apart.
        assert open_spool().stream != first.stream
    else:
        with pytest.raises(SpoolDamaged):
            open_spool()


def test_a_file_of_something_else_is_not_overwritten(open_spool, spool_config):
    folder = Path(spool_config.path)
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"not LMDB" * 2000)
    with pytest.raises(SpoolDamaged):
        open_spool()
    assert (folder / "data.mdb").read_bytes().startswith(b"not LMDB")


def test_a_later_format_is_not_touched(open_spool, spool_config, monkeypatch):
    monkeypatch.setattr("auditspan_collector.spool.queue.FORMAT", b"later")
    open_spool().close()
    monkeypatch.undo()
    with pytest.raises(SpoolDamaged, match="the format"):
        open_spool()


def test_a_folder_removed_while_in_use_is_noticed_before_anything_is_acknowledged(spool, spool_config):
    spool.commit(one_request(make_leaves(0, 1)))
    shutil.rmtree(spool_config.path)
    with pytest.raises(SpoolDamaged, match="removed or replaced while in use"):
        spool.commit(one_request(make_leaves(1, 1)))


# Settings


def test_the_defaults_are_possible():
    assert Config().capacity_bytes > Config().max_bytes * 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_bytes": 1 << 20}, r"spool\.max_bytes: 1048576 is too small; at least 67108864"),
        ({"max_bytes": 900 << 40}, r"spool\.max_bytes: 989560464998400 is too large; at most 17592186044416 \(16 TiB\)"),
        ({"dedup_window_records": -1}, r"spool\.dedup_window_records: -1; 0 \(off\) or more"),
        ({"dedup_window_records": 5_000_000}, r"spool\.dedup_window_records: 5000000 leaves too little.*at most \d+"),
        ({"path": "spool"}, r"spool\.path: 'spool' is relative"),
        ({"path": "/dev/null/spool"}, r"spool\.path: /dev/null is not a folder"),
        ({"path": "/dev/shm/spool", "allow_memory_filesystem": False}, r"spool\.path: /dev/shm/spool is memory"),
    ],
    ids=["too small", "too large", "negative", "window too large", "relative", "a file", "memory"],
)  # fmt: skip
def test_impossible_settings_are_refused_with_path_value_and_what_is_allowed(spool_config, change, message):
    with pytest.raises(ConfigError, match=message):
        check(msgspec.structs.replace(spool_config, **change))


@pytest.mark.parametrize("kind", ["proc", "sysfs", "cgroup2"])
def test_a_file_system_that_keeps_no_files_is_refused(spool_config, monkeypatch, kind):
    monkeypatch.setattr("auditspan_collector.spool.config.file_system", lambda _: kind)
    with pytest.raises(
        ConfigError, match=rf"spool\.path: .* is on {kind}, which keeps no files\. Choose a folder"
    ):
        check(spool_config)


def test_the_most_that_is_allowed_can_be_opened(spool_config):
    Spool.open(msgspec.structs.replace(spool_config, max_bytes=16 << 40), "default", "c").close()


def test_the_most_that_is_named_for_the_window_is_allowed(spool_config):
    with pytest.raises(ConfigError) as caught:
        check(msgspec.structs.replace(spool_config, dedup_window_records=5_000_000))
    most = int(str(caught.value).split("at most ")[1].split(",")[0])
    check(msgspec.structs.replace(spool_config, dedup_window_records=most))
    with pytest.raises(ConfigError):
        check(msgspec.structs.replace(spool_config, dedup_window_records=most + 1))


def test_checking_changes_nothing(spool_config):
    check(spool_config)
    assert not Path(spool_config.path).exists()


def test_a_spool_in_use_passes_the_check(spool, spool_config):
    assert check(spool_config) == ()


def test_a_folder_with_other_files_is_refused(spool_config, tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "letters.txt").touch()
    with pytest.raises(ConfigError, match=r"holds other files \(letters\.txt\)"):
        check(spool_config)
    with pytest.raises(ConfigError):
        Spool.open(spool_config, "test", "collector")


def test_less_free_disk_than_the_limit_is_a_warning(spool_config):
    (warning,) = check(msgspec.structs.replace(spool_config, max_bytes=1 << 44))
    assert "has only" in warning


def test_a_folder_that_may_not_be_written_is_refused():
    code = (
        "import os, sys\n"
        "from auditspan_collector.spool import Config, check\n"
        "from auditspan_collector.errors import ConfigError\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: check(Config(path=sys.argv[1], allow_memory_filesystem=True))\n"
        "except ConfigError as error: print(error)\n"
    )
    # Not below tmp_path, which another user may not enter.
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)
        folder = Path(reachable) / "closed"
        folder.mkdir(mode=0o555)
        result = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            capture_output=True,
            text=True,
            timeout=CHILD_DEADLINE_S,
            check=True,
        )
    assert "is not writable for user id" in result.stdout


@pytest.mark.parametrize("closed", ["owner.lock", "data.mdb"])
def test_files_of_another_user_are_refused_with_what_to_do(closed):
    code = (
        "import os, sys\n"
        "from auditspan_collector.spool import Config, Spool\n"
        "from auditspan_collector.errors import ConfigError\n"
        # Another user may not be able to read what is imported only now.
        "Spool.open(Config(path=sys.argv[1] + '-0', allow_memory_filesystem=True), 'test', 'collector').close()\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "config = Config(path=sys.argv[1], allow_memory_filesystem=True)\n"
        "Spool.open(config, 'test', 'collector').close()\n"
        "os.chmod(os.path.join(sys.argv[1], sys.argv[2]), 0)\n"
        "try: Spool.open(config, 'test', 'collector')\n"
        "except ConfigError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o777)
        result = subprocess.run(
            [sys.executable, "-c", code, f"{reachable}/spool", closed],
            capture_output=True,
            text=True,
            timeout=CHILD_DEADLINE_S,
            check=True,
        )
    assert result.stdout.startswith(f"spool.path: {reachable}/spool")
    assert "must belong to user id" in result.stdout


def test_file_systems_are_told_by_the_deepest_mount():
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(Path("/dev/shm")) == "tmpfs"
    assert file_system(Path("/")) not in ("", "proc", "tmpfs")
