"""Remember what came of each sequence, so that a retry is known however many records of others came since.

A sequence is one emitter of one service under one credential, and its records are numbered from 1. Of each the
spool keeps a *mark* and, for the numbers from there on, which of them came and with what content: the gaps are the
numbers that did not. So a number can be asked for:

    never seen          the record is new
    seen, same content  it is a retry, and dropped
    seen, other content it is kept and flagged: a number is a claim, and whoever may speak for the service could
                        send numbers ahead to make the real records vanish
    below the mark      it is kept and flagged, since nobody can say any more what came under it

Contents are identities of 16 bytes, in *digests* by sequence and CHUNK numbers at a time, zeros where none came.
*sequences* holds each sequence's mark, its highest number, and which chunks it has: at most MAX_CHUNKS, the lowest giving
way and raising the mark. Chunks need not be neighbours, so one absurdly high number costs one chunk and nothing
else. Sequences and all their chunks are bounded in number; the one that went longest without a new record is
forgotten whole, and what is sent again of it is taken for new.

Memory holds the marks; contents are read only for a number that is not the sequence's highest yet, as a retry's is.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from itertools import chain
from operator import lt
from typing import TYPE_CHECKING, NamedTuple

from auditspan_collector.spool import values
from auditspan_collector.spool.verdict import Verdict

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterator

    import lmdb

IDENTITY_BYTES = 16
CHUNK = 120  # numbers; two chunks fill one of LMDB's pages of 4096 bytes
MAX_CHUNKS = 40

_STATE = struct.Struct(">QQQ")
_CHUNK_NUMBER = struct.Struct(">Q")
_NONE = bytes(IDENTITY_BYTES)


class Sequence(NamedTuple):
    """One sequence: numbers below *mark* are forgotten, *chunks* (ascending) are on disk.

    *used* is the ledger's index when it last had a new record.
    """

    mark: int = 0
    highest: int = 0
    used: int = 0
    chunks: tuple[int, ...] = ()

    def encode(self) -> bytes:
        """Three integers of 8 bytes and one a chunk."""
        return _STATE.pack(self.mark, self.highest, self.used) + struct.pack(
            f">{len(self.chunks)}Q", *self.chunks
        )

    @classmethod
    def decode(cls, value: bytes) -> Sequence:
        """Raises SpoolDamaged."""
        count, rest = divmod(len(value) - _STATE.size, _CHUNK_NUMBER.size)
        if rest or count < 0:
            raise values.damaged("a sequence", "it has an impossible length")
        mark, highest, used = _STATE.unpack_from(value)
        return cls(mark, highest, used, struct.unpack_from(f">{count}Q", value, _STATE.size))


class Sequences:
    """At most *most* sequences with *most_chunks* chunks in all. Not thread-safe: the spool's lock guards it."""

    def __init__(self, most: int, most_chunks: int) -> None:
        """Empty; *load* fills it."""
        self.most = most
        self.most_chunks = most_chunks
        self.known: OrderedDict[bytes, Sequence] = OrderedDict()  # the longest unused first
        self.chunks = 0

    def load(self, txn: lmdb.Transaction[bytes], sequences: lmdb._Database) -> None:
        """Read the marks from sub-database *sequences*. Raises SpoolDamaged."""
        found = []
        with txn.cursor(sequences) as cursor:
            for key, stored in cursor:
                found.append((key, Sequence.decode(values.unguard(key, stored, f"sequence {key.hex()}"))))
        found.sort(key=lambda item: item[1].used)
        self.known = OrderedDict(found)
        self.chunks = sum(len(each.chunks) for each in self.known.values())

    def draft(self, read: Callable[[bytes], bytes | None]) -> SequencesDraft:
        """What one commit does to them; *read* gives what is stored in *digests* under a key."""
        return SequencesDraft(self, read)


class Touched:
    """A sequence in a commit: *added* maps the numbers that are new to what came under them."""

    __slots__ = ("added", "before", "highest", "in_order", "read")

    def __init__(self, before: Sequence) -> None:
        self.before = before
        self.highest = before.highest
        self.in_order = True  # each number in *added* is higher than the one before
        self.added: dict[int, bytes] = {}
        self.read: dict[int, bytes] = {}


class SequencesDraft:
    """A commit's view: the sequences, and what the commit itself adds to them."""

    def __init__(self, sequences: Sequences, read: Callable[[bytes], bytes | None]) -> None:
        """For *Sequences.draft*."""
        self._sequences = sequences
        self._read = read
        self._touched: dict[bytes, Touched] = {}
        self._after: dict[bytes, Sequence] = {}
        self._evicted: list[bytes] = []
        self._chunks = sequences.chunks

    def judge(self, key: bytes, number: int, identity: bytes) -> Verdict:
        """What record *number* of the sequence *key* is; a FRESH one is remembered."""
        touched = self._touch(key)
        if number > touched.highest:
            touched.highest = number
            touched.added[number] = identity
            return Verdict.FRESH
        known = touched.added.get(number) or self._stored(key, touched, number)
        if known is not None:
            return Verdict.DUPLICATE if known == identity else Verdict.CONFLICT
        if number < touched.before.mark:
            return Verdict.FORGOTTEN
        touched.in_order = False
        touched.added[number] = identity
        return Verdict.FRESH

    def remember_next(self, key: bytes, numbers: array[int], identities: list[bytes]) -> bool:
        """Remember records of the sequence *key* when their *numbers* ascend and are above all before; else do nothing."""
        touched = self._touch(key)
        if numbers[0] <= touched.highest or not all(map(lt, numbers, numbers[1:])):
            return False
        touched.highest = numbers[-1]
        touched.added.update(zip(numbers, identities, strict=True))
        return True

    def _touch(self, key: bytes) -> Touched:
        """The sequence *key* in this commit."""
        touched = self._touched.get(key)
        if touched is None:
            touched = self._touched[key] = Touched(self._sequences.known.get(key) or Sequence())
        return touched

    def _stored(self, key: bytes, touched: Touched, number: int) -> bytes | None:
        chunk, place = divmod(number, CHUNK)
        if chunk not in touched.before.chunks:
            return None
        if chunk not in touched.read:
            touched.read[chunk] = _unguarded(_chunk_key(key, chunk), self._read)
        known = touched.read[chunk][place * IDENTITY_BYTES : (place + 1) * IDENTITY_BYTES]
        return None if known in {b"", _NONE} else known

    def settle(self, used: int) -> None:
        """Decide what is written, and which sequences give way; *used* is the ledger's index after the commit."""
        sequences = self._sequences
        for key, touched in self._touched.items():
            if touched.added:
                self._after[key] = _after(touched, used)
        count = len(sequences.known) + sum(key not in sequences.known for key in self._after)
        self._chunks = sequences.chunks + sum(
            len(after.chunks) - len(self._touched[key].before.chunks) for key, after in self._after.items()
        )
        # What this commit touches goes last, and only when it alone is too much.
        untouched = (key for key in sequences.known if key not in self._after)
        for key in chain(untouched, tuple(self._after)):
            if not self._over(count):
                break
            gone = self._after.pop(key, None) or sequences.known[key]
            count -= 1
            self._chunks -= len(gone.chunks)
            self._evicted.append(key)

    def _over(self, count: int) -> bool:
        return count > self._sequences.most or self._chunks > self._sequences.most_chunks

    def write(
        self, txn: lmdb.Transaction[memoryview], sequences: lmdb._Database, digests: lmdb._Database
    ) -> None:
        """Write what *settle* decided; may run again after a transaction that failed."""
        for key in self._evicted:
            before = self._sequences.known.get(key)
            if before is not None:
                txn.delete(key, db=sequences)
                for chunk in before.chunks:
                    txn.delete(_chunk_key(key, chunk), db=digests)
        for key, after in self._after.items():
            touched = self._touched[key]
            txn.put(key, values.guard(key, after.encode()), db=sequences)
            for chunk in touched.before.chunks:
                if chunk not in after.chunks:
                    txn.delete(_chunk_key(key, chunk), db=digests)
            _write_chunks(txn, digests, key, touched, after.chunks)

    def apply(self) -> None:
        """After the transaction is durable."""
        known = self._sequences.known
        for key in self._evicted:
            known.pop(key, None)
        for key, after in self._after.items():
            known[key] = after
            known.move_to_end(key)
        self._sequences.chunks = self._chunks


def _after(touched: Touched, used: int) -> Sequence:
    before = touched.before
    chunks = sorted({*before.chunks, *(number // CHUNK for number in touched.added)})
    mark = before.mark
    if len(chunks) > MAX_CHUNKS:
        mark = max(mark, (chunks[-MAX_CHUNKS - 1] + 1) * CHUNK)
        chunks = chunks[-MAX_CHUNKS:]
    return Sequence(mark, touched.highest, used, tuple(chunks))


def _write_chunks(
    txn: lmdb.Transaction[memoryview],
    digests: lmdb._Database,
    key: bytes,
    touched: Touched,
    chunks: tuple[int, ...],
) -> None:
    changed: dict[int, bytearray] = {}
    for first, identities in _runs(touched):
        for chunk in range(first // CHUNK, (first + len(identities) // IDENTITY_BYTES - 1) // CHUNK + 1):
            if chunk not in chunks:
                continue
            content = changed.get(chunk)
            if content is None:
                content = changed[chunk] = bytearray(_content(txn, digests, _chunk_key(key, chunk)))
            start = max(first, chunk * CHUNK)
            part = identities[
                (start - first) * IDENTITY_BYTES : ((chunk + 1) * CHUNK - first) * IDENTITY_BYTES
            ]
            at = (start - chunk * CHUNK) * IDENTITY_BYTES
            content.extend(bytes(max(0, at - len(content))))
            content[at : at + len(part)] = part
    for chunk, content in changed.items():
        chunk_key = _chunk_key(key, chunk)
        txn.put(chunk_key, values.guard(chunk_key, bytes(content)), db=digests)


def _runs(touched: Touched) -> Iterator[tuple[int, bytes]]:
    """What was added as (first number, identities of it and those that follow it)."""
    added = touched.added
    first = next(iter(added))
    if touched.in_order and touched.highest - first + 1 == len(added):
        yield first, b"".join(added.values())
    else:
        yield from added.items()


def _content(txn: lmdb.Transaction[memoryview], digests: lmdb._Database, key: bytes) -> bytes:
    stored = txn.get(key, db=digests)
    return b"" if stored is None else values.unguard(key, bytes(stored), _what(key))


def _chunk_key(key: bytes, chunk: int) -> bytes:
    return key + _CHUNK_NUMBER.pack(chunk)


def _unguarded(key: bytes, read: Callable[[bytes], bytes | None]) -> bytes:
    stored = read(key)
    if stored is None:
        raise values.damaged(_what(key), "they are missing")
    return values.unguard(key, stored, _what(key))


def _what(key: bytes) -> str:
    return f"remembered records of sequence {key[:-8].hex()}"
