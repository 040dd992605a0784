"""See records as they are stored: in order, none twice, none missed.

A record is stored seconds after it began, or hours after when its collector could not reach the store, so no
clock says what is new. The ledger does. Each stream has one writer, which stores its records by rising index; a
stream is therefore read up to an index, the **cursor**, and everything above is new. At the start the cursors are
put at the ends of the streams there are; a stream that appears later is new from its first record.

Why none is missed: a cursor moves from *c* to *h* only when the rows that the store shows between them are all
there, *h - c* of them. Should it show a later one first (replicas fetch parts in parallel; ClickHouse
docs, "Data Replication"), the cursor waits while the rows that are there are already handed out. A gap that stays
open for *gap_patience_s* is one that nobody will fill (an operator's quarantine) and the cursor passes it.
Why none comes twice: rows above a waiting cursor are remembered by index until it passes them, and a copy of a
record in another collector's stream is recognized by its content.

One poll must be answered by one server: behind a load balancer that sends each query to another replica, the end of
a stream and its rows may come from two that don't agree.

What it costs: the ends of the streams are asked for with conditions that the minmax index on ledger_index prunes, and
a new stream is met by its record 0 in the same way. A look at the whole table finds what these can't (a new stream whose
first records an operator put aside, a stream that woke up among hundreds); it is repeated only as often as keeps
it below a fiftieth of the time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from auditspan_collector.query.copies import Copies
from auditspan_collector.query.filter import Conditions, conditions
from auditspan_collector.query.rows import SELECT, read_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.query.filter import Filter
    from auditspan_collector.query.rows import StoredRecord

GAP_PATIENCE_S: Final = 60.0
_MOST_ACTIVE: Final = 200  # streams asked for one by one; a query's parameters travel in its URL
_MOST_AHEAD: Final = 100_000  # rows remembered above a waiting cursor, over all of its stream
_LOOK_SHARE: Final = 50


@dataclass(slots=True)
class _Stream:
    cursor: int = -1  # every row up to here was handed out, or not wanted
    head: int = -1  # the highest index that the store showed
    handed_out: set[int] = field(default_factory=set)  # above the cursor
    gap_since: float | None = None
    moved: float = 0.0


class Follower:
    """Hand out what is new at each `poll`. Raises QueryError at once for a filter that can't be asked for.

    *clock* gives seconds that never go back.
    """

    def __init__(
        self,
        client: ClickHouseClient,
        wanted: Filter,
        *,
        gap_patience_s: float = GAP_PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        conditions(wanted)
        self._client = client
        self._wanted = wanted
        self._gap_patience_s = gap_patience_s
        self._clock = clock
        self._streams: dict[str, _Stream] = {}
        self._copies = Copies()
        self._next_look = 0.0
        self._look()
        for stream in self._streams.values():
            stream.cursor = stream.head

    def note(self, row: StoredRecord) -> None:
        """Take *row* as handed out, because a search showed it."""
        self._copies.seen(row)

    def poll(self) -> Iterator[StoredRecord]:
        """Yield what was stored since the last poll and is wanted, in the order of arrival at the collectors.

        Each poll must be read to its end: only then do the cursors move. When it raises StoreUnavailable, the
        next one goes on where this one stopped.
        """
        if self._clock() >= self._next_look:
            counts = self._look()
        else:
            self._meet()
            counts = self._heads(self._active())
        fresh = {name: self._streams[name] for name in counts}
        if fresh:
            for row in self._rows(fresh):
                stream = fresh[row.ledger_stream]
                if row.ledger_index in stream.handed_out:
                    continue
                stream.handed_out.add(row.ledger_index)
                if not self._copies.seen(row):
                    yield row
        for name, stream in fresh.items():
            self._settle(stream, counts[name])

    def _settle(self, stream: _Stream, count: int) -> None:
        now = self._clock()
        stream.moved = now
        if count < stream.head - stream.cursor:
            if stream.gap_since is None:
                stream.gap_since = now
            if now - stream.gap_since < self._gap_patience_s and len(stream.handed_out) < _MOST_AHEAD:
                return
        stream.cursor = stream.head
        stream.gap_since = None
        stream.handed_out.clear()

    def _active(self) -> list[str]:
        by_movement = sorted(self._streams, key=lambda name: self._streams[name].moved, reverse=True)
        return by_movement[:_MOST_ACTIVE]

    def _look(self) -> dict[str, int]:
        """Find the ends of all streams, new ones too; return how many rows each has above its cursor."""
        began = self._clock()
        found = Conditions()
        if self._streams:
            names = found.bind(list(self._streams), "Array(String)")
            cursors = found.bind([stream.cursor for stream in self._streams.values()], "Array(Int64)")
            found.require(
                f"toInt64(ledger_index) > transform(toString(ledger_stream), {names}, {cursors}, toInt64(-1))"
            )
        counts = self._count(found)
        now = self._clock()
        self._next_look = now + _LOOK_SHARE * (now - began)
        return counts

    def _meet(self) -> None:
        """Take up streams that are not known yet, by their first record."""
        found = Conditions()
        found.require("ledger_index = 0")
        if self._streams:
            found.require(f"ledger_stream NOT IN {found.bind(list(self._streams), 'Array(String)')}")
        sql = f"SELECT DISTINCT ledger_stream FROM records WHERE {found.sql}"  # noqa: S608 - constants and placeholders only
        for (name,) in self._client.rows(sql, found.parameters):
            # As if it had just moved: it is asked for from now on.
            self._streams[name] = _Stream(moved=self._clock())

    def _heads(self, names: list[str]) -> dict[str, int]:
        """Find the ends of the streams *names*; return how many rows each has above its cursor."""
        if not names:
            return {}
        found = Conditions()
        found.require(" OR ".join(self._above_cursor(found, name) for name in names))
        return self._count(found)

    def _count(self, found: Conditions) -> dict[str, int]:
        sql = (
            "SELECT ledger_stream, max(ledger_index), uniqExact(ledger_index) FROM records "  # noqa: S608 - constants and placeholders only
            f"WHERE {found.sql} GROUP BY ledger_stream"
        )
        counts: dict[str, int] = {}
        for name, head, count in self._client.rows(sql, found.parameters):
            self._streams.setdefault(name, _Stream()).head = head
            counts[name] = count
        return counts

    def _rows(self, fresh: dict[str, _Stream]) -> Iterator[StoredRecord]:
        found = conditions(self._wanted)
        bounds = []
        for name, stream in fresh.items():
            head = found.bind(stream.head, "UInt64")
            bounds.append(f"{self._above_cursor(found, name)} AND ledger_index <= {head}")
        found.require(" OR ".join(bounds))
        sql = (
            f"SELECT {SELECT} FROM records WHERE {found.sql} "  # noqa: S608 - as above
            "ORDER BY received_time, ledger_stream, ledger_index"
        )
        with self._client.query(sql, found.parameters) as result:
            yield from map(read_row, result)

    def _above_cursor(self, found: Conditions, name: str) -> str:
        stream = found.bind(name)
        cursor = found.bind(self._streams[name].cursor, "Int64")
        return f"ledger_stream = {stream} AND ledger_index > {cursor}"


def follow(
    client: ClickHouseClient,
    wanted: Filter,
    *,
    poll_s: float = 1.0,
    wait: Callable[[float], object] = time.sleep,
) -> Iterator[StoredRecord]:
    """Yield records from now on, for ever, as they are stored; looks every *poll_s* seconds, using *wait*."""
    follower = Follower(client, wanted)
    while True:
        yield from follower.poll()
        wait(poll_s)
