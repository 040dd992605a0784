"""Bring what is on disk to ClickHouse: each range until it is stored, and never twice.

    prepare   the table is there; the store knows no index of our stream that we have yet to give
    read      the oldest range that is not released, after a short wait for company
    begin     the range is written to the spool, so that it keeps its bounds over a crash
    insert    under the token <stream>:<first>-<last>:<root>, which the server drops when it has it already
    release   the range leaves the spool

Crash argument. Before begin: nothing was sent; the next start reads afresh. Between begin and release: the next
start sends the same range under the same token, and the server drops what it has. After release: done. A start is
no different from going on; there is no recovery of its own.

A server remembers a limited number of tokens. A range that was first tried so long ago that other inserts may have
pushed its token out is asked for by stream and index, and only what is missing is sent.

Transient errors are retried for ever, with growing pauses; the backlog costs disk, not memory. Permanent ones stop
the drain until a person has acted: it loses nothing, says what to do, and goes on after `retry` or a restart.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta

from auditspan_collector import crashpoint
from auditspan_collector.columnar import Columns
from auditspan_collector.errors import AuditspanError, CommandRefused, SpoolDamaged, StoreRejected
from auditspan_collector.pipeline.insert import insert, insert_missing
from auditspan_collector.schema import NATIVE_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.record import SealedBatch
    from auditspan_collector.spool import InFlight, Spool

log = logging.getLogger(__name__)

State = Literal["running", "retrying", "stopped"]
T = TypeVar("T")

_ONE_LINE_PER_S: Final = 60.0
# What a person does about a permanent error, by ClickHouse's code.
_ADVICE: Final = {
    16: "The table has other columns than this version of Auditspan writes; use the version that made it",
    53: "The table has other types than this version of Auditspan writes; use the version that made it",
    60: "The table is gone; it is made again when the collector restarts",
    81: "The database is gone; it is made again when the collector restarts",
    164: "The user may only read; give clickhouse.user the right to INSERT",
    497: "Give clickhouse.user the missing right",
    516: "Check clickhouse.user and clickhouse.password",
}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``drain`` section.

    Attributes:
        max_rows: Records of one insert; ClickHouse likes few large ones.
        max_bytes: Size of one insert's rows; bounds the drain's memory to about four times this.
        linger_s: How long a record waits for company before it is inserted. Lower makes records visible sooner,
            and ClickHouse merge more parts.
        retry_min_s: The first pause after a transient error; it doubles from there.
        retry_max_s: The longest pause, and so how late the drain may notice that ClickHouse is back.
        token_memory_s: For how long ClickHouse surely remembers a deduplication token: its window of 10,000 inserts
            into the table, by all collectors, divided by their rate.

    """

    max_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    max_bytes: Annotated[int, Meta(ge=1 << 10)] = 16 << 20
    linger_s: Annotated[float, Meta(ge=0, le=60)] = 0.3
    retry_min_s: Annotated[float, Meta(gt=0, le=60)] = 0.2
    retry_max_s: Annotated[float, Meta(gt=0, le=3600)] = 15.0
    token_memory_s: Annotated[float, Meta(ge=0)] = 600.0


class DrainMetrics(Protocol):
    """What the drain counts; called from its thread, must not raise."""

    def inserted(self, *, records: int, elapsed_s: float) -> None:
        """A range is stored and released."""

    def retrying(self, error: AuditspanError, *, delay_s: float) -> None:
        """A try failed; the next comes after *delay_s*."""

    def stopped(self, error: BaseException) -> None:
        """Nothing is sent any more, until *resumed*."""

    def resumed(self) -> None:
        """The drain goes on after *stopped*."""


class NoDrainMetrics:
    """Counts nothing."""

    def inserted(self, *, records: int, elapsed_s: float) -> None:
        """Nothing."""

    def retrying(self, error: AuditspanError, *, delay_s: float) -> None:
        """Nothing."""

    def stopped(self, error: BaseException) -> None:
        """Nothing."""

    def resumed(self) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Status:
    """How the drain is: *error* is why it retries or is stopped."""

    state: State
    error: BaseException | None = None


class Drain:
    """The way out: `start` once; then it runs until `stop`, whatever happens."""

    def __init__(
        self,
        spool: Spool,
        client: ClickHouseClient,
        *,
        prepare: Callable[[], None],
        config: Config | None = None,
        metrics: DrainMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[threading.Event, float | None], object] = threading.Event.wait,
    ) -> None:
        """*prepare* makes sure that the table is there; it is called before the first insert, and tried again like one.

        *clock* is monotonic, *clock_ns* is the time since 1970; *wait* waits for an event, at most so many seconds.
        """
        self._spool = spool
        self._client = client
        self._native = Columns(NATIVE_COLUMNS)
        self._prepare = prepare
        self._config = config or Config()
        self._metrics: DrainMetrics = metrics or NoDrainMetrics()
        self._clock = clock
        self._clock_ns = clock_ns
        self._jitter = jitter
        self._wait = wait
        self._bell = (
            threading.Event()
        )  # rung by commits, retry and stop; cleared before looking, so none is missed
        self._retry_asked = False
        self._order: tuple[Callable[[BaseException], Any], Future[Any]] | None = None
        self._ordering = threading.Lock()  # guards the order
        self._stop_at: float | None = None
        self._prepared = self._checked = False
        self._failures = 0
        self._failing_since = self._logged_at = 0.0
        self._status = Status("running")
        # What is committed from here on is sent by us alone, so the store can't have it before.
        self._index_at_start = spool.next_index
        self._thread = threading.Thread(target=self._run, name="auditspan-drain", daemon=True)

    def start(self) -> None:
        """Start sending, as soon as ClickHouse is there."""
        self._spool.on_commit(self._bell.set)
        self._thread.start()

    @property
    def status(self) -> Status:
        """How it is now; readable from any thread."""
        return self._status

    def retry(self) -> State:
        """Go on: after a permanent error beginning with *prepare*, after a transient one without the rest of the pause.

        No effect while it runs. Returns what it did until now.
        """
        state = self._status.state
        self._retry_asked = True
        self._bell.set()
        return state

    def while_stopped(self, work: Callable[[BaseException], T]) -> T:
        """Have the drain's own thread do *work*, with what stopped it, and go on when that is done; returns its result.

        Raises CommandRefused unless a permanent error stopped the drain, and what *work* raises; then it stays stopped.
        """
        done: Future[T] = Future()
        with self._ordering:
            if self._status.state != "stopped" or self._stop_at is not None or self._order is not None:
                raise CommandRefused(
                    f"the drain is {self._status.state}, not stopped by an error that lasts; there is nothing to decide"
                )
            self._order = work, done
        self._bell.set()
        return done.result()

    def stop(self, timeout_s: float) -> bool:
        """Send what is left for up to *timeout_s*, then stop; True when nothing is left.

        The rest stays in the spool for the next start. A first failure ends it too: a server that is away does not
        hold up a shutdown.
        """
        self._stop_at = self._clock() + timeout_s
        self._bell.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return self._spool.backlog().records == 0

    # The thread

    def _run(self) -> None:
        while True:
            try:
                if not self._step():
                    return
            except AuditspanError as error:
                _let_go(error)
                going_on = self._pause(error) if error.retryable else self._halt(error)
                if not going_on:
                    return
            except Exception as error:
                log.exception("the drain failed")
                if not self._halt(error):
                    return

    def _step(self) -> bool:
        """One range; False when it is time to stop."""
        if not self._prepared:
            self._prepare()
            # Once: from then on the store has what we sent ourselves.
            if not self._checked:
                self._refuse_an_old_copy()
                self._checked = True
            self._prepared = True
        batch = self._next()
        if batch is None:
            return False
        started = self._clock()
        crashpoint.reach("drain.read")
        self._deliver(batch)
        crashpoint.reach("drain.released")
        self._recovered()
        self._metrics.inserted(records=batch.count, elapsed_s=self._clock() - started)
        return True

    def _refuse_an_old_copy(self) -> None:
        """A spool that was restored from a copy would give indexes again that the store has under other records."""
        found = self._client.rows(
            "SELECT max(ledger_index), count() FROM records "
            "WHERE ledger_stream = {stream:String} AND ledger_index >= {next:UInt64}",
            {"stream": self._spool.stream, "next": self._index_at_start},
        )
        highest, count = found[0]
        if count:
            problem = (
                f"ClickHouse has index {highest} of stream {self._spool.stream}, but the spool stands at index "
                f"{self._index_at_start}: its folder is an old copy. Stop the collector and move the folder away, "
                "which starts a new stream; keep it, it holds what was accepted since"
            )
            # What is accepted now would be sealed under indexes that are taken: senders keep it for a while instead.
            self._spool.refuse(f"the spool is an old copy: {problem}")
            raise SpoolDamaged(f"spool: {problem}")

    def _next(self) -> SealedBatch | None:
        """The next range, once enough came or the oldest has waited long enough; None when it is time to stop."""
        noticed: float | None = None
        while True:
            self._bell.clear()
            now, backlog = self._clock(), self._spool.backlog()
            stop_at = self._stop_at
            if stop_at is not None and (not backlog.records or now >= stop_at):
                return None
            if not backlog.records:
                self._wait(self._bell, None)
                continue
            noticed = now if noticed is None else noticed
            left = noticed + self._config.linger_s - now
            enough = backlog.records >= self._config.max_rows or backlog.bytes >= self._config.max_bytes
            if left <= 0 or enough or stop_at is not None or self._spool.in_flight() is not None:
                return self._spool.read(self._config.max_rows, self._config.max_bytes)
            self._wait(self._bell, left)

    def _deliver(self, batch: SealedBatch) -> None:
        tried_before = self._spool.in_flight() is not None
        in_flight = self._spool.begin_insert(batch)
        crashpoint.reach("drain.begun")
        if tried_before and self._may_be_forgotten(in_flight):
            insert_missing(self._client, batch)
        else:
            insert(self._client, batch, self._native)
        crashpoint.reach("drain.stored")
        self._spool.release(batch.last_index)

    def _may_be_forgotten(self, in_flight: InFlight) -> bool:
        age_ns = self._clock_ns() - in_flight.started_unix_ns
        # A first try in the future means that the clock was set back; how long ago it was can't be told.
        return not 0 <= age_ns < self._config.token_memory_s * 1e9

    # When it does not work

    def _pause(self, error: AuditspanError) -> bool:
        """Wait before the next try; False when it is time to stop instead."""
        if self._stop_at is not None:
            log.warning(
                "stopping with %s records left in the spool: %s", self._spool.backlog().records, error
            )
            return False
        now = self._clock()
        if not self._failures:
            self._failing_since = now
        longest = min(self._config.retry_max_s, self._config.retry_min_s * 2 ** min(self._failures, 30))
        delay_s = longest * (0.5 + 0.5 * self._jitter())
        if not self._failures or now - self._logged_at >= _ONE_LINE_PER_S:
            self._logged_at = now
            log.warning("records stay in the spool, next try in %.1f s: %s", delay_s, error)
        self._failures += 1
        self._status = Status("retrying", error)
        self._metrics.retrying(error, delay_s=delay_s)
        until = now + delay_s
        self._retry_asked = False
        while self._stop_at is None and not self._retry_asked and (left := until - self._clock()) > 0:
            self._bell.clear()
            if self._stop_at is None and not self._retry_asked:
                self._wait(self._bell, left)
        return True

    def _recovered(self) -> None:
        if self._failures:
            elapsed_s = self._clock() - self._failing_since
            log.info("records are stored again, after %d failures in %.0f s", self._failures, elapsed_s)
            self._failures = 0
            self._status = Status("running")

    def _halt(self, error: BaseException) -> bool:
        """Stop sending until *retry*; False when it is time to stop altogether."""
        advice = _ADVICE.get(error.code) if isinstance(error, StoreRejected) else None
        log.error(
            "STOPPED sending to ClickHouse: %s. %s. %d records stay in the spool, and new ones are taken until it is "
            "full; when that is mended: `auditspan spool retry`, or restart the collector",
            error,
            advice or "See the message of the store",
            self._spool.backlog().records,
        )
        self._retry_asked = False
        self._status = Status("stopped", error)
        self._metrics.stopped(error)
        while not self._retry_asked:
            self._bell.clear()
            if self._stop_at is not None:
                self._carry_out_order(CommandRefused("the collector is stopping; nothing was done"))
                return False
            if self._carry_out_order(error):
                break
            if not self._retry_asked:
                self._wait(self._bell, None)
        self._prepared = False
        self._failures = 0
        self._status = Status("running")
        self._metrics.resumed()
        log.info("sending again")
        return True

    def _carry_out_order(self, error: BaseException) -> bool:
        """Do what *while_stopped* was given, or fail it when *error* forbids; True when it was done."""
        with self._ordering:
            order, self._order = self._order, None
        if order is None:
            return False
        work, done = order
        if isinstance(error, CommandRefused):
            done.set_exception(error)
            return False
        try:
            result = work(error)
        except Exception as failure:  # noqa: BLE001 - it goes to whoever gave the order
            done.set_exception(failure)
            return False
        # Before the answer: whoever has it may give the next order.
        self._status = Status("running")
        done.set_result(result)
        return True


def _let_go(error: BaseException | None) -> None:
    """Forget what the calls held that *error* came through: a range each, in circles that only a collection would end."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
