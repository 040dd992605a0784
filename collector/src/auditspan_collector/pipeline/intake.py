"""Take requests in; answer when their records are sealed and on disk.

Many threads bring requests; one commits. Each encodes its own request; what the committer finds waiting when it is
free, it commits as one group, with one wait for the disk: the more comes at once, the less each costs. Senders that
were answered together come back together, so the committer gives as many as it had last a moment to arrive. A single
request on an idle collector is committed at once, alone.

Who brings a request need not wait for its commit: the committer calls back. A thread that sleeps until its commit is
done costs the interpreter two changes of threads.

A small request can come to large records, and how large is known only once they are made. So a request is admitted
before: while there is room for records, and few at a time. What the disk is too slow for waits as the bytes that its
client sent, and is asked to come back when that takes long.

What fails, fails for those it concerns. A group that the spool has no room for is tried again request by request:
refusing costs nothing then, and what is small may still fit. Any other error of a commit goes to each request of the
group, and the committer goes on with the next.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Annotated, Final, Protocol

import msgspec
from msgspec import Meta

from auditspan_collector import crashpoint
from auditspan_collector.errors import ShuttingDown, SpoolFull
from auditspan_collector.record import Accepted, IndexRange, Leaves, Receipt
from auditspan_collector.spool import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from auditspan_collector.record import OtlpRequest, Selection
    from auditspan_collector.spool import Committed, Spool

    Answer = Callable[[Accepted | BaseException], None]

log = logging.getLogger(__name__)

_PROBLEMS_SHOWN: Final = 3
# Requests that are encoded at a time. They share the interpreter, so that more would gain nothing; and each may come
# to limits.request_bytes more than there was room for.
ENCODED_AT_ONCE: Final = 4
BUSY_RETRY_AFTER_S: Final = 1.0
_ONE_LINE_PER_S: Final = 60.0
_NONE: Final = Leaves()


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``intake`` section.

    Attributes:
        group_bytes: A commit takes waiting requests up to this many bytes of records. It bounds memory, and how
            long a commit takes.
        linger_s: Longest wait of a commit for as many requests as the one before it had; 0 for none. A commit costs
            the same for one request as for many.
        queue_bytes: Records in memory, from when a request is taken until it is on disk. At this many, further
            requests wait before their records are made, so that memory holds at most this and what four requests
            may come to (``limits.request_bytes``).
        queue_wait_s: Longest such wait; then the request is asked to come back.

    """

    group_bytes: Annotated[int, Meta(ge=1 << 16)] = 8 << 20
    linger_s: Annotated[float, Meta(ge=0, le=10)] = 0.005
    queue_bytes: Annotated[int, Meta(ge=1 << 20)] = 64 << 20
    queue_wait_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0


class IntakeMetrics(Protocol):
    """What the intake counts. Methods are called from many threads, and must be quick and not raise."""

    def selected(self, selection: Selection) -> None:
        """A request was read, with what it holds; before its commit."""

    def committed(self, *, requests: int, records: int, duplicates: int, elapsed_s: float) -> None:
        """A group is on disk: so many requests and new records, and so long it took."""

    def flagged(self, *, conflicts: int, forgotten: int) -> None:
        """So many records are kept although one with other content, or nobody knows what, has their key."""

    def refused(self, error: BaseException, *, requests: int) -> None:
        """So many requests failed with *error* at the spool."""


class NoIntakeMetrics:
    """Counts nothing."""

    def selected(self, selection: Selection) -> None:
        """Nothing."""

    def committed(self, *, requests: int, records: int, duplicates: int, elapsed_s: float) -> None:
        """Nothing."""

    def flagged(self, *, conflicts: int, forgotten: int) -> None:
        """Nothing."""

    def refused(self, error: BaseException, *, requests: int) -> None:
        """Nothing."""


class _Waiting:
    """A request's records between the thread that made them and the committer."""

    __slots__ = ("_answer", "bytes", "leaves", "selection")

    def __init__(self, selection: Selection, answer: Answer) -> None:
        self.selection = selection
        self.leaves = selection.leaves
        self.bytes = len(self.leaves.contents)
        self._answer: Answer | None = answer  # until it is told

    def succeed(self, receipt: Receipt) -> None:
        """Answer with *receipt*."""
        self._tell(_kept(self.selection, receipt))

    def fail(self, error: BaseException) -> None:
        """Answer with *error*, unless there was an answer."""
        self._tell(error)

    def _tell(self, result: Accepted | BaseException) -> None:
        answer, self._answer = self._answer, None
        if answer is None:
            return
        try:
            answer(result)
        except Exception:
            # What was kept is recognised when it is retried, and the others of the group want their answers too.
            log.exception("answering a request failed")


class _Wait:
    """An answer that somebody waits for."""

    __slots__ = ("_done", "_result")

    def __init__(self) -> None:
        # A lock that is free once there is an answer: an event would cost several times as much.
        self._done = threading.Lock()
        self._done.acquire()
        self._result: Accepted | BaseException | None = None

    def answer(self, result: Accepted | BaseException) -> None:
        """The answer is there."""
        self._result = result
        self._done.release()

    def wait(self) -> Accepted:
        """The answer, once it is there; raises what the request failed with."""
        self._done.acquire()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None  # noqa: S101 - for the type checker
        return self._result


class Intake:
    """The way in: `start`, then `submit` or `offer` from any thread, then `stop`."""

    def __init__(
        self,
        spool: Spool,
        encode: Callable[[OtlpRequest], Selection],
        *,
        config: Config | None = None,
        metrics: IntakeMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*encode* turns a request into leaves; it is called in the submitting thread and may raise what it likes."""
        self._spool = spool
        self._encode = encode
        self._config = config or Config()
        self._metrics: IntakeMetrics = metrics or NoIntakeMetrics()
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._wanted = 1  # how many must wait for the committer to be woken
        self._last_group = 1
        self._encoding = 0
        self._held_bytes = 0  # records that are made or being made, until they are answered for
        self._stopping = False
        self._conflicts = 0  # that no line of the log has told yet
        self._conflicts_logged_at: float | None = None
        self._state = threading.Lock()  # guards queue, what is held, and stopping
        self._arrived = threading.Condition(self._state)
        self._room = threading.Condition(self._state)
        self._thread = threading.Thread(target=self._run, name="auditspan-commit", daemon=True)

    def start(self) -> None:
        """Start the committer; once."""
        self._thread.start()

    def submit(self, request: OtlpRequest) -> Accepted:
        """Keep the records of *request*; on return they survive power loss. Thread-safe.

        Blocks for a commit, and up to ``queue_wait_s`` before.

        Raises what *encode* raises for a request that is refused, and with nothing kept SpoolFull and ShuttingDown
        (transient), and SpoolDamaged.
        """
        wait = _Wait()
        self.offer(request, wait.answer)
        return wait.wait()

    def offer(self, request: OtlpRequest, answer: Answer, *, since_s: float | None = None) -> None:
        """As `submit`, but return when the request is in the queue, and *answer* once its records survive power loss.

        *answer* gets what `submit` would return, or the error that it would raise, in the committer's thread: it must
        be quick. For a request without records it is called before this returns. *since_s* is when the request came,
        by the intake's clock: ``queue_wait_s`` runs from then.

        What can be said at once is raised here as `submit` raises it, and then *answer* is not called.
        """
        crashpoint.reach("intake.request")
        waiting = self._encoded(request, answer, self._clock() if since_s is None else since_s)
        crashpoint.reach("intake.encoded")
        selection = waiting.selection
        self._metrics.selected(selection)
        if selection.leaves:
            self._queue(waiting)
        else:
            answer(_kept(selection, None))

    def _encoded(self, request: OtlpRequest, answer: Answer, since_s: float) -> _Waiting:
        """The records of *request*, made once there is room; their bytes are held until `_release`."""
        # Records are seldom smaller than what was sent; when they are known, they count instead.
        reserved = len(request.body)
        with self._state:
            self._await_room(reserved, since_s)
            self._encoding += 1
            self._held_bytes += reserved
        held = 0
        try:
            waiting = _Waiting(self._encode(request), answer)
            held = waiting.bytes
        finally:
            with self._state:
                self._encoding -= 1
                self._held_bytes += held - reserved
                self._room.notify()
        return waiting

    def _await_room(self, reserved: int, since_s: float) -> None:
        """Return when a request of that many bytes may be encoded. Raises SpoolFull and ShuttingDown."""
        until = since_s + self._config.queue_wait_s
        while not self._stopping and not self._has_room(reserved):
            left_s = until - self._clock()
            if left_s <= 0:
                error = SpoolFull(
                    f"{self._held_bytes} bytes of records wait for the disk already",
                    retry_after_s=BUSY_RETRY_AFTER_S,
                )
                self._metrics.refused(error, requests=1)
                raise error
            self._room.wait(left_s)
        if self._stopping:
            raise ShuttingDown("the collector is stopping")

    def _has_room(self, reserved: int) -> bool:
        # A request larger than the whole queue goes in when it is empty.
        return self._encoding < ENCODED_AT_ONCE and (
            not self._held_bytes or self._held_bytes + reserved <= self._config.queue_bytes
        )

    def _release(self, group: Sequence[_Waiting]) -> None:
        """The records of *group* are answered for; there is room for others."""
        with self._state:
            for waiting in group:
                self._held_bytes -= waiting.bytes
                waiting.leaves = _NONE
            self._room.notify(ENCODED_AT_ONCE)

    def _queue(self, waiting: _Waiting) -> None:
        with self._state:
            stopping = self._stopping
            if not stopping:
                self._waiting.append(waiting)
                if len(self._waiting) >= self._wanted:
                    self._arrived.notify()
        if stopping:
            self._release([waiting])
            raise ShuttingDown("the collector is stopping")

    def stop(self) -> None:
        """Refuse new requests, commit what is queued, and return when that is done; may be called again."""
        with self._state:
            self._stopping = True
            self._arrived.notify_all()
            self._room.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    # The committer

    def _run(self) -> None:
        while group := self._next_group():
            try:
                self._commit_group(group)
            except BaseException as error:
                # Nobody may wait for ever, whatever goes wrong in here. What was kept is recognised when it is retried.
                log.exception("answering a group of %d requests failed", len(group))
                for waiting in group:
                    waiting.fail(error)
            finally:
                self._release(group)

    def _next_group(self) -> list[_Waiting]:
        """What waits, up to a group's size; waits for the first. Empty when all is done and we are stopping."""
        group: list[_Waiting] = []
        size = 0
        with self._state:
            while not self._waiting and not self._stopping:
                self._arrived.wait()
            self._await_company()
            while self._waiting and (not group or size + self._waiting[0].bytes <= self._config.group_bytes):
                waiting = self._waiting.popleft()
                size += waiting.bytes
                group.append(waiting)
            self._last_group = len(group)
        return group

    def _await_company(self) -> None:
        """Return when as many requests wait as the last group had, or none came for too long."""
        if len(self._waiting) < self._last_group and not self._stopping:
            self._wanted = self._last_group
            self._arrived.wait(self._config.linger_s)
            self._wanted = 1

    def _commit_group(self, group: list[_Waiting]) -> None:
        started = self._clock()
        try:
            crashpoint.reach("commit.begin")
            committed = self._spool.commit([waiting.leaves for waiting in group])
            crashpoint.reach("commit.durable")
        except SpoolFull as error:
            if len(group) == 1:
                self._refuse(group, error)
                return
            for waiting in group:
                self._commit_group([waiting])
        except BaseException as error:
            log.exception("a commit of %d requests failed", len(group))
            self._refuse(group, error)
        else:
            self._count(group, committed, self._clock() - started)
            if committed.flagged:
                self._flag(committed)
            self._answer(group, committed)

    def _answer(self, group: list[_Waiting], committed: Committed) -> None:
        at, index = 0, committed.first
        conflicts = [place for place, verdict in committed.flagged if verdict is Verdict.CONFLICT]
        for waiting in group:
            end = at + len(waiting.leaves)
            duplicates = _among(committed.duplicates, at, end)
            # The new records of one request are sealed next to each other, so they make one range.
            after = index + end - at - duplicates
            waiting.succeed(
                Receipt(
                    committed.stream,
                    (IndexRange(index, after - 1),) if after > index else (),
                    duplicates,
                    _among(conflicts, at, end),
                )
            )
            at, index = end, after

    def _flag(self, committed: Committed) -> None:
        conflicts = [place for place, verdict in committed.flagged if verdict is Verdict.CONFLICT]
        self._metrics.flagged(conflicts=len(conflicts), forgotten=len(committed.flagged) - len(conflicts))
        if not conflicts:
            return
        self._conflicts += len(conflicts)
        now = self._clock()
        if self._conflicts_logged_at is None or now - self._conflicts_logged_at >= _ONE_LINE_PER_S:
            log.warning(
                "%d records were kept whose sequence number or record id came before with other content, the latest at "
                "index %s of stream %s; the view `conflicts` shows all of them",
                self._conflicts,
                committed.indexes[conflicts[-1]],
                committed.stream,
            )
            self._conflicts_logged_at, self._conflicts = now, 0

    def _refuse(self, group: list[_Waiting], error: BaseException) -> None:
        # Counted first, as a commit is: whoever was told so finds it in the metrics and in /healthz.
        self._metrics.refused(error, requests=len(group))
        for waiting in group:
            waiting.fail(error)

    def _count(self, group: list[_Waiting], committed: Committed, elapsed_s: float) -> None:
        self._metrics.committed(
            requests=len(group),
            records=committed.records,
            duplicates=len(committed.duplicates),
            elapsed_s=elapsed_s,
        )


def _kept(selection: Selection, receipt: Receipt | None) -> Accepted:
    """The answer to a request whose records, if any, are on disk."""
    crashpoint.reach("intake.kept")
    return Accepted(receipt, rejected=selection.invalid, problem=_problem(selection))


def _among(places: Sequence[int], begin: int, end: int) -> int:
    """How many of *places*, which ascend, are from *begin* on and before *end*."""
    return bisect_left(places, end) - bisect_left(places, begin) if places else 0


def _problem(selection: Selection) -> str:
    """OTLP's ``partial_success.error_message``: how many spans were refused, and the first few by name."""
    if not selection.invalid:
        return ""
    shown = "; ".join(selection.problems[:_PROBLEMS_SHOWN])
    more = selection.invalid - len(selection.problems[:_PROBLEMS_SHOWN])
    refused = "1 span" if selection.invalid == 1 else f"{selection.invalid} spans"
    return f"{refused} refused: {shown}" + (f"; and {more} more" if more > 0 else "")
