"""Spools that workers left are emptied by those that are there, each as its own worker would have done it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.errors import ConfigError
from auditspan_collector.pipeline.control import ask
from auditspan_collector.pipeline.drain import Config, NoDrainMetrics
from auditspan_collector.pipeline.quarantine import listed
from auditspan_collector.pipeline.takeover import Takeover
from auditspan_collector.service import Place, left_for
from auditspan_collector.spool import Spool, check, check_shares, left_over, share
from collector.durability.scripted_store import Store, serve
from collector.durability.sealing import make_records, one_request
from collector.service.otlp_peer import wait_until

ALONE = Place()
FAST = Config(linger_s=0.0, retry_min_s=0.001, retry_max_s=0.01)


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def spools(spool_config):
    """The settings of a collector's spools."""
    return msgspec.structs.replace(spool_config, max_bytes=512 << 20)


@pytest.fixture
def leave(spools):
    """Have worker *number* of four acknowledge records and end; its stream."""

    def leave_(number, records):
        spool = Spool.open(share(spools, number, 4), "test", "collector")
        if records:
            spool.commit(one_request(make_records(number * 1000, records)))
        spool.close()
        return spool.stream

    return leave_


@pytest.fixture
def take_over(store, spools):
    """Start what one worker, alone by default, takes over."""
    running = []
    with serve(store) as port:
        client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}", insert_timeout_s=5))

        def take_over_(place=ALONE):
            takeover = Takeover(
                left_for(spools, place),
                client,
                prepare=lambda: None,
                config=FAST,
                metrics=NoDrainMetrics(),
                deployment="test",
                collector="collector",
                try_again_s=0.05,
            )
            running.append(takeover)
            takeover.start()
            return takeover

        yield take_over_
        for each in running:
            each.stop(0)
        client.close()


def test_everything_that_was_left_is_stored_under_its_own_stream(leave, take_over, store):
    streams = {leave(number, records): records for number, records in ((2, 3), (3, 0), (4, 5))}
    take_over()
    wait_until(lambda: len(store.rows) == 8, what="the records")
    assert {stream: store.indexes(stream) for stream in streams} == {
        stream: list(range(records)) for stream, records in streams.items()
    }
    assert store.duplicated == []


def test_an_emptied_spool_stays_and_knows_what_it_has_seen(leave, take_over, store, spools):
    stream = leave(2, 3)
    takeover = take_over()
    wait_until(lambda: len(store.rows) == 3, what="the records")
    wait_until(lambda: not takeover._thread.is_alive(), what="the end of the takeover")
    spool = Spool.open(share(spools, 2, 2), "test", "collector")
    assert spool.stream == stream
    assert spool.commit(one_request(make_records(2000, 4))).indexes == (None, None, None, 3)
    spool.close()


def test_what_could_not_be_sent_before_a_stop_is_sent_after_the_next_start(leave, take_over, store):
    leave(2, 3)
    store.faults.extend(["500"] * 10_000)
    takeover = take_over()
    wait_until(lambda: takeover.records == 3, what="the spool being open")
    takeover.stop(0)
    assert store.rows == {}
    store.faults.clear()
    take_over()
    wait_until(lambda: len(store.rows) == 3, what="the records")


def test_a_damaged_one_is_said_once_and_does_not_hold_up_the_others(leave, take_over, store, spools, caplog):
    leave(2, 3)
    stream = leave(3, 2)
    (Path(spools.path) / "2" / "data.mdb").write_bytes(b"not LMDB" * 2000)
    with caplog.at_level(logging.ERROR):
        takeover = take_over()
        wait_until(lambda: store.indexes(stream) == [0, 1], what="the records of the sound one")
        wait_until(lambda: takeover._waiting and takeover._waiting[0][0] > 0, what="a second try")
        takeover.stop(0)
    said = [message for message in caplog.messages if "can't be taken over" in message]
    assert len(said) == 1
    assert str(Path(spools.path) / "2") in said[0]


def test_one_that_the_store_refuses_for_good_holds_up_no_other_and_an_operator_can_reach_it(
    leave, take_over, store, spools
):
    leave(2, 3)
    stream = leave(3, 2)
    store.faults.append("code 60")
    takeover = take_over()
    wait_until(lambda: store.indexes(stream) == [0, 1], what="the records of the other one")
    assert takeover.stopped
    found = ask(Path(spools.path) / "2", "list", most=1)
    assert (found["state"], found["records"]) == ("stopped", 3)
    assert "Code: 60" in found["error"]
    ask(Path(spools.path) / "2", "retry")
    wait_until(lambda: len(store.rows) == 5, what="the records that were refused before")


def test_what_the_store_refuses_of_one_can_be_set_aside_and_the_takeover_goes_on(
    leave, take_over, store, spools
):
    leave(2, 3)
    folder = Path(spools.path) / "2"
    store.faults.append("code 60")
    takeover = take_over()
    wait_until(lambda: takeover.stopped, what="the refusal")
    (name,) = ask(folder, "quarantine", first=0, last=2)
    wait_until(lambda: not takeover._thread.is_alive(), what="the end of the takeover")
    assert [each.name for each in listed(folder)] == [name]
    assert store.rows == {}


def test_one_that_is_still_in_use_is_taken_when_it_is_free(leave, take_over, store, spools):
    leave(2, 3)
    holder = Spool.open(share(spools, 2, 4), "test", "collector")
    takeover = take_over()
    wait_until(lambda: takeover._said, what="the first try")
    holder.close()
    wait_until(lambda: len(store.rows) == 3, what="the records")


def test_each_left_spool_falls_to_one_worker(leave, spools):
    for number in (1, 2, 3, 4):
        leave(number, 1)
    assert left_over(spools, 1) == (2, 3, 4)
    assert left_over(spools, 4) == ()
    taken = [Path(each.path).name for number in (1, 2) for each in left_for(spools, Place(number, 2))]
    assert sorted(taken) == ["3", "4"]


def test_the_first_workers_spool_is_the_folder_itself_so_that_nothing_moves(leave, spools):
    assert leave(1, 1) == stream_of(spools)


def stream_of(config):
    spool = Spool.open(config, "test", "collector")
    spool.close()
    return spool.stream


def test_shares_come_to_no_more_than_the_whole(spools):
    shares = [share(spools, number, 3) for number in (1, 2, 3)]
    assert sum(each.max_bytes for each in shares) <= spools.max_bytes
    for setting in ("dedup_window_records", "dedup_sequences"):
        parts, whole = {getattr(each, setting) for each in shares}, getattr(spools, setting)
        assert whole / 3 <= parts.pop() <= whole / 3 + 1, setting
        assert not parts, setting
    assert len({each.path for each in shares}) == 3


def test_a_folder_of_several_workers_passes_the_check_and_shares_too_small_do_not(leave, spools):
    leave(1, 1)
    leave(12, 1)
    assert check(spools) == ()
    check_shares(spools, 8)
    with pytest.raises(
        ConfigError, match=r"spool\.max_bytes: 536870912 is too small for 9 workers; at least 603979776"
    ):
        check_shares(spools, 9)


def test_what_is_remembered_too_must_fit_into_the_shares_and_is_named_as_it_was_set(spools):
    too_much = msgspec.structs.replace(spools, dedup_window_records=7_000_000)
    with pytest.raises(
        ConfigError,
        match=r"spool\.dedup_window_records: 7000000 leaves too little .* of 4 workers; at most (\d+), or",
    ) as caught:
        check_shares(too_much, 4)
    most = int(re.search(r"at most (\d+)", str(caught.value))[1])
    check_shares(msgspec.structs.replace(spools, dedup_window_records=most), 4)
