"""Remember the latest records by their ids, so that one that is sent again is known.

A key is a record id, its value the identity of the content that came under it. A record whose key is there with other
content is kept, and from then on also known by its identity as a key. So a key that somebody made up can never
make another's record vanish: what is dropped is always the same content as something that is kept.

The window is in memory, 32 bytes a record and what Python adds, and on disk in the order of commits: one entry a
commit, under the index of its first record. As keys of a B-tree they would cost two random pages a record.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from auditspan_collector.sealing import pieces
from auditspan_collector.spool import values
from auditspan_collector.spool.values import index_key, key_index
from auditspan_collector.spool.verdict import Verdict

if TYPE_CHECKING:
    import lmdb

KEY_BYTES = 16  # and an identity's


class Window:
    """The latest *most* records; changed by *WindowDraft* only. Not thread-safe: the spool's lock guards it."""

    def __init__(self, most: int) -> None:
        """Empty; *load* fills it."""
        self.most = most
        self._known: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        """Records that are remembered."""
        return len(self._known)

    def load(self, txn: lmdb.Transaction[bytes], seen: lmdb._Database) -> None:
        """Read what is on disk in sub-database *seen*. Raises SpoolDamaged."""
        self._known = {}
        with txn.cursor(seen) as cursor:
            for key, stored in cursor:
                entry = _pieces(key, stored)
                self._known.update(zip(entry[::2], entry[1::2], strict=True))

    def draft(self) -> WindowDraft:
        """What one commit does to it."""
        return WindowDraft(self, self._known)

    def apply(self, forgotten: list[bytes], added: dict[bytes, bytes]) -> None:
        """Take over what a commit has written."""
        for key in forgotten:
            self._known.pop(key, None)
        if self.most:
            self._known.update(added)


class WindowDraft:
    """A commit's view: the window, and what the commit itself adds to it."""

    def __init__(self, window: Window, known: dict[bytes, bytes]) -> None:
        """For *Window.draft*."""
        self._window = window
        self._known = known
        self._added: dict[bytes, bytes] = {}
        self._forgotten: list[bytes] = []

    def judge(self, key: bytes, identity: bytes) -> Verdict:
        """What a record with *key* and *identity* is; one that is to be kept is remembered."""
        known = self._lookup(key)
        if known is None:
            self._added[key] = identity
            return Verdict.FRESH
        if known == identity:
            return Verdict.DUPLICATE
        other = self._lookup(identity)
        if other == identity:
            return Verdict.DUPLICATE
        if other is None:
            self._added[identity] = identity
        return Verdict.CONFLICT

    def remember_new(self, keys: list[bytes], identities: list[bytes]) -> bool:
        """Remember records when none has a *key* that came before, in here or among them; else do nothing."""
        if not (self._known.keys().isdisjoint(keys) and self._added.keys().isdisjoint(keys)):
            return False
        added = dict(zip(keys, identities, strict=True))
        if len(added) < len(keys):
            return False
        if self._added:
            self._added |= added
        else:
            self._added = added
        return True

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
        with txn.cursor(seen) as cursor:
            while len(self._forgotten) < excess and cursor.first():
                key, stored = cursor.item()
                self._forgotten += _pieces(bytes(key), bytes(stored))[::2]
                cursor.delete()
        remembered -= len(self._forgotten)
        if most and self._added:
            entry = index_key(first_index)
            value = b"".join(chain.from_iterable(self._added.items()))
            txn.put(entry, values.guard(entry, value), append=True, db=seen)
            remembered += len(self._added)
        return remembered

    def apply(self) -> None:
        """After the transaction is durable."""
        self._window.apply(self._forgotten, self._added)


def _pieces(key: bytes, stored: bytes) -> list[bytes]:
    """Of one entry the key and the identity of each record, in turns."""
    return pieces(values.unguard(key, stored, f"remembered records from index {key_index(key)}"), KEY_BYTES)
