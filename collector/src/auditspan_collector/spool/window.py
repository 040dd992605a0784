"""Remember the latest records by their ids, so that one that is sent again is known.

A key is a record id, its value the identity of the content that came under it. A record whose key is there with other
content is kept, and from then on also known by its identity as a key. So a key that somebody made up can never
make another's record vanish: what is dropped is always the same content as something that is kept.

The window is in memory, 66 to 132 bytes a record (17 MB for 250,000), and on disk in the order of commits: one entry a
commit, under the index of its first record. As keys of a B-tree they would cost two random pages a record.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from auditspan_collector.pairs import KEY_BYTES, Pairs, side_by_side
from auditspan_collector.spool import values
from auditspan_collector.spool.values import index_key, key_index
from auditspan_collector.spool.verdict import Verdict

if TYPE_CHECKING:
    import lmdb

_PAIR_BYTES = 2 * KEY_BYTES


class Window:
    """The latest *most* records; changed by *WindowDraft* only. Not thread-safe: the spool's lock guards it."""

    def __init__(self, most: int) -> None:
        """Empty; *load* fills it."""
        self.most = most
        self._secret = secrets.token_bytes(16)
        self._known = Pairs(self._secret)
        self._drafted = Pairs(self._secret)  # kept for its room

    def __len__(self) -> int:
        """Records that are remembered."""
        return len(self._known)

    def load(self, txn: lmdb.Transaction[bytes], seen: lmdb._Database) -> None:
        """Read what is on disk in sub-database *seen*. Raises SpoolDamaged."""
        self._known = Pairs(self._secret)
        with txn.cursor(seen) as cursor:
            for key, stored in cursor:
                self._take(_pairs(key, stored))

    def draft(self) -> WindowDraft:
        """What one commit does to it; there is one at a time."""
        self._drafted.clear()
        return WindowDraft(self, self._known, self._drafted)

    def apply(self, forgotten: list[bytes], added: list[bytes]) -> None:
        """Take over what a commit has written."""
        for pairs in forgotten:
            self._known.drop(pairs)
        if self.most:
            for pairs in added:
                self._take(pairs)

    def _take(self, pairs: bytes) -> None:
        if not self._known.add(pairs):  # an older entry has one of these keys: the later one counts
            for at in range(0, len(pairs), _PAIR_BYTES):
                pair = pairs[at : at + _PAIR_BYTES]
                self._known.drop(pair)
                self._known.add(pair)


class WindowDraft:
    """A commit's view: the window, and what the commit itself adds to it."""

    def __init__(self, window: Window, known: Pairs, added: Pairs) -> None:
        """For *Window.draft*."""
        self._window = window
        self._known = known
        self._added = added
        self._in_order: list[bytes] = []  # the same
        self._forgotten: list[bytes] = []

    def judge(self, key: bytes, identity: bytes) -> Verdict:
        """What a record with *key* and *identity* is; one that is to be kept is remembered."""
        known = self._lookup(key)
        if known is None:
            self._remember(key + identity)
            return Verdict.FRESH
        if known == identity:
            return Verdict.DUPLICATE
        other = self._lookup(identity)
        if other == identity:
            return Verdict.DUPLICATE
        if other is None:
            self._remember(identity + identity)
        return Verdict.CONFLICT

    def remember_new(self, keys: bytes, identities: bytes) -> bool:
        """Remember records when none has a key that came before, in here or among them; else do nothing.

        *keys* and *identities* are those of all, one behind the other.
        """
        pairs = side_by_side(keys, identities)
        return not self._known.has_any(pairs) and self._remember(pairs)

    def _remember(self, pairs: bytes) -> bool:
        added = self._added.add(pairs)
        if added:
            self._in_order.append(pairs)
        return added

    def _lookup(self, key: bytes) -> bytes | None:
        return self._known.get(key) or self._added.get(key)

    def write(
        self, txn: lmdb.Transaction[memoryview], seen: lmdb._Database, first_index: int, remembered: int
    ) -> int:
        """Write it under *first_index*, the oldest of *remembered* records giving way; returns how many there are then.

        May run again after a transaction that failed.
        """
        self._forgotten = []
        most = self._window.most
        excess = remembered + len(self._added) - most if most else remembered
        forgotten = 0
        with txn.cursor(seen) as cursor:
            while forgotten < excess and cursor.first():
                key, stored = cursor.item()
                pairs = _pairs(bytes(key), bytes(stored))
                self._forgotten.append(pairs)
                forgotten += len(pairs) // _PAIR_BYTES
                cursor.delete()
        remembered -= forgotten
        if most and self._added:
            entry = index_key(first_index)
            txn.put(entry, values.guard(entry, b"".join(self._in_order)), append=True, db=seen)
            remembered += len(self._added)
        return remembered

    def apply(self) -> None:
        """After the transaction is durable."""
        self._window.apply(self._forgotten, self._in_order)


def _pairs(key: bytes, stored: bytes) -> bytes:
    """Of one entry the key and the identity of each record, in turns."""
    return values.unguard(key, stored, f"remembered records from index {key_index(key)}")
