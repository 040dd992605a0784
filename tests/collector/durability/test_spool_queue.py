"""The spool as a queue: what goes in comes out once, in order, under the same ranges, over any restart."""

from __future__ import annotations

import msgspec
import pytest
from auditspan_collector.errors import ConfigError, ShuttingDown, SpoolFull, SpoolInUse
from auditspan_collector.ledger.merkle import Frontier
from auditspan_collector.record import IndexRange
from auditspan_collector.spool import Backlog, Spool
from collector.durability.sealing import empty, make_leaf, make_leaves, one_request, rows_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def test_a_new_spool_is_empty_and_starts_at_index_0(spool):
    assert (spool.next_index, spool.released_index) == (0, 0)
    assert spool.read(10, 1 << 20) is None
    assert spool.backlog() == Backlog(0, 0)
    assert spool.in_flight() is None


def test_the_stream_names_deployment_collector_and_a_drawn_epoch(open_spool):
    assert open_spool(random_bytes=lambda n: bytes(range(n))).stream == "test/collector/0001020304050607"


def test_committed_records_are_read_in_order_with_their_indexes(spool):
    assert spool.commit(one_request(make_leaves(0, 3))).indexes == (0, 1, 2)
    assert spool.commit(one_request(make_leaves(3, 2))).indexes == (3, 4)
    batch = spool.read(10_000, 1 << 20)
    assert list(rows_of(batch)) == [(n, make_leaf(b"record %d " % n).content[:-8]) for n in range(5)]


def test_records_survive_closing(open_spool):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 3)))
    before = first.read(10, 1 << 20)
    first.close()
    again = open_spool()
    assert again.read(10, 1 << 20) == before
    assert again.stream == first.stream
    assert again.commit(one_request(make_leaves(3, 1))).indexes == (3,)


def test_the_root_of_a_range_is_that_of_the_whole_stream_up_to_its_end(spool):
    leaves = make_leaves(0, 7)
    spool.commit(one_request(leaves[:3]))
    spool.commit(one_request(leaves[3:5]))
    spool.commit(one_request(leaves[5:]))
    first = spool.read(5, 1 << 20)
    assert (first.count, first.root) == (
        5,
        Frontier().append(b"".join(leaf.hash for leaf in leaves[:5])).root(),
    )
    spool.release(first.last_index)
    assert spool.read(5, 1 << 20).root == Frontier().append(b"".join(leaf.hash for leaf in leaves)).root()


def test_a_range_is_whole_commits_as_many_as_fit(spool):
    for first in (0, 4, 8):
        spool.commit(one_request(make_leaves(first, 4)))
    assert spool.read(9, 1 << 20).count == 8
    assert spool.read(1, 1 << 20).count == 4, "at least one commit, however small the limit"
    assert spool.read(100, 1).count == 4
    assert spool.read(100, 1 << 20).count == 12


def test_released_records_are_gone_and_the_next_range_follows(spool):
    spool.commit(one_request(make_leaves(0, 4)))
    spool.commit(one_request(make_leaves(4, 4)))
    spool.release(spool.read(4, 1 << 20).last_index)
    assert spool.released_index == 4
    assert spool.read(100, 1 << 20).first_index == 4
    spool.release(7)
    assert spool.read(100, 1 << 20) is None
    assert spool.backlog() == Backlog(0, 0)


@pytest.mark.parametrize("last_index", [2, 7, 8], ids=["within", "behind what was read", "not there"])
def test_only_what_was_read_can_be_released(spool, last_index):
    spool.commit(one_request(make_leaves(0, 4)))
    with pytest.raises(ValueError, match="not the end of the range that was read"):
        spool.release(3)
    spool.commit(one_request(make_leaves(4, 4)))
    assert spool.read(4, 1 << 20).last_index == 3
    with pytest.raises(ValueError, match="not the end of the range that was read"):
        spool.release(last_index)
    assert spool.backlog().records == 8
    assert spool.read(100, 1 << 20).count == 8


def test_the_backlog_is_known_again_after_a_restart(open_spool):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 10, size=5000)))
    first.commit(one_request(make_leaves(10, 5)))
    before = first.backlog()
    assert before.records == 15
    assert before.bytes >= 10 * 5000
    first.close()
    assert open_spool().backlog() == before


def test_a_range_in_flight_stays_as_it_is_until_it_is_released(open_spool):
    first = open_spool(clock_ns=lambda: 77)
    first.commit(one_request(make_leaves(0, 4)))
    batch = first.read(100, 1 << 20)
    in_flight = first.begin_insert(batch)
    assert (in_flight.range, in_flight.root, in_flight.started_unix_ns) == (IndexRange(0, 3), batch.root, 77)
    first.commit(one_request(make_leaves(4, 4)))
    assert first.read(100, 1 << 20) == batch, "what came since does not join it"
    first.close()

    again = open_spool(clock_ns=lambda: 99)
    assert again.in_flight() == in_flight
    assert again.read(1, 1) == batch, "nor do other limits change it"
    assert again.begin_insert(batch).started_unix_ns == 77, "the first try's time"
    again.release(batch.last_index)
    assert again.in_flight() is None
    assert again.read(100, 1 << 20).first_index == 4


def test_only_one_range_is_in_flight(spool):
    spool.commit(one_request(make_leaves(0, 1)))
    spool.commit(one_request(make_leaves(1, 1)))
    spool.begin_insert(spool.read(1, 1 << 20))
    batch = spool.read(1, 1 << 20)
    with pytest.raises(ValueError, match="in flight"):
        spool.begin_insert(type(batch)(batch.stream, 1, 1, batch.rows, batch.root, batch.row_bytes))


def test_listeners_hear_of_commits_that_added_something(spool):
    heard = []
    spool.on_commit(lambda: heard.append(spool.next_index))
    spool.commit(one_request(make_leaves(0, 2)))
    spool.commit(one_request(make_leaves(0, 2)))
    assert heard == [2]


# Duplicates


def test_a_retry_with_another_received_time_is_a_duplicate(spool):
    spool.commit(one_request([make_leaf(1, received=5)]))
    assert spool.commit(one_request([make_leaf(1, received=6), make_leaf(2)])).indexes == (None, 1)
    assert spool.backlog().records == 2


def test_a_record_twice_in_one_commit_is_sealed_once(spool):
    assert spool.commit(one_request([make_leaf(1), make_leaf(2), make_leaf(1)])).indexes == (0, 1, None)


def test_a_commit_of_duplicates_alone_adds_nothing(spool):
    spool.commit(one_request(make_leaves(0, 2)))
    assert spool.commit(one_request(make_leaves(0, 2))).indexes == (None, None)
    assert spool.next_index == 2


def test_duplicates_are_recognised_after_release_and_restart(open_spool):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 50)))
    empty(first)
    first.close()
    assert open_spool().commit(one_request(make_leaves(0, 50))).indexes == (None,) * 50


def test_the_oldest_are_forgotten_when_the_window_is_full(open_spool, spool_config):
    config = msgspec.structs.replace(spool_config, dedup_window_records=10)
    first = open_spool(config)
    for n in range(12):
        first.commit(one_request([make_leaf(n)]))
    assert first.commit(one_request([make_leaf(2)])).indexes == (None,)
    first.close()
    again = open_spool(config)
    assert again.commit(one_request([make_leaf(2)])).indexes == (None,)
    assert again.commit(one_request([make_leaf(0)])).indexes == (12,), "outside the window it is stored again"


@pytest.mark.parametrize("window", [0, 3], ids=["no window", "smaller window"])
def test_a_smaller_window_holds_from_the_next_commit_on(open_spool, spool_config, window):
    first = open_spool()
    for n in range(10):
        first.commit(one_request([make_leaf(n)]))
    first.close()
    again = open_spool(msgspec.structs.replace(spool_config, dedup_window_records=window))
    again.commit(one_request([make_leaf(10)]))
    indexes = again.commit(one_request([make_leaf(0), make_leaf(9)])).indexes
    assert indexes == ((11, None) if window else (11, 12))


@given(
    commits=st.lists(st.lists(st.integers(0, 15), max_size=8), max_size=12),
    release_after=st.sets(st.integers(0, 11)),
    reopen_after=st.sets(st.integers(0, 11), max_size=3),
)
@settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_each_record_comes_out_once_in_order_whatever_happens_between(
    tmp_path_factory, spool_config, commits, release_after, reopen_after
):
    config = msgspec.structs.replace(spool_config, path=str(tmp_path_factory.mktemp("spool")))
    spool = Spool.open(config, "test", "collector")
    expected, seen, out = [], set(), []
    try:
        for step, numbers in enumerate(commits):
            spool.commit(one_request([make_leaf(n, received=step) for n in numbers]))
            for n in numbers:
                if n not in seen:
                    seen.add(n)
                    expected.append(make_leaf(n).content[:-8])
            if step in release_after:
                out += empty(spool, max_rows=5)
            if step in reopen_after:
                spool.close()
                spool = Spool.open(config, "test", "collector")
        out += empty(spool)
        assert out == list(enumerate(expected))
        assert spool.backlog() == Backlog(0, 0)
    finally:
        spool.close()


# The folder


def test_a_second_opener_is_refused_with_the_folder_and_the_process(spool, spool_config):
    with pytest.raises(SpoolInUse, match=rf"{spool_config.path} is in use by process \d+"):
        Spool.open(spool_config, "test", "collector")


def test_a_closed_spool_can_be_opened_again_and_says_so_when_it_is_used(open_spool):
    first = open_spool()
    first.close()
    first.close()
    open_spool()
    with pytest.raises(ShuttingDown):
        first.commit(one_request(make_leaves(0, 1)))


def test_folder_and_files_are_closed_to_others(spool, tmp_path):
    folder = tmp_path / "spool"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_an_open_folder_is_closed_to_others(open_spool, tmp_path):
    (tmp_path / "spool").mkdir(mode=0o755)
    open_spool()
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_deleting_the_folder_gives_a_new_stream_that_takes_everything(open_spool, tmp_path):
    first = open_spool()
    first.commit(one_request(make_leaves(0, 3)))
    first.close()
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    again = open_spool()
    assert again.stream != first.stream
    assert again.commit(one_request(make_leaves(0, 3))).indexes == (0, 1, 2), (
        "none is swallowed as a duplicate"
    )


def test_another_collector_name_goes_on_with_the_stream_and_says_so(open_spool, spool_config, caplog):
    first = open_spool()
    first.close()
    renamed = Spool.open(spool_config, "test", "renamed")
    try:
        assert renamed.stream == first.stream
        assert "goes on with its stream" in caplog.text
    finally:
        renamed.close()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 129], ids=["empty", "slash", "space", "long"])
def test_a_name_that_can_not_be_part_of_a_stream_is_refused(spool_config, name):
    with pytest.raises(ConfigError, match=r"collector\.name"):
        Spool.open(spool_config, "test", name)


def test_what_the_disk_kept_although_it_reported_a_failure_is_not_written_over(spool):
    before = spool._ledger, spool._position
    spool.commit(one_request(make_leaves(0, 3)))
    spool._ledger, spool._position = before  # as after a commit that was reported as failed
    with pytest.raises(SpoolFull, match="the disk has more than was known"):
        spool.commit(one_request(make_leaves(10, 2)))
    assert spool.next_index == 3
    assert spool.commit(one_request(make_leaves(0, 3))).indexes == (None, None, None)
    assert spool.commit(one_request(make_leaves(10, 2))).indexes == (3, 4)
    assert [index for index, _ in empty(spool)] == [0, 1, 2, 3, 4]


def test_records_are_known_again_although_the_step_after_their_commit_failed(spool, monkeypatch):
    def fail(_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(spool._environment, "touched", fail)
        with pytest.raises(MemoryError):
            spool.commit(one_request(make_leaves(0, 3)))
    assert spool.commit(one_request(make_leaves(0, 3))).indexes == (None, None, None)
    assert spool.next_index == 3
