"""The append: give records their indexes in a stream and say what the stream is then.

Pure: nothing here is durable. Whoever keeps the batch must keep the ledger's new state with it, in one
transaction, or an index could be given twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from auditspan_collector.ledger.merkle import EMPTY_TREE
from auditspan_collector.record import SealedBatch
from auditspan_collector.schema import row_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan_collector.ledger.merkle import Frontier
    from auditspan_collector.record import Leaf


@dataclass(frozen=True, slots=True)
class LedgerState:
    """Where the ledger *stream* stands: the tree over all records sealed so far."""

    stream: str
    frontier: Frontier = EMPTY_TREE

    @property
    def next_index(self) -> int:
        """The index that the next record gets; also the number of records sealed."""
        return self.frontier.size


def append(state: LedgerState, leaves: Sequence[Leaf]) -> tuple[SealedBatch, LedgerState]:
    """Seal *leaves* (at least one) in their order: the batch of their rows, and the ledger after them."""
    first = state.next_index
    # A row is its head and the leaf's content; each content is copied once, by the join.
    heads = row_heads(state.stream, first, len(leaves))
    contents = [leaf.content for leaf in leaves]
    frontier = state.frontier.append([leaf.hash for leaf in leaves])
    batch = SealedBatch(
        stream=state.stream,
        first_index=first,
        count=len(leaves),
        rows=b"".join(chain.from_iterable(zip(heads, contents, strict=True))),
        root=frontier.root(),
        row_bytes=tuple([len(heads[0]) + len(content) for content in contents]),
    )
    return batch, LedgerState(state.stream, frontier)
