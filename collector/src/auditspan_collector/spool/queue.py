"""The durable queue: seal and keep, hand out in order, forget once stored.

    commit   seals records; batch, ledger and what was seen go to disk in ONE transaction
    read     the next range, the same one until it is released
    begin_insert, in_flight   the range that ClickHouse may already have, remembered over a crash
    release  removes it

Sub-databases: *batches* maps a batch's first index to it; *meta* holds the format, the stream's ledger, the position and
the range in flight; *seen*, *sequences* and *digests* are what retries are recognised by, changed in the transaction
of the batch.

Crash argument: each method is one transaction. Memory follows the disk, never the other way round: it changes after
the commit, and is compared with the disk when a commit has failed.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from array import array
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditspan_collector import crashpoint
from auditspan_collector.errors import ConfigError, SpoolDamaged, SpoolFull
from auditspan_collector.ledger.log import LedgerState, append
from auditspan_collector.record import IndexRange, Leaves, SealedBatch
from auditspan_collector.schema import received_unix_ms
from auditspan_collector.spool import folder as spool_folder
from auditspan_collector.spool import values
from auditspan_collector.spool.config import check
from auditspan_collector.spool.environment import RETRY_AFTER_S, Environment
from auditspan_collector.spool.seen import Seen
from auditspan_collector.spool.values import Position, index_key, key_index

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import lmdb

    from auditspan_collector.spool.config import Config
    from auditspan_collector.spool.seen import SeenDraft
    from auditspan_collector.spool.values import InFlight, StoredBatch
    from auditspan_collector.spool.verdict import Verdict

log = logging.getLogger(__name__)

FORMAT = b"3"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit of *leaves* records came to: all but the *duplicates* were sealed, from index *first* on.

    *duplicates* were already there; they are given by their places among the leaves, as is *flagged*: the records that
    were kept although a record came under their key before, with whether its content is known to be another (CONFLICT)
    or FORGOTTEN. Both ascend.
    """

    stream: str
    first: int
    leaves: int
    duplicates: tuple[int, ...] = ()
    flagged: tuple[tuple[int, Verdict], ...] = ()

    @property
    def records(self) -> int:
        """How many were sealed."""
        return self.leaves - len(self.duplicates)

    @property
    def indexes(self) -> tuple[int | None, ...]:
        """One entry a leaf: its index, or None for a duplicate."""
        there, index = set(self.duplicates), count(self.first)
        return tuple([None if place in there else next(index) for place in range(self.leaves)])


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is not released yet: *records*, and the disk they take in *bytes*."""

    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A commit that is not released: its indexes, its rows' size, and when its first record was received."""

    range: IndexRange
    bytes: int
    received_unix_ms: int


class Spool:
    """A durable queue of sealed records in one folder; thread-safe.

    Two threads use it for long: one commits, one reads and releases. Methods raise SpoolDamaged when what is on disk
    is not what was written, and ShuttingDown after *close*.
    """

    @classmethod
    def open(
        cls,
        config: Config,
        deployment: str,
        collector: str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> Spool:
        """Open the spool at ``config.path``, creating it when it is missing.

        A new one draws a new stream ``<deployment>/<collector>/<16 hex digits>``; an existing one goes on with its
        own, whatever the names are now. Raises ConfigError, SpoolInUse, SpoolDamaged, SpoolFull.
        """
        for setting, name in (("deployment", deployment), ("name", collector)):
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"collector.{setting}: {name!r}; 1 to 128 letters, digits, dots, dashes, underscores"
                )
        for warning in check(config):
            log.warning("%s", warning)
        path = Path(config.path)
        spool_folder.prepare(path)
        lock = spool_folder.take(path)
        try:
            crashpoint.reach("spool.locked")
            environment = Environment(path, config.max_bytes)
            try:
                spool = cls(config, environment, lock, clock_ns)
                spool._start(f"{deployment}/{collector}/", random_bytes)
            except BaseException:
                environment.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        return spool

    def __init__(
        self, config: Config, environment: Environment, lock: int, clock_ns: Callable[[], int]
    ) -> None:
        """For *open*: takes over *environment* and the folder's *lock*."""
        self._config = config
        self._environment = environment
        self._lock: int | None = lock
        self._clock_ns = clock_ns
        self._changing = threading.Lock()  # guards the memory below, over a whole change
        self._ledger = LedgerState("")
        self._position = Position()
        self._in_flight: InFlight | None = None
        self._handed_out: int | None = None  # the last index of what was read and is not released
        self._seen = Seen(config, environment)
        self._refusal: str | None = None
        self._listeners: list[Callable[[], None]] = []

    # Start

    def _start(self, prefix: str, random_bytes: Callable[[int], bytes]) -> None:
        version = self._environment.read(lambda txn: self._meta(txn, b"format"))
        if version is None:
            # Nothing is acknowledged before this transaction, so a crash before it leaves no spool, not half of one.
            stream = prefix + random_bytes(8).hex()
            self._environment.write(lambda txn: self._create(txn, stream))
            crashpoint.reach("spool.created")
            spool_folder.make_durable(Path(self._config.path))
            log.info("new spool %s: stream %s", self._config.path, stream)
        elif version != FORMAT:
            raise values.damaged(
                "the format", f"it is {version!r}, this version of Auditspan reads {FORMAT!r}"
            )
        self._load()
        if not self.stream.startswith(prefix):
            log.warning(
                "spool %s goes on with its stream %s, not %s...", self._config.path, self.stream, prefix
            )

    def _create(self, txn: lmdb.Transaction[memoryview], stream: str) -> None:
        self._put_meta(txn, b"created", index_key(self._clock_ns()))
        self._put_meta(txn, b"ledger", values.encode_ledger(LedgerState(stream)))
        self._put_meta(txn, b"position", values.encode_position(Position()))
        self._put_meta(txn, b"format", FORMAT)
        crashpoint.reach("spool.creating")

    def _load(self) -> None:
        def look(txn: lmdb.Transaction[bytes]) -> None:
            self._ledger, self._position, self._in_flight = self._state(txn)
            remembered = self._seen.load(txn)
            if remembered != self._position.seen_records:
                raise values.damaged(
                    "the remembered records", f"{remembered}, not {self._position.seen_records}"
                )

        self._environment.read(look)

    def _state(self, txn: lmdb.Transaction[bytes]) -> tuple[LedgerState, Position, InFlight | None]:
        ledger, position = self._meta(txn, b"ledger"), self._meta(txn, b"position")
        if ledger is None or position is None:
            raise values.damaged("the ledger's state", "it is missing")
        in_flight = self._meta(txn, b"in_flight")
        return (
            values.decode_ledger(ledger),
            values.decode_position(position),
            None if in_flight is None else values.decode_in_flight(in_flight),
        )

    def _meta(self, txn: lmdb.Transaction[Any], key: bytes) -> bytes | None:
        stored = txn.get(key, db=self._environment.meta)
        return None if stored is None else values.unguard(key, stored, f"meta {key.decode()}")

    def _put_meta(self, txn: lmdb.Transaction[memoryview], key: bytes, value: bytes) -> None:
        txn.put(key, values.guard(key, value), db=self._environment.meta)

    # What is known without touching the disk

    @property
    def stream(self) -> str:
        """The ledger stream that this spool seals records into."""
        return self._ledger.stream

    @property
    def next_index(self) -> int:
        """The index that the next record gets."""
        return self._ledger.next_index

    @property
    def released_index(self) -> int:
        """The first index that is not released; all before it are in ClickHouse."""
        return self._position.released

    def backlog(self) -> Backlog:
        """What is committed and not released."""
        position = self._position
        return Backlog(self.next_index - position.released, position.batch_bytes)

    def in_flight(self) -> InFlight | None:
        """The range that was begun and not released, over a restart too."""
        return self._in_flight

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Have *listener* called after each commit that added records, in the committing thread; it must be quick."""
        self._listeners.append(listener)

    # Before the durability line

    def commit(self, blocks: Sequence[Leaves]) -> Committed:
        """Seal the leaves of *blocks* in their order and keep them; on return they survive power loss.

        A leaf whose content is remembered under its key, or came earlier in *blocks*, is a duplicate and is not sealed
        again. One whose key is remembered with other content is sealed and flagged.
        Raises SpoolFull (transient) with nothing kept, and the spool as usable as before.
        """
        with self._changing:
            if self._refusal is not None:
                raise SpoolFull(self._refusal, retry_after_s=60.0)
            draft = self._seen.draft()
            duplicates, flagged = draft.judge(blocks)
            committed = Committed(
                self.stream, self.next_index, sum(map(len, blocks)), tuple(duplicates), tuple(flagged)
            )
            if not committed.records:
                return committed
            batch, ledger = append(self._ledger, _without(blocks, duplicates) if duplicates else blocks)
            value = values.encode_batch(batch)
            self._refuse_over_capacity(len(value))
            draft.settle(ledger.next_index)
            try:
                position = self._environment.write(
                    lambda txn: self._keep(txn, batch.first_index, value, draft, ledger)
                )
            except BaseException:
                self._compare_with_disk()
                raise
            # First what is known of the records: should anything below fail, their retry is recognised.
            self._ledger, self._position = ledger, position
            draft.apply()
            # Looking for a place in the tree maps 16 pages around each one touched; measured, an eighth of what is written.
            self._environment.touched(len(value) // 8)
        for listener in self._listeners:
            listener()
        return committed

    def _keep(
        self,
        txn: lmdb.Transaction[memoryview],
        first: int,
        value: bytes,
        draft: SeenDraft,
        ledger: LedgerState,
    ) -> Position:
        key = index_key(first)
        position = self._position
        if not txn.put(key, value, append=True, db=self._environment.batches):
            # The disk kept a commit that it reported as failed. Nothing goes over it: its records may be acknowledged.
            raise SpoolFull(
                f"spool {self._config.path}: the disk has more than was known here; it is read anew",
                retry_after_s=RETRY_AFTER_S,
            )
        position = replace(
            position,
            batch_bytes=position.batch_bytes + self._environment.disk_bytes(len(value)),
            seen_records=draft.write(txn, first, position.seen_records),
        )
        self._put_meta(txn, b"ledger", values.encode_ledger(ledger))
        self._put_meta(txn, b"position", values.encode_position(position))
        crashpoint.reach("commit.written")
        return position

    def _refuse_over_capacity(self, value_bytes: int) -> None:
        used = self._position.batch_bytes
        if used + self._environment.disk_bytes(value_bytes) > self._config.capacity_bytes:
            raise SpoolFull(
                f"spool {self._config.path} is full: {used} of {self._config.capacity_bytes} bytes wait for "
                "ClickHouse; it empties when ClickHouse takes records again, or raise spool.max_bytes",
                retry_after_s=RETRY_AFTER_S,
            )

    def _compare_with_disk(self) -> None:
        """After a failed write: LMDB says nothing was kept, but a disk that failed may know better."""
        ledger = self._environment.read(self._state)[0]
        if ledger != self._ledger:
            self._load()

    def refuse(self, reason: str) -> None:
        """Take no more records until restarted; each *commit* raises SpoolFull (transient) with *reason*."""
        self._refusal = reason

    # After the durability line

    def read(self, max_rows: int, max_bytes: int) -> SealedBatch | None:
        """The oldest records that are not released, as one batch; None when there are none.

        Whole commits, as many as fit in *max_rows* and *max_bytes* of rows, at least one. While a range is in
        flight exactly that, so that its deduplication token fits.
        """
        first, in_flight = self._position.released, self._in_flight
        if first == self.next_index:
            return None
        parts: list[StoredBatch] = []

        def look(txn: lmdb.Transaction[memoryview]) -> SealedBatch:
            rows = size = 0
            try:
                for batch in self._batches(txn, first):
                    rows, size = rows + batch.count, size + len(batch.rows)
                    if in_flight is None and parts and (rows > max_rows or size > max_bytes):
                        break
                    parts.append(batch)
                    if in_flight is not None and batch.last_index >= in_flight.range.last:
                        break
            except SpoolDamaged:
                # What lies before the damage can still go out; the next read meets it first.
                if not parts or in_flight is not None:
                    raise
            return self._merge(first, parts)

        merged = self._environment.read_in_place(look)
        self._environment.touched(len(merged.rows))
        if in_flight is not None and (merged.last_index, merged.root) != (
            in_flight.range.last,
            in_flight.root,
        ):
            raise values.damaged("the range in flight", "it is not what the batches hold")
        self._handed_out = merged.last_index
        return merged

    def waiting(self, most: int) -> tuple[Waiting, ...]:
        """The oldest *most* commits that are not released; from any thread."""

        def look(txn: lmdb.Transaction[memoryview]) -> tuple[Waiting, ...]:
            # Not the position in memory: another thread may be releasing.
            position = self._meta(txn, b"position")
            if position is None:
                raise values.damaged("the position", "it is missing")
            first = values.decode_position(position).released
            return tuple(
                Waiting(
                    IndexRange(batch.first_index, batch.last_index),
                    len(batch.rows),
                    received_unix_ms(batch.rows[: batch.row_bytes[0]]),
                )
                for batch in islice(self._batches(txn, first), most)
            )

        return self._environment.read_in_place(look)

    def _batches(self, txn: lmdb.Transaction[memoryview], first: int) -> Iterator[StoredBatch]:
        """From *first* on, checked to follow each other."""
        expected = first
        with txn.cursor(self._environment.batches) as cursor:
            found = cursor.first()
            while found:
                key, stored = cursor.item()
                what = f"batch at index {key_index(key)}"
                batch = values.decode_batch(key, stored, what)
                if not key_index(key) == batch.first_index == expected or batch.stream != self.stream:
                    raise values.damaged(what, f"index {expected} of {self.stream} should be here")
                expected += batch.count
                yield batch
                found = cursor.next()

    def _merge(self, first: int, parts: list[StoredBatch]) -> SealedBatch:
        """*parts*, which follow each other, as one; copies their rows."""
        if not parts:
            raise values.damaged(f"batch at index {first}", "it is missing")
        return SealedBatch(
            stream=self.stream,
            first_index=first,
            count=sum(part.count for part in parts),
            rows=b"".join([part.rows for part in parts]),
            root=parts[-1].root,
            row_bytes=array("I", b"".join([part.row_bytes for part in parts])),
        )

    def begin_insert(self, batch: SealedBatch) -> InFlight:
        """Remember, before it is first sent, that *batch* (what *read* gave) is on its way; survives power loss.

        A range that is in flight already keeps the time of its first try.
        """
        wanted = IndexRange(batch.first_index, batch.last_index)
        with self._changing:
            if self._in_flight is not None:
                if self._in_flight.range != wanted:
                    raise ValueError(f"{self._in_flight.range} is in flight, not {wanted}")
                return self._in_flight
            in_flight = values.InFlight(wanted, batch.root, self._clock_ns())
            self._environment.write(lambda txn: self._begin(txn, in_flight), frees=True)
            self._in_flight = in_flight
            return in_flight

    def _begin(self, txn: lmdb.Transaction[memoryview], in_flight: InFlight) -> None:
        self._put_meta(txn, b"in_flight", values.encode_in_flight(in_flight))
        crashpoint.reach("drain.begin")

    def release(self, last_index: int) -> None:
        """Forget everything up to *last_index*, the end of what *read* gave: ClickHouse has it.

        Once durable, nothing of it is sent again. Works on a full spool and disk space permitting.
        """
        with self._changing:
            if last_index != self._handed_out:
                raise ValueError(f"index {last_index} is not the end of the range that was read")
            self._position = self._environment.write(lambda txn: self._remove(txn, last_index), frees=True)
            self._in_flight = self._handed_out = None

    def _remove(self, txn: lmdb.Transaction[memoryview], last: int) -> Position:
        freed = 0
        with txn.cursor(self._environment.batches) as cursor:
            while cursor.first() and key_index(cursor.key()) <= last:
                freed += self._environment.disk_bytes(len(cursor.value()))
                cursor.delete()
        position = replace(self._position, released=last + 1, batch_bytes=self._position.batch_bytes - freed)
        self._put_meta(txn, b"position", values.encode_position(position))
        txn.delete(b"in_flight", db=self._environment.meta)
        crashpoint.reach("drain.release")
        return position

    def close(self) -> None:
        """Give the folder free; may be called again. What is committed stays."""
        self._environment.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _without(blocks: Sequence[Leaves], places: Sequence[int]) -> list[Leaves]:
    """The leaves of *blocks* but for those at *places*."""
    left_out = set(places)
    leaves = (leaf for block in blocks for leaf in block)
    return [Leaves.of([leaf for place, leaf in enumerate(leaves) if place not in left_out])]
