"""The drain: every record is stored, once, whatever the store and the network do."""

from __future__ import annotations

import threading

import pytest
from auditspan_collector.clickhouse import ClickHouseClient
from auditspan_collector.clickhouse import Config as ClickHouseConfig
from auditspan_collector.errors import (
    CommandRefused,
    SpoolDamaged,
    SpoolFull,
    StoreRejected,
    StoreUnavailable,
)
from auditspan_collector.pipeline.drain import Config, Drain, NoDrainMetrics
from auditspan_collector.pipeline.insert import insert
from collector.durability.scripted_store import Store, serve
from collector.durability.sealing import make_records, one_request

DEADLINE_S = 20
FAST = Config(linger_s=0.0, retry_min_s=0.001, retry_max_s=0.01)


def until(condition):
    waiter = threading.Event()
    for _ in range(DEADLINE_S * 500):
        if condition():
            return
        waiter.wait(0.002)
    raise AssertionError("the deadline passed")


class Counts(NoDrainMetrics):
    def __init__(self):
        self.records, self.delays, self.stops, self.resumes = 0, [], [], 0

    def inserted(self, *, records, elapsed_s):
        self.records += records

    def retrying(self, error, *, delay_s):
        self.delays.append(delay_s)

    def stopped(self, error):
        self.stops.append(error)

    def resumed(self):
        self.resumes += 1


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def port(store):
    with serve(store) as port:
        yield port


@pytest.fixture
def client(port):
    client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}", insert_timeout_s=5))
    yield client
    client.close()


@pytest.fixture
def counts():
    return Counts()


@pytest.fixture
def start(client, counts):
    started = []

    def start_(spool, *, config=FAST, prepare=lambda: None, client=client, **given):
        drain = Drain(spool, client, prepare=prepare, config=config, metrics=counts, **given)
        started.append(drain)
        drain.start()
        return drain

    yield start_
    for drain in started:
        drain.stop(0)
        drain._thread.join(DEADLINE_S)


def drained(spool):
    return lambda: spool.backlog().records == 0


def test_what_is_committed_is_stored_and_leaves_the_spool(spool, store, start):
    spool.commit(one_request(make_records(0, 3)))
    start(spool)
    until(drained(spool))
    spool.commit(one_request(make_records(3, 2)))
    until(drained(spool))
    assert store.indexes(spool.stream) == [0, 1, 2, 3, 4]
    assert store.duplicated == []


def test_an_insert_is_synchronous_and_named_by_stream_range_and_root(spool, store, start):
    spool.commit(one_request(make_records(0, 3)))
    root = spool.read(10, 1 << 20).root
    start(spool)
    until(drained(spool))
    (settings,) = store.settings
    assert settings["insert_deduplication_token"] == f"{spool.stream}:0-2:{root.hex()}"
    assert (settings["async_insert"], settings["wait_end_of_query"]) == ("0", "1")


def test_a_cluster_is_asked_for_a_quorum(spool, store, start, port):
    client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}", cluster="c"))
    spool.commit(one_request(make_records(0, 1)))
    start(spool, client=client)
    until(drained(spool))
    assert store.settings[0]["insert_quorum"] == "auto"
    assert store.settings[0]["distributed_foreground_insert"] == "1"
    client.close()


def test_records_that_come_within_the_linger_time_share_an_insert(spool, store, start):
    waits = []

    def wait(event, timeout_s):
        waits.append(timeout_s)
        return event.wait(timeout_s)

    start(spool, config=Config(linger_s=30.0, max_rows=20), wait=wait)
    until(lambda: waits)
    for n in range(20):
        spool.commit(one_request(make_records(n, 1)))
    until(drained(spool))
    assert [len(indexes) for _, indexes in store.inserts] == [20], "a full range does not wait on"
    assert all(timeout_s is None or timeout_s <= 30.0 for timeout_s in waits)


def test_a_lone_record_is_stored_when_the_linger_time_has_passed(spool, store, start):
    start(spool, config=Config(linger_s=0.05))
    spool.commit(one_request(make_records(0, 1)))
    until(drained(spool))
    assert store.indexes(spool.stream) == [0]


def test_a_large_backlog_goes_in_ranges_of_bounded_size(spool, store, start):
    for n in range(50):
        spool.commit(one_request(make_records(n * 10, 10)))
    start(spool, config=Config(linger_s=0.0, max_rows=100))
    until(drained(spool))
    assert [len(indexes) for _, indexes in store.inserts] == [100] * 5


# Transient


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "code 241", "code 252", "code 242", "code 319", "code 999", "cut"]
)
def test_a_transient_failure_is_retried_with_the_same_token_until_it_works(
    spool, store, start, counts, fault
):
    # The driver itself repeats a request once when a kept connection was cut.
    store.faults.extend([fault] * 6)
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(drained(spool))
    assert store.indexes(spool.stream) == [0, 1, 2]
    assert len({token for token, _ in store.inserts}) == 1
    assert len(counts.delays) >= 2
    assert counts.stops == []
    until(lambda: drain.status.state == "running")


def test_an_answer_that_got_lost_does_not_store_twice(spool, store, start):
    store.faults.extend(["cut late", "cut late"])
    spool.commit(one_request(make_records(0, 3)))
    start(spool)
    until(drained(spool))
    assert len(store.inserts) > 1
    assert store.duplicated == []
    assert store.indexes(spool.stream) == [0, 1, 2]


def test_a_store_that_is_not_there_yet_is_waited_for(spool, start, counts):
    store = Store()
    with serve(store) as port:
        pass
    client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}"))
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool, client=client)
    until(lambda: len(counts.delays) > 3)
    assert drain.status.state == "retrying"
    assert "connection refused" in str(drain.status.error)
    with serve(store, port):
        until(drained(spool))
        client.close()
    assert store.indexes(spool.stream) == [0, 1, 2]


def test_pauses_double_up_to_a_limit_and_start_over_after_a_success(spool, store, start, counts):
    now = [0.0]

    def wait(event, timeout_s):
        if timeout_s is None:
            return event.wait(0.01)
        now[0] += timeout_s
        return False

    store.faults.extend(["500"] * 6)
    spool.commit(one_request(make_records(0, 1)))
    start(
        spool,
        config=Config(linger_s=0, retry_min_s=1, retry_max_s=10),
        clock=lambda: now[0],
        wait=wait,
        jitter=lambda: 1.0,
    )
    until(drained(spool))
    assert counts.delays == [1, 2, 4, 8, 10, 10]
    store.faults.append("500")
    spool.commit(one_request(make_records(1, 1)))
    until(drained(spool))
    assert counts.delays[6:] == [1]


def test_preparing_is_retried_like_an_insert(spool, store, start, counts):
    attempts = []

    def prepare():
        attempts.append(1)
        if len(attempts) < 3:
            raise StoreUnavailable("not yet")

    spool.commit(one_request(make_records(0, 1)))
    start(spool, prepare=prepare)
    until(drained(spool))
    assert len(attempts) == 3


def test_a_server_that_hangs_is_given_up_and_tried_again(spool, store, start, port, counts):
    client = ClickHouseClient(ClickHouseConfig(url=f"http://127.0.0.1:{port}", insert_timeout_s=0.1))
    store.faults.append("hang")
    spool.commit(one_request(make_records(0, 1)))
    start(spool, client=client)
    until(drained(spool))
    assert len(counts.delays) == 1
    client.close()


# Permanent


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (60, "made again"),
        (53, "other types"),
        (16, "other columns"),
        (516, "clickhouse.password"),
        (497, "right"),
    ],
)
def test_a_permanent_failure_stops_the_drain_keeps_everything_and_says_what_to_do(
    spool, store, start, caplog, *, code, advice
):
    store.faults.append(f"code {code}")
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(lambda: drain.status.state == "stopped")
    assert isinstance(drain.status.error, StoreRejected)
    assert drain.status.error.code == code
    spool.commit(one_request(make_records(3, 1)))
    assert (spool.backlog().records, store.inserts) == (4, [])
    (line,) = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("STOPPED sending to ClickHouse")
    assert advice in line
    assert "3 records stay" in line


def test_a_stopped_drain_goes_on_after_retry_and_prepares_again(spool, store, start, counts):
    store.faults.append("code 60")
    prepared = []
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool, prepare=lambda: prepared.append(1))
    until(lambda: counts.stops)
    drain.retry()
    until(drained(spool))
    assert (len(prepared), counts.resumes, drain.status.state) == (2, 1, "running")
    assert store.indexes(spool.stream) == [0, 1, 2]


def test_what_it_sent_itself_is_no_old_copy_to_a_drain_that_goes_on(spool, store, start, counts):
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(drained(spool))
    store.faults.append("code 16")
    spool.commit(one_request(make_records(3, 2)))
    until(lambda: counts.stops)
    drain.retry()
    until(drained(spool))
    assert store.indexes(spool.stream) == [0, 1, 2, 3, 4]


def test_retry_ends_a_pause(spool, store, start, counts):
    store.faults.append("503")
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool, config=Config(linger_s=0, retry_min_s=60, retry_max_s=60))
    until(lambda: counts.delays)
    assert drain.retry() == "retrying"
    until(drained(spool))
    assert drain.retry() == "running"


def test_while_it_is_stopped_work_is_done_in_its_own_thread_and_it_goes_on(spool, store, start, counts):
    store.faults.append("code 16")
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(lambda: counts.stops)
    seen = drain.while_stopped(lambda why: (threading.current_thread().name, why))
    assert seen == ("auditspan-drain", counts.stops[0])
    until(drained(spool))


def test_it_stays_stopped_when_the_work_fails(spool, store, start, counts):
    store.faults.append("code 16")
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(lambda: counts.stops)
    with pytest.raises(ZeroDivisionError):
        drain.while_stopped(lambda _why: 1 // 0)
    assert drain.status.state == "stopped"
    drain.retry()
    until(drained(spool))


def test_no_work_is_taken_while_it_runs_or_when_it_is_stopping(spool, store, start, counts):
    store.faults.append("code 16")
    drain = start(spool)
    with pytest.raises(CommandRefused, match="the drain is running"):
        drain.while_stopped(lambda _why: None)
    spool.commit(one_request(make_records(0, 3)))
    until(lambda: counts.stops)
    assert not drain.stop(DEADLINE_S)
    with pytest.raises(CommandRefused):
        drain.while_stopped(lambda _why: None)


def test_a_restart_resumes_a_stopped_drain(spool, store, start, open_spool):
    store.faults.append("code 60")
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(lambda: drain.status.state == "stopped")
    drain.stop(DEADLINE_S)
    spool.close()
    again = open_spool()
    start(again)
    until(drained(again))
    assert store.indexes(again.stream) == [0, 1, 2]


def test_a_bug_stops_the_drain_and_not_the_process(spool, start, counts):
    def prepare():
        raise ZeroDivisionError

    drain = start(spool, prepare=prepare)
    until(lambda: counts.stops)
    assert isinstance(drain.status.error, ZeroDivisionError)


# Over a restart


def test_a_range_in_flight_is_sent_again_under_the_same_token(spool, store, start, open_spool):
    store.faults.extend(["500"] * 1000)
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(lambda: spool.in_flight() is not None)
    drain.stop(DEADLINE_S)
    spool.commit(one_request(make_records(3, 5)))
    spool.close()
    store.faults.clear()
    again = open_spool()
    start(again)
    until(drained(again))
    assert [indexes for _, indexes in store.inserts] == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_a_death_between_insert_and_release_stores_nothing_twice(spool, store, client, start, open_spool):
    spool.commit(one_request(make_records(0, 3)))
    spool.begin_insert(spool.read(10, 1 << 20))
    insert(client, spool.read(10, 1 << 20))
    spool.close()
    again = open_spool()
    start(again)
    until(drained(again))
    assert len(store.inserts) == 2, "sent again"
    assert store.duplicated == [], "and dropped"
    assert store.indexes(again.stream) == [0, 1, 2]


@pytest.mark.parametrize(
    ("present", "sent"),
    [([0, 1, 2, 3], []), ([], [[0, 1, 2, 3]]), ([1, 2], [[0, 3]]), ([0], [[1, 2, 3]])],
    ids=["all there", "none there", "ends missing", "one there"],
)
@pytest.mark.parametrize("age_s", [601, -5], ids=["long ago", "clock was set back"])
def test_a_range_whose_token_may_be_forgotten_is_read_back_and_completed(
    spool, store, start, *, present, sent, age_s
):
    spool.commit(one_request(make_records(0, 4)))
    in_flight = spool.begin_insert(spool.read(10, 1 << 20))
    stream = spool.stream
    store.rows |= {(stream, index): b"" for index in present}
    start(spool, clock_ns=lambda: in_flight.started_unix_ns + int(age_s * 1e9))
    until(drained(spool))
    assert [indexes for _, indexes in store.inserts] == sent
    assert store.duplicated == []
    assert store.indexes(stream) == [0, 1, 2, 3]
    if sent and present:
        token = store.inserts[0][0]
        assert len(token.split(":")) == 4, "other rows have another token"


def test_a_recent_range_is_not_read_back(spool, store, start):
    spool.commit(one_request(make_records(0, 4)))
    in_flight = spool.begin_insert(spool.read(10, 1 << 20))
    start(spool, clock_ns=lambda: in_flight.started_unix_ns + 599 * 10**9)
    until(drained(spool))
    assert not any("DISTINCT" in query for query in store.queries)


def test_a_spool_restored_from_an_old_copy_is_found_before_anything_is_sent(spool, store, start, counts):
    store.rows |= {(spool.stream, index): b"" for index in range(10)}
    spool.commit(one_request(make_records(0, 3)))
    start(spool)
    until(lambda: counts.stops)
    (error,) = counts.stops
    assert isinstance(error, SpoolDamaged)
    assert "index 9 of stream" in str(error)
    assert "move the folder away" in str(error)
    assert store.inserts == []
    with pytest.raises(SpoolFull, match="old copy"):
        spool.commit(one_request(make_records(3, 1)))


def test_indexes_of_the_own_past_are_no_reason_to_stop(spool, store, start, open_spool):
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool)
    until(drained(spool))
    drain.stop(DEADLINE_S)
    spool.close()
    again = open_spool()
    start(again)
    again.commit(one_request(make_records(3, 1)))
    until(drained(again))
    assert store.indexes(again.stream) == [0, 1, 2, 3]


# Stopping


def test_stopping_sends_what_is_left_without_lingering(spool, store, start):
    drain = start(spool, config=Config(linger_s=60))
    spool.commit(one_request(make_records(0, 3)))
    assert drain.stop(DEADLINE_S) is True
    assert store.indexes(spool.stream) == [0, 1, 2]


def test_stopping_while_the_store_is_away_leaves_the_rest_and_does_not_wait(spool, store, start, counts):
    store.faults.extend(["500"] * 1000)
    spool.commit(one_request(make_records(0, 3)))
    drain = start(spool, config=Config(linger_s=0, retry_min_s=60, retry_max_s=60))
    until(lambda: counts.delays)
    assert drain.stop(DEADLINE_S) is False
    assert not drain._thread.is_alive()
    assert spool.backlog().records == 3


def test_stopping_does_not_wait_longer_than_it_may_for_a_server_that_hangs(spool, store, start):
    store.faults.append("hang")
    spool.commit(one_request(make_records(0, 1)))
    drain = start(spool)
    assert store.arrived.acquire(timeout=DEADLINE_S)
    assert drain.stop(0.05) is False
    store.release_hang.set()


def test_a_stopped_drain_can_be_ended(spool, store, start, counts):
    store.faults.append("code 60")
    spool.commit(one_request(make_records(0, 1)))
    drain = start(spool)
    until(lambda: counts.stops)
    assert drain.stop(DEADLINE_S) is False
    assert not drain._thread.is_alive()
