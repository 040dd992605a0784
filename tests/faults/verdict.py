"""Judge what is left after a fault: compare what was acknowledged with what SQL finds in the store.

    missing    acknowledged and not stored
    twice      rows more than records; among several workers, more than one in a stream, or a copy in another stream
               of a record whose sender had an answer each time
    strange    stored, and never sent by anybody
    misplaced  stored under another index than the receipt says
    gaps       indexes of a stream, from 0 on, that no row has, or that two have
    roots      streams whose ledger root, from leaves that SQL computed anew from the stored columns, is not the
               one that the collector had sealed

All must be nothing. The last is the strongest: one bit of one column of one row, or two rows that changed places,
and the root is another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auditspan_collector.ledger.merkle import Frontier
from auditspan_collector.schema import leaf_sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from faults.fault_line import FaultLine, SpoolState
    from faults.senders import Senders


@dataclass(frozen=True)
class Verdict:
    """What was found; *ok* when nothing is wrong."""

    acknowledged: int
    stored: int
    missing: frozenset[str] = frozenset()
    twice: int = 0
    strange: int = 0
    misplaced: int = 0
    gaps: int = 0
    wrong_roots: tuple[str, ...] = ()
    left_in_spool: int = 0
    streams: int = 1
    copies: int = 0  # of records that were sent again without an answer, in the stream of another worker
    kept_aside: int = 0  # acknowledged, not stored, and whole in a spool that was moved away

    @property
    def faults(self) -> list[str]:
        """What is wrong, in words."""
        found = {
            "acknowledged and not stored": len(self.missing),
            "stored twice": self.twice,
            "stored and never sent": self.strange,
            "stored under another index than acknowledged": self.misplaced,
            "gaps in indexes": self.gaps,
            "ledger roots that SQL does not confirm": len(self.wrong_roots),
            "left in the spool": self.left_in_spool,
        }
        return [f"{count} {what}" for what, count in found.items() if count]

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass
class Stored:
    """Every row of the collector's table, copies included."""

    rows: list[tuple[str, int, str, bytes]] = field(default_factory=list)  # stream, index, record id, leaf

    def leaves(self, stream: str) -> list[bytes]:
        return [leaf for of, _, _, leaf in self.rows if of == stream]


def stored(line: FaultLine) -> Stored:
    """Read it, each leaf computed by the engine from what it stores."""
    found = line.rows(
        f"SELECT ledger_stream, ledger_index, toString(record_id), hex({leaf_sql()}) FROM {line.database}.{line.table} "
        "WHERE startsWith(ledger_stream, 'test/faults/') ORDER BY ledger_stream, ledger_index"
    )
    return Stored(
        [(stream, int(index), record, bytes.fromhex(leaf)) for stream, index, record, leaf in found]
    )


def finish(line: FaultLine, *, limit_s: float = 60) -> SpoolState:
    """Let the running collector send what it has, and stop it as an operator would."""
    return finish_workers(line, limit_s=limit_s)[0]


def finish_workers(line: FaultLine, *, limit_s: float = 60) -> list[SpoolState]:
    """The same, of a collector of several workers."""
    line.proxy.heal()
    line.wait_until_drained(limit_s=limit_s)
    assert line.end_collector() == 0, line.collector_log()
    return line.spools()


def judge(
    line: FaultLine, senders: Senders | Sequence[Senders], states: SpoolState | Sequence[SpoolState]
) -> Verdict:
    """*states* are the spools of all streams there were, as they ended."""
    groups = [senders] if not isinstance(senders, (list, tuple)) else senders
    spools = [states] if not isinstance(states, (list, tuple)) else states
    found = stored(line)
    count = Counter(record for _, _, record, _ in found.rows)
    acknowledged = {record for group in groups for each in group.acknowledged for record in each.record_ids}
    offered = set().union(*(group.offered for group in groups))
    copies = _copies(found, groups) if len(line.workers) > 1 else 0
    return Verdict(
        acknowledged=len(acknowledged),
        stored=len(found.rows),
        missing=frozenset(acknowledged - count.keys()),
        twice=count.total() - len(count) - copies,
        strange=len(count.keys() - offered),
        misplaced=_misplaced(found, groups),
        gaps=_gaps(found),
        wrong_roots=tuple(
            spool.stream
            for spool in spools
            if Frontier().append(b"".join(found.leaves(spool.stream))) != spool.frontier
        ),
        left_in_spool=sum(spool.backlog for spool in spools),
        streams=len({stream for stream, *_ in found.rows}),
        copies=copies,
    )


def _copies(found: Stored, groups: Sequence[Senders]) -> int:
    """Of records whose sender could not know whether they were kept: the streams that have them, less one."""
    uncertain = set().union(*(group.uncertain for group in groups))
    streams = defaultdict(set)
    for stream, _, record, _ in found.rows:
        streams[record].add(stream)
    return sum(len(of) - 1 for record, of in streams.items() if record in uncertain)


def _misplaced(found: Stored, groups: Sequence[Senders]) -> int:
    places = {(record, stream, index) for stream, index, record, _ in found.rows}
    present = {record for record, *_ in places}
    return sum(
        record in present and (record, *place) not in places
        for group in groups
        for each in group.acknowledged
        for record, place in (each.places() or {}).items()
    )


def _gaps(found: Stored) -> int:
    indexes = defaultdict(list)
    for stream, index, _, _ in found.rows:
        indexes[stream].append(index)
    # The symmetric difference counts what is missing; the rest, what is there twice.
    return sum(len(set(range(max(of) + 1)) ^ set(of)) + len(of) - len(set(of)) for of in indexes.values())
