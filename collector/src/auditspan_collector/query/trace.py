"""One action across every service it touched: the records of a trace as a tree.

A record hangs below the nearest audited span upstream, which its service wrote down (``audit.parent.span_id``,
whole across services even when every ordinary span in between was dropped); else below its ordinary parent span
when that one is a record; else it is a root. What a sender writes may be wrong or hostile: a parent that is not
there leaves the record at the top, marked; a circle is cut at its earliest record, marked; a span id used twice keeps
both records. No record of the trace is ever left out of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from auditspan_collector.errors import NotFound, QueryError
from auditspan_collector.query.copies import Copies
from auditspan_collector.query.filter import Conditions, trace_condition
from auditspan_collector.query.rows import SELECT, read_row
from auditspan_collector.query.times import format_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.query.filter import Parameters
    from auditspan_collector.query.rows import StoredRecord

MAX_RECORDS: Final = 10_000
_CANDIDATES_SHOWN: Final = 5
_NO_SPAN: Final = bytes(8)

Place = Literal["root", "child", "orphan", "cycle"]


@dataclass(slots=True, eq=False)
class Node:
    """A record in the tree, with those below it by start time.

    *place* says why it stands where it does: a root has no audited span above it; an orphan names one that is
    not in the store (not arrived, or lost); a cycle was cut here. *depth* is 0 at the top.
    """

    stored: StoredRecord
    place: Place = "root"
    depth: int = 0
    children: list[Node] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class Trace:
    """All records of one trace. *complete* is False when it has more than were asked for."""

    trace_id: bytes
    roots: tuple[Node, ...]
    complete: bool = True

    def walk(self) -> Iterator[Node]:
        """Every node, parents before children, in the order of display. Safe at any depth."""
        waiting = list(reversed(self.roots))
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))

    @property
    def start_ns(self) -> int:
        """When the first record began, nanoseconds since 1970."""
        return min(node.stored.record.start_time_unix_ns for node in self.walk())

    @property
    def end_ns(self) -> int:
        """When the last record ended."""
        return max(
            node.stored.record.start_time_unix_ns + node.stored.record.duration_ns for node in self.walk()
        )


def trace(client: ClickHouseClient, trace_id: str, *, most: int = MAX_RECORDS) -> Trace:
    """The trace whose id begins with the hex digits *trace_id* (6 to 32), up to *most* records.

    Raises QueryError when the digits are no beginning of a trace id, or of several traces (the message names
    them); NotFound when no record has one; StoreUnavailable and StoreRejected as the client does.
    """
    sql, parameters = trace_query(trace_id, most=most)
    rows = [read_row(row) for row in client.rows(sql, parameters)]
    if not rows:
        raise NotFound(
            f"no record has a trace id that begins with {trace_id}; it may not have arrived yet, or the trace "
            "has no audited span"
        )
    if len({row.record.trace_id for row in rows}) > 1:
        raise QueryError(_ambiguous(client, trace_id))
    copies = Copies(most=len(rows))
    kept = [row for row in rows if not copies.seen(row)]
    return Trace(rows[0].record.trace_id, build_tree(kept[:most]), complete=len(rows) <= most)


def trace_query(trace_id: str, *, most: int) -> tuple[str, Parameters]:
    """The SQL that reads up to *most* records of the traces that begin so, and one more, and its parameters."""
    found = Conditions()
    found.require(trace_condition(found, trace_id))
    limit = found.bind(most + 1, "UInt64")
    sql = (
        f"SELECT {SELECT} FROM records WHERE {found.sql} "  # noqa: S608 - constants and placeholders only
        f"ORDER BY start_time, ledger_stream, ledger_index LIMIT {limit}"
    )
    return sql, found.parameters


def build_tree(rows: Iterable[StoredRecord]) -> tuple[Node, ...]:
    """The roots of the tree that *rows*, records of one trace, make. Linear in their number; no recursion."""
    nodes = [Node(row) for row in sorted(rows, key=_by_start)]
    spans = _Spans(nodes)
    parents: dict[Node, Node] = {}
    for node in nodes:
        parent = spans.parent(node)
        if parent is not None:
            parents[node] = parent
            node.place = "child"
        elif node.stored.record.audit_parent_span_id != _NO_SPAN:
            node.place = "orphan"
    _cut_cycles(nodes, parents)
    for node in nodes:
        if (parent := parents.get(node)) is not None:
            parent.children.append(node)
    roots = tuple(node for node in nodes if node not in parents)
    for node in Trace(b"", roots).walk():
        for child in node.children:
            child.depth = node.depth + 1
    return roots


def _by_start(row: StoredRecord) -> tuple[int, str, int]:
    return row.record.start_time_unix_ns, row.ledger_stream, row.ledger_index


class _Spans:
    """Find the node of a span id.

    Trace and span ids are the sender's to choose, so one of the same tenant wins: another tenant's record must not
    take a child away.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        # Two for each key, because a node is not its own parent; more would make hostile repeats quadratic.
        self._found: dict[tuple[str | None, bytes], list[Node]] = {}
        for node in nodes:
            record = node.stored.record
            for key in ((record.tenant, record.span_id), (None, record.span_id)):
                known = self._found.setdefault(key, [])
                if len(known) < 2:
                    known.append(node)

    def parent(self, node: Node) -> Node | None:
        """The record that *node* hangs below, None when it is not here."""
        record = node.stored.record
        for span_id in (record.audit_parent_span_id, record.parent_span_id):
            if span_id == _NO_SPAN:
                continue
            for key in ((record.tenant, span_id), (None, span_id)):
                for found in self._found.get(key, ()):
                    if found is not node:
                        return found
        return None


def _cut_cycles(nodes: list[Node], parents: dict[Node, Node]) -> None:
    """Remove one edge from each circle of *parents*, at its earliest record; *nodes* are by start time."""
    settled: set[Node] = set()
    for start in nodes:
        path: dict[Node, None] = {}
        node: Node | None = start
        while node is not None and node not in settled and node not in path:
            path[node] = None
            node = parents.get(node)
        if node is not None and node in path:
            circle = list(path)[list(path).index(node) :]
            first = min(circle, key=lambda member: _by_start(member.stored))
            del parents[first]
            first.place = "cycle"
        settled.update(path)


def _ambiguous(client: ClickHouseClient, prefix: str) -> str:
    found = Conditions()
    found.require(trace_condition(found, prefix))
    limit = found.bind(_CANDIDATES_SHOWN + 1, "UInt64")
    sql = (
        "SELECT lower(hex(trace_id)), toUnixTimestamp64Nano(min(start_time)), count() FROM records "  # noqa: S608 - as above
        f"WHERE {found.sql} GROUP BY trace_id ORDER BY min(start_time) DESC LIMIT {limit}"
    )
    candidates = [
        f"{trace_id} ({format_time(start_ns)} UTC, {count} record{'s' * (count > 1)})"
        for trace_id, start_ns, count in client.rows(sql, found.parameters)
    ]
    more = "; and more" if len(candidates) > _CANDIDATES_SHOWN else ""
    return f"several traces begin with {prefix}; give more digits: {'; '.join(candidates[:_CANDIDATES_SHOWN])}{more}"
