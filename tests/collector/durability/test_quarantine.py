"""The quarantine: a range is in the spool, in a file, or in ClickHouse at every moment, whatever fails on the way."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.errors import CommandRefused, ShuttingDown, SpoolDamaged, StoreUnavailable
from auditspan_collector.pipeline import control, quarantine
from auditspan_collector.pipeline.insert import insert_missing
from auditspan_collector.record import IndexRange
from collector.durability.scripted_store import Store, serve
from collector.durability.sealing import make_records, one_request, rows_of

RANGE = IndexRange(0, 2)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def client(store):
    with serve(store) as port:
        client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}", insert_timeout_s=5))
        yield client
        client.close()


@pytest.fixture
def folder(spool_config):
    return Path(spool_config.path)


@pytest.fixture
def refused(spool):
    """A spool with the range 0-2 in flight and 3-4 behind it."""
    spool.commit(one_request(make_records(0, 3)))
    spool.begin_insert(spool.read(10, 1 << 20))
    spool.commit(one_request(make_records(3, 2)))
    return spool


def test_the_file_holds_the_very_rows_and_says_what_it_is(refused, folder):
    before = refused.read(1, 1)
    (moved,) = quarantine.set_aside(refused, folder, RANGE, "Code: 53. TYPE_MISMATCH")
    path = folder / "quarantine" / moved.name
    assert moved.name == f"{refused.stream.rpartition('/')[2]}-0-2.batch"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    header = json.loads(path.read_bytes().splitlines()[0])
    assert (header["stream"], header["first"], header["last"]) == (refused.stream, 0, 2)
    assert header["reason"] == "Code: 53. TYPE_MISMATCH"
    assert quarantine.read(path)[0] == before
    assert refused.released_index == 3
    assert refused.in_flight() is None
    assert [index for index, _ in rows_of(refused.read(10, 1 << 20))] == [3, 4]
    assert quarantine.listed(folder) == [moved]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (IndexRange(0, 1), r"begin with the range in flight \(0-2 is\)"),
        (IndexRange(3, 4), r"begin with the range in flight \(0-2 is\)"),
        (IndexRange(0, 3), "end where a commit does"),
        (IndexRange(0, 5), "end where a commit does"),
    ],
    ids=["part of it", "not it", "half a commit more", "more than there is"],
)
def test_a_range_that_is_not_the_one_in_flight_and_whole_commits_behind_it_is_refused(
    refused, folder, wanted, why
):
    with pytest.raises(CommandRefused, match=f"range {wanted.first}-{wanted.last} does not {why}"):
        quarantine.set_aside(refused, folder, wanted, "")
    assert refused.backlog().records == 5
    assert quarantine.listed(folder) == []


def test_of_a_spool_that_is_itself_at_fault_nothing_is_set_aside(refused, folder):
    # An old copy: ClickHouse has other records under these indexes, so restoring would find nothing missing.
    with pytest.raises(CommandRefused, match=r"the spool is at fault.*its folder is an old copy"):
        control._moved(refused, folder, RANGE, SpoolDamaged("spool: its folder is an old copy"))
    assert quarantine.listed(folder) == []


def test_without_a_range_in_flight_nothing_is_set_aside(spool, folder):
    spool.commit(one_request(make_records(0, 3)))
    with pytest.raises(CommandRefused, match=r"\(none is\)"):
        quarantine.set_aside(spool, folder, RANGE, "")


def test_what_lies_behind_goes_to_files_as_large_as_inserts(refused, folder, monkeypatch):
    monkeypatch.setattr(quarantine, "FILE_RECORDS", 5)
    for number in range(30):
        refused.commit(one_request(make_records(5 + number * 2, 2)))
    moved = quarantine.set_aside(refused, folder, IndexRange(0, 62), "")
    assert [(each.range.first, each.range.last) for each in moved][:3] == [(0, 2), (3, 6), (7, 10)]
    assert moved[-1].range.last == 62
    assert sum(each.records for each in moved) == 63
    assert sorted(quarantine.listed(folder), key=lambda each: each.range.first) == list(moved)
    assert refused.released_index == 63
    assert [index for index, _ in rows_of(refused.read(10, 1 << 20))] == [63, 64]


def test_what_could_not_be_moved_any_more_is_still_in_the_spool(refused, folder, monkeypatch):
    (folder / "quarantine").mkdir()
    (folder / "quarantine" / f"{refused.stream.rpartition('/')[2]}-3-4.draft").mkdir()
    with pytest.raises(
        CommandRefused, match=r"-3-4\.batch can't be written .*, but \S+-0-2\.batch before it"
    ):
        quarantine.set_aside(refused, folder, IndexRange(0, 4), "")
    assert [each.range for each in quarantine.listed(folder)] == [RANGE]
    assert [index for index, _ in rows_of(refused.read(10, 1 << 20))] == [3, 4]


def test_a_file_that_cannot_be_written_moves_nothing(refused, folder):
    (folder / "quarantine").write_text("in the way")
    with pytest.raises(CommandRefused, match="nothing was moved"):
        quarantine.set_aside(refused, folder, RANGE, "")
    assert refused.read(1, 1).last_index == 2


def test_a_death_before_the_release_leaves_it_in_both_and_storing_it_twice_is_no_harm(
    refused, open_spool, folder, store, client
):
    release = refused.release

    def die(last):
        refused.close()
        release(last)

    refused.release = die
    with pytest.raises(ShuttingDown):
        quarantine.set_aside(refused, folder, RANGE, "")
    (moved,) = quarantine.listed(folder)
    again = open_spool()
    batch = again.read(1, 1)
    assert quarantine.read(folder / "quarantine" / moved.name)[0] == batch
    insert_missing(client, batch)  # the drain's next try, which works this time
    again.release(batch.last_index)
    assert quarantine.restore(client, folder, moved.name) == 0
    assert store.indexes(batch.stream) == [0, 1, 2]
    assert store.duplicated == []
    assert quarantine.listed(folder) == []


def test_restoring_stores_what_is_missing_only(refused, folder, store, client):
    (moved,) = quarantine.set_aside(refused, folder, RANGE, "")
    store.rows[refused.stream, 1] = b"there already"
    assert quarantine.restore(client, folder, moved.name) == 2
    assert store.indexes(refused.stream) == [0, 1, 2]
    assert store.duplicated == []


def test_a_restore_that_fails_keeps_the_file(refused, folder, store, client):
    (moved,) = quarantine.set_aside(refused, folder, RANGE, "")
    store.faults += ["503"] * 3
    with pytest.raises(StoreUnavailable):
        quarantine.restore(client, folder, moved.name)
    assert quarantine.listed(folder) == [moved]
    store.faults.clear()
    assert quarantine.restore(client, folder, moved.name) == 3


@pytest.mark.parametrize("behind", [0, -1], ids=["start", "end"])
def test_a_damaged_file_is_named_and_kept(refused, folder, store, client, behind):
    (moved,) = quarantine.set_aside(refused, folder, RANGE, "")
    path = folder / "quarantine" / moved.name
    content = bytearray(path.read_bytes())
    content[content.index(b"\n") + 1 if behind == 0 else behind] ^= 1
    path.write_bytes(content)
    with pytest.raises(SpoolDamaged, match=moved.name):
        quarantine.restore(client, folder, moved.name)
    assert path.read_bytes() == content
    assert store.inserts == []
