"""The append: give records their indexes in a stream and say what the stream is then.

Pure: nothing here is durable. Whoever keeps the batch must keep the ledger's new state with it, in one
transaction, or an index could be given twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditspan_collector import sealing
from auditspan_collector.ledger.merkle import EMPTY_TREE
from auditspan_collector.record import SealedBatch
from auditspan_collector.schema import row_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan_collector.ledger.merkle import Frontier
    from auditspan_collector.record import Leaves


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Where the ledger *stream* stands: the tree over all records sealed so far."""

    stream: str
    frontier: Frontier = EMPTY_TREE

    @property
    def next_index(self) -> int:
        """The index that the next record gets; also the number of records sealed."""
        return self.frontier.size


def append(state: LedgerState, blocks: Sequence[Leaves]) -> tuple[SealedBatch, LedgerState]:
    """Seal the leaves of *blocks* (at least one) in their order: the batch of their rows, and the ledger after them."""
    first = state.next_index
    rows, row_bytes = sealing.rows(row_prefix(state.stream), first, blocks)
    frontier = state.frontier.append(b"".join([block.hashes for block in blocks]))
    batch = SealedBatch(state.stream, first, len(row_bytes), rows, frontier.root(), row_bytes)
    return batch, LedgerState(state.stream, frontier)
