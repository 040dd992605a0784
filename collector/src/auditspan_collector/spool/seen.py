"""Tell what was sealed before from what is new: by sequence number where there is one, else by record id.

    queue -> SeenDraft.judge   the records, in the order of the commit
             SeenDraft.settle  what the commit changes, and what gives way
             SeenDraft.write   in the transaction of the batch
             SeenDraft.apply   in memory, once that is durable

A record whose sequence number can't be shown to be a retry is remembered by its content in the window, so that its own
retry is known for as long as that lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from auditspan_collector.pairs import KEY_BYTES
from auditspan_collector.sealing import pieces
from auditspan_collector.spool.sequences import Sequences
from auditspan_collector.spool.verdict import Verdict
from auditspan_collector.spool.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    import lmdb

    from auditspan_collector.record import Leaf, Leaves
    from auditspan_collector.spool.config import Config
    from auditspan_collector.spool.environment import Environment
    from auditspan_collector.spool.sequences import SequencesDraft
    from auditspan_collector.spool.window import WindowDraft


class Seen:
    """What was sealed, as far as it is remembered. Not thread-safe: the spool's lock guards it."""

    def __init__(self, config: Config, environment: Environment) -> None:
        """Empty; *load* fills it."""
        self._environment = environment
        self._window = Window(config.dedup_window_records)
        self._sequences = Sequences(config.dedup_sequences, config.sequence_chunks)

    def load(self, txn: lmdb.Transaction[bytes]) -> int:
        """Read it from the disk; returns how many records the window holds. Raises SpoolDamaged."""
        self._window.load(txn, self._environment.seen)
        self._sequences.load(txn, self._environment.sequences)
        return len(self._window)

    def draft(self) -> SeenDraft:
        """What one commit does to it."""
        return SeenDraft(
            self._environment,
            self._window.draft(),
            self._sequences.draft(self._digests) if self._sequences.most else None,
        )

    def _digests(self, key: bytes) -> bytes | None:
        return self._environment.read(lambda txn: txn.get(key, db=self._environment.digests))


class SeenDraft:
    """A commit's view of it."""

    def __init__(
        self, environment: Environment, window: WindowDraft, sequences: SequencesDraft | None
    ) -> None:
        """For *Seen.draft*."""
        self._environment = environment
        self._window = window
        self._sequences = sequences

    def judge(self, blocks: Iterable[Leaves]) -> tuple[list[int], list[tuple[int, Verdict]]]:
        """Which leaves of *blocks* are duplicates, by their place among all, and which are FORGOTTEN or a CONFLICT.

        Each is judged by what is remembered and by those before it; it is remembered unless it is a duplicate.
        """
        duplicates: list[int] = []
        flagged: list[tuple[int, Verdict]] = []
        place = 0
        for block in blocks:
            if not self._all_new(block):
                for at, leaf in enumerate(block, place):
                    verdict = self._judge(leaf)
                    if verdict is Verdict.DUPLICATE:
                        duplicates.append(at)
                    elif verdict is not Verdict.FRESH:
                        flagged.append((at, verdict))
            place += len(block)
        return duplicates, flagged

    def _all_new(self, block: Leaves) -> bool:
        """Whether all of *block* are new for sure, and then remember them: what nearly all requests come to, at once."""
        numbers = block.numbers
        if self._sequences is None or not any(numbers):
            keys = block.identities if any(numbers) else block.keys
            return self._window.remember_new(keys, block.identities)
        key = block.keys[:KEY_BYTES]
        if not all(numbers) or block.keys != key * len(block):
            return False
        return self._sequences.remember_next(key, numbers, pieces(block.identities, KEY_BYTES))

    def _judge(self, leaf: Leaf) -> Verdict:
        if not leaf.number or self._sequences is None:
            return self._window.judge(
                leaf.identity if leaf.number else leaf.key or leaf.identity, leaf.identity
            )
        verdict = self._sequences.judge(leaf.key, leaf.number, leaf.identity)
        if verdict is Verdict.FRESH or verdict is Verdict.DUPLICATE:
            return verdict
        again = self._window.judge(leaf.identity, leaf.identity) is Verdict.DUPLICATE
        return Verdict.DUPLICATE if again else verdict

    def settle(self, next_index: int) -> None:
        """Decide what changes; *next_index* is the ledger's after the commit."""
        if self._sequences is not None:
            self._sequences.settle(next_index)

    def write(self, txn: lmdb.Transaction[memoryview], first_index: int, remembered: int) -> int:
        """Write it; *remembered* is how many records the window holds, the result how many then. May run again."""
        if self._sequences is not None:
            self._sequences.write(txn, self._environment.sequences, self._environment.digests)
        return self._window.write(txn, self._environment.seen, first_index, remembered)

    def apply(self) -> None:
        """After the transaction is durable."""
        self._window.apply()
        if self._sequences is not None:
            self._sequences.apply()
