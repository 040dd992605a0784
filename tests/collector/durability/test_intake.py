"""The intake: one answer a request, after its records are on disk, and as few waits for the disk as can be."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from auditspan_collector.errors import InvalidRequest, ShuttingDown, SpoolDamaged, SpoolFull
from auditspan_collector.pipeline.intake import ENCODED_AT_ONCE, Config, Intake, NoIntakeMetrics
from auditspan_collector.record import IndexRange, Leaves, OtlpRequest, Selection, Sender
from collector.durability.sealing import empty, make_leaf, one_request

SENDER = Sender("anonymous", "default", None, instrumented=True)
DEADLINE_S = 20


def request(text: str) -> OtlpRequest:
    return OtlpRequest(text.encode(), "protobuf", SENDER, "127.0.0.1", 1)


def encode(given: OtlpRequest) -> Selection:
    """A request's body is a list of words, each a record; "!" is a span that is refused."""
    words = given.body.decode().split()
    if "bad" in words:
        raise InvalidRequest("truncated", offset=3, field="resource_spans[0]")
    invalid = words.count("!")
    leaves = Leaves.of(make_leaf(word.encode()) for word in words if word != "!")
    return Selection(
        leaves,
        spans=len(words),
        tagged=len(words),
        invalid=invalid,
        problems=("span 00: no trace id",) * invalid,
    )


class Counts(NoIntakeMetrics):
    def __init__(self):
        self.commits, self.refusals, self.flags, self.selections = [], [], [], 0

    def selected(self, selection):
        self.selections += 1

    def committed(self, *, requests, records, duplicates, elapsed_s):
        self.commits.append((requests, records, duplicates))

    def flagged(self, *, conflicts, forgotten):
        self.flags.append((conflicts, forgotten))

    def refused(self, error, *, requests):
        self.refusals.append((type(error), requests))


class Gate:
    """The real spool behind a door that tests open, so that what arrives during a commit is known."""

    def __init__(self, spool):
        self.spool, self.arrived, self.open, self.error = (
            spool,
            threading.Semaphore(0),
            threading.Semaphore(0),
            None,
        )

    def commit(self, leaves):
        self.arrived.release()
        assert self.open.acquire(timeout=DEADLINE_S)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.spool.commit(leaves)


@pytest.fixture
def counts():
    return Counts()


@pytest.fixture
def start(counts):
    started = []

    def start_(spool, **given):
        intake = Intake(spool, encode, metrics=counts, **given)
        intake.start()
        started.append(intake)
        return intake

    yield start_
    for intake in started:
        intake.stop()


@pytest.fixture
def intake(start, spool):
    return start(spool)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(40) as executor:
        yield executor


def until(condition):
    waiter = threading.Event()
    for _ in range(DEADLINE_S * 1000):
        if condition():
            return
        waiter.wait(0.001)
    raise AssertionError("the deadline passed")


def test_an_answer_names_where_the_records_are(intake, spool):
    assert intake.submit(request("a b")).receipt.ranges == (IndexRange(0, 1),)
    accepted = intake.submit(request("c b d b"))
    assert accepted.receipt.stream == spool.stream
    assert accepted.receipt.ranges == (IndexRange(2, 3),)
    assert accepted.receipt.duplicates == 2
    assert (accepted.rejected, accepted.problem) == (0, "")


def test_what_is_answered_is_on_disk(intake, spool, open_spool):
    intake.submit(request("a b"))
    spool.close()
    assert [content for _, content in empty(open_spool())] == [b"a", b"b"]


def test_a_request_of_duplicates_alone_gets_a_receipt_without_ranges(intake):
    intake.submit(request("a"))
    receipt = intake.submit(request("a a")).receipt
    assert (receipt.ranges, receipt.duplicates) == ((), 2)


def test_a_request_without_records_is_answered_without_touching_the_spool(start, counts):
    accepted = start(None).submit(request(""))
    assert accepted.receipt is None
    assert counts.selections == 1


def test_refused_spans_are_counted_and_named_beside_those_that_were_kept(intake):
    accepted = intake.submit(request("a ! ! ! ! !"))
    assert accepted.receipt.ranges == (IndexRange(0, 0),)
    assert accepted.rejected == 5
    assert accepted.problem.startswith("5 spans refused: span 00: no trace id; ")
    assert accepted.problem.endswith("; and 2 more")


def test_a_request_that_can_not_be_read_raises_in_its_own_thread(intake, spool):
    with pytest.raises(InvalidRequest):
        intake.submit(request("a bad"))
    assert spool.next_index == 0
    assert intake.submit(request("a")).receipt is not None


def test_requests_that_arrive_during_a_commit_share_the_next_one(start, spool, pool, counts):
    gate = Gate(spool)
    intake = start(gate)
    first = pool.submit(intake.submit, request("first"))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    others = [pool.submit(intake.submit, request(f"r{n} s{n}")) for n in range(30)]
    until(lambda: len(intake._waiting) == 30)
    gate.open.release(2)
    answers = [future.result(DEADLINE_S) for future in (first, *others)]
    assert [commit[0] for commit in counts.commits] == [1, 30]
    indexes = sorted((r.first, r.last) for answer in answers for r in answer.receipt.ranges)
    assert indexes == [(0, 0), *((n, n + 1) for n in range(1, 61, 2))]


def test_many_threads_make_fewer_commits_than_requests(start, spool, pool, counts):
    intake = start(spool)
    answers = list(pool.map(lambda n: intake.submit(request(f"word{n}")), range(800)))
    assert {answer.receipt.ranges[0].first for answer in answers} == set(range(800))
    assert sum(commit[0] for commit in counts.commits) == 800
    assert len(counts.commits) < 400


def test_a_commit_waits_a_moment_for_as_many_requests_as_the_last_one_had(start, spool, pool, counts):
    gate = Gate(spool)
    intake = start(gate, config=Config(linger_s=10))
    gate.open.release(10)

    def submit(text, there):
        future = pool.submit(intake.submit, request(text))
        until(lambda: len(intake._waiting) == there or future.done())
        return future

    first = submit("a", 1)
    first.result(DEADLINE_S)
    intake._last_group = 2  # as after a commit of two
    one, two = submit("b", 1), submit("c", 2)
    assert {one.result(DEADLINE_S).receipt.ranges, two.result(DEADLINE_S).receipt.ranges} == {
        (IndexRange(1, 1),),
        (IndexRange(2, 2),),
    }
    assert [commit[0] for commit in counts.commits] == [1, 2], "the second waited for the third"
    intake.stop()


def test_a_duplicate_within_a_group_counts_for_the_later_request(start, spool, pool):
    gate = Gate(spool)
    intake = start(gate)
    pool.submit(intake.submit, request("first"))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    one = pool.submit(intake.submit, request("same"))
    until(lambda: len(intake._waiting) == 1)
    two = pool.submit(intake.submit, request("same new"))
    until(lambda: len(intake._waiting) == 2)
    gate.open.release(2)
    assert (one.result(DEADLINE_S).receipt.duplicates, two.result(DEADLINE_S).receipt.duplicates) == (0, 1)


def test_a_group_takes_no_more_than_its_bytes(start, spool, pool, counts):
    gate = Gate(spool)
    intake = start(gate, config=Config(group_bytes=1 << 16))
    pool.submit(intake.submit, request("first"))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    futures = [pool.submit(intake.submit, request(f"{n}" * 40_000)) for n in range(3)]
    until(lambda: len(intake._waiting) == 3)
    gate.open.release(4)
    for future in futures:
        future.result(DEADLINE_S)
    assert [commit[0] for commit in counts.commits] == [1, 1, 1, 1]


def test_a_full_queue_makes_further_requests_wait(start, spool, pool):
    gate = Gate(spool)
    intake = start(gate, config=Config(queue_bytes=1 << 20))
    futures = [pool.submit(intake.submit, request("first"))]
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    futures += [pool.submit(intake.submit, request(f"{n}" * 600_000)) for n in range(4)]
    until(lambda: len(intake._waiting) == 1)
    assert intake._held_bytes < 1 << 20
    gate.open.release(10)
    assert all(future.result(DEADLINE_S).receipt for future in futures)


def swelling(given: OtlpRequest) -> Selection:
    """Records far larger than their request, each with its own megabyte."""
    return Selection(Leaves.of([make_leaf(given.body * (1 << 20))]), spans=1, tagged=1)


def test_records_larger_than_their_requests_do_not_pile_up_while_the_disk_is_busy(spool, pool, counts):
    gate = Gate(spool)
    intake = Intake(gate, swelling, metrics=counts, config=Config(queue_bytes=2 << 20))
    intake.start()
    futures = [pool.submit(intake.submit, request(f"{number}")) for number in range(10, 22)]
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    until(lambda: intake._held_bytes >= 2 << 20 and not intake._encoding)
    assert intake._held_bytes <= (2 + 2 * ENCODED_AT_ONCE) << 20
    assert counts.selections <= 1 + ENCODED_AT_ONCE
    gate.open.release(40)
    assert all(future.result(DEADLINE_S).receipt for future in futures)
    until(lambda: intake._held_bytes == 0)
    intake.stop()


def test_a_wait_for_room_that_takes_long_ends_with_when_to_come_back(start, spool, pool, counts):
    gate = Gate(spool)
    intake = start(gate, config=Config(queue_bytes=1 << 20, queue_wait_s=0.01))
    first = pool.submit(intake.submit, request("x" * (1 << 20)))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    with pytest.raises(SpoolFull) as caught:
        intake.submit(request("second"))
    assert caught.value.retry_after_s > 0
    assert counts.refusals == [(SpoolFull, 1)]
    gate.open.release(2)
    assert first.result(DEADLINE_S).receipt
    assert intake.submit(request("third")).receipt


def test_a_request_that_is_refused_gives_its_room_back(intake):
    for _ in range(2 * ENCODED_AT_ONCE):
        with pytest.raises(InvalidRequest):
            intake.submit(request("bad"))
    assert (intake._encoding, intake._held_bytes) == (0, 0)


# What goes wrong


def test_of_a_group_that_does_not_fit_the_small_ones_are_kept(start, spool, pool, counts):
    filler = [make_leaf(bytes([n]) * (1 << 20)) for n in range(spool._config.capacity_bytes >> 20)]
    spool.commit(one_request(filler[:-1]))
    gate = Gate(spool)
    intake = start(gate)
    pool.submit(intake.submit, request("first"))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    large = pool.submit(intake.submit, request("x" * (3 << 20)))
    small = pool.submit(intake.submit, request("small"))
    until(lambda: len(intake._waiting) == 2)
    gate.open.release(4)
    assert small.result(DEADLINE_S).receipt.ranges
    with pytest.raises(SpoolFull) as caught:
        large.result(DEADLINE_S)
    assert caught.value.retry_after_s > 0
    assert counts.refusals == [(SpoolFull, 1)]


@pytest.mark.parametrize("error", [SpoolDamaged("bit"), RuntimeError("a bug")], ids=["ours", "a bug"])
def test_an_error_goes_to_its_group_and_the_next_is_committed(start, spool, pool, error, caplog):
    gate = Gate(spool)
    intake = start(gate)
    gate.error = error
    gate.open.release(2)
    with pytest.raises(type(error)):
        intake.submit(request("a"))
    assert intake.submit(request("b")).receipt.ranges == (IndexRange(0, 0),)
    assert "a commit of 1 requests failed" in caplog.text


def test_metrics_that_fail_leave_nobody_waiting(start, spool, counts, caplog):
    def fail(**_):
        raise RuntimeError("no counter")

    counts.committed = fail
    intake = start(spool)
    with pytest.raises(RuntimeError, match="no counter"):
        intake.submit(request("a"))
    with pytest.raises(RuntimeError, match="no counter"):
        intake.submit(request("b"))


def test_stopping_commits_what_is_queued_and_refuses_what_comes(start, spool, pool):
    gate = Gate(spool)
    intake = start(gate)
    first = pool.submit(intake.submit, request("first"))
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    queued = pool.submit(intake.submit, request("queued"))
    until(lambda: len(intake._waiting) == 1)
    stopping = pool.submit(intake.stop)
    until(lambda: intake._stopping)
    with pytest.raises(ShuttingDown):
        intake.submit(request("late"))
    gate.open.release(2)
    stopping.result(DEADLINE_S)
    assert first.result(DEADLINE_S).receipt.ranges == (IndexRange(0, 0),)
    assert queued.result(DEADLINE_S).receipt.ranges == (IndexRange(1, 1),)
    intake.stop()


def test_a_record_under_a_key_that_has_other_content_is_kept_counted_and_told_to_its_sender(
    spool, counts, caplog
):
    def numbered(given: OtlpRequest) -> Selection:
        words = given.body.split()
        leaves = Leaves.of(make_leaf(word, sequence=b"s", number=n) for n, word in enumerate(words, 1))
        return Selection(leaves, spans=len(words), tagged=len(words))

    intake = Intake(spool, numbered, metrics=counts)
    intake.start()
    try:
        assert intake.submit(request("one two")).receipt.conflicts == 0
        receipt = intake.submit(request("one other new")).receipt
    finally:
        intake.stop()
    assert (receipt.ranges, receipt.duplicates, receipt.conflicts) == ((IndexRange(2, 3),), 1, 1)
    assert counts.flags == [(1, 0)]
    (line,) = [entry.message for entry in caplog.records if "other content" in entry.message]
    assert f"index 2 of stream {spool.stream}" in line


def test_an_offer_returns_before_the_commit_and_is_answered_after_it(start, spool):
    gate = Gate(spool)
    intake = start(gate)
    answers = queue.SimpleQueue()
    intake.offer(request("a b"), answers.put)
    intake.offer(request("c"), answers.put)
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    assert answers.empty()
    gate.open.release(2)
    given = [answers.get(timeout=DEADLINE_S).receipt for _ in range(2)]
    assert [receipt.ranges for receipt in given] == [(IndexRange(0, 1),), (IndexRange(2, 2),)]


def test_an_offer_that_can_be_answered_at_once_is(start):
    answers = []
    intake = start(None)
    intake.offer(request(""), answers.append)
    assert [answer.receipt for answer in answers] == [None]
    with pytest.raises(InvalidRequest):
        intake.offer(request("bad"), answers.append)
    assert len(answers) == 1


def test_an_offer_that_fails_in_its_commit_is_answered_with_the_error(start, spool):
    gate = Gate(spool)
    gate.error = SpoolDamaged("spool: x", "y")
    gate.open.release()
    answers = queue.SimpleQueue()
    start(gate).offer(request("a"), answers.put)
    assert isinstance(answers.get(timeout=DEADLINE_S), SpoolDamaged)


def test_an_answer_that_can_not_be_given_keeps_no_other_from_being_given(start, spool, caplog):
    gate = Gate(spool)
    intake = start(gate)
    answers = queue.SimpleQueue()

    def fail(_result):
        raise OSError("gone")

    intake.offer(request("first"), answers.put)
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    intake.offer(request("a"), fail)
    intake.offer(request("b"), answers.put)
    gate.open.release(2)
    given = [answers.get(timeout=DEADLINE_S).receipt.ranges for _ in range(2)]
    assert given == [(IndexRange(0, 0),), (IndexRange(2, 2),)]
    assert "answering a request failed" in caplog.text


def test_the_wait_for_room_counts_from_when_the_request_came(spool, counts):
    now = [1000.0]
    gate = Gate(spool)
    intake = Intake(
        gate,
        encode,
        metrics=counts,
        config=Config(queue_bytes=1 << 20, queue_wait_s=5.0),
        clock=lambda: now[0],
    )
    intake.start()
    answers = queue.SimpleQueue()
    intake.offer(request("x" * (1 << 20)), answers.put)
    assert gate.arrived.acquire(timeout=DEADLINE_S)
    with pytest.raises(SpoolFull):
        intake.offer(request("late"), answers.put, since_s=994.0)
    gate.open.release()
    assert answers.get(timeout=DEADLINE_S).receipt.ranges == (IndexRange(0, 0),)
    intake.stop()
