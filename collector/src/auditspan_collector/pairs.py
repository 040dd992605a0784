"""HOT PATH: a table of 16-byte keys and values in flat memory: 66 to 132 bytes a pair, by how full it is.

A dict of bytes takes more than twice as much (41 MB for 250,000, and these 17) and has objects to look after; most keys
are asked for once, to hear that they are new. This source runs in two forms with one result: as it stands, and compiled by Cython with the types that pairs.pxd
gives its variables; functions called auditspan_... are those of native.h, known to the compiled form only.

Pairs come and go side by side: key, value, key, value. Open addressing with linear probing; each slot has a tag, 0 when
it is free, else seven bits of the key's hash. Keys may be anybody's, so the hash has a secret.
"""

from __future__ import annotations

import struct
from typing import Final

_COMPILED: Final = not __file__.endswith(".py")

KEY_BYTES: Final = 16
_KEY: Final = KEY_BYTES
_PAIR: Final = 2 * KEY_BYTES
_AHEAD: Final = 8 * _PAIR  # how far ahead memory is asked for
_SLOTS: Final = 256  # to begin with; a power of two, as ever
_TAGGED: Final = 0x80
_TAG_SHIFT: Final = 57
_WORD: Final = (1 << 64) - 1


def side_by_side(keys: bytes, values: bytes) -> bytes:
    """The pairs of *keys* and *values*, each one behind the other. ValueError when these are not as many."""
    if len(keys) != len(values) or len(keys) % _KEY:
        raise ValueError(f"{len(keys)} bytes of keys, {len(values)} of values")
    if _COMPILED:
        pairs = auditspan_bytes(2 * len(keys))  # type: ignore[name-defined] # noqa: F821
        for at in range(0, len(keys), _KEY):
            auditspan_copy(pairs, 2 * at, keys, at, _KEY)  # type: ignore[name-defined] # noqa: F821
            auditspan_copy(pairs, 2 * at + _KEY, values, at, _KEY)  # type: ignore[name-defined] # noqa: F821
        return pairs  # type: ignore[no-any-return]
    return b"".join([keys[at : at + _KEY] + values[at : at + _KEY] for at in range(0, len(keys), _KEY)])


class Pairs:
    """A mapping of keys to values. Arguments called *pairs* are whole ones (`side_by_side`). Not thread-safe."""

    def __init__(self, secret: bytes) -> None:
        """Empty; *secret* is 16 random bytes."""
        self._first, self._second = struct.unpack("<QQ", secret)
        self._count = 0
        self._mask = _SLOTS - 1
        self._tags = bytearray(_SLOTS)
        self._held = bytearray(_SLOTS * _PAIR)

    def __len__(self) -> int:
        """How many keys there are."""
        return self._count

    def clear(self) -> None:
        """Forget all, and keep the room for as many."""
        self._count = 0
        self._tags = bytearray(self._mask + 1)

    def get(self, key: bytes) -> bytes | None:
        """The value of *key*, None when it is not there."""
        if len(key) != _KEY:
            raise ValueError(f"a key of {len(key)} bytes")
        slot = self._find(key, 0, self._mix(key, 0))
        if not self._tags[slot]:
            return None
        return bytes(self._held[slot * _PAIR + _KEY : (slot + 1) * _PAIR])

    def has_any(self, pairs: bytes) -> bool:
        """Whether one of the keys of *pairs* is there."""
        for at in range(0, len(pairs) - _PAIR + 1, _PAIR):
            self._foresee(pairs, at + _AHEAD)
            if self._tags[self._find(pairs, at, self._mix(pairs, at))]:
                return True
        return False

    def add(self, pairs: bytes) -> bool:
        """Add *pairs* when none of their keys is there or among them twice; else add none and return False."""
        for at in range(0, len(pairs) - _PAIR + 1, _PAIR):
            self._foresee(pairs, at + _AHEAD)
            if not self._put(pairs, at):
                for added in range(0, at, _PAIR):
                    self._drop(pairs, added)
                return False
        return True

    def drop(self, pairs: bytes) -> None:
        """Forget the keys of *pairs*, whatever their values."""
        for at in range(0, len(pairs) - _PAIR + 1, _PAIR):
            self._foresee(pairs, at + _AHEAD)
            self._drop(pairs, at)

    def _foresee(self, pairs: bytes, at: int) -> None:
        """Have the place of the key at *at*, if there is one, on its way from memory, where all but a few are.

        Measured with 250,000 pairs, asking for one, adding it and dropping another takes half the time with this.
        """
        if _COMPILED and at < len(pairs) - _PAIR + 1:
            slot = self._mix(pairs, at) & self._mask
            auditspan_prefetch(self._tags, slot)  # type: ignore[name-defined] # noqa: F821
            auditspan_prefetch(self._held, slot * _PAIR)  # type: ignore[name-defined] # noqa: F821

    def _find(self, keys: bytes | bytearray, at: int, mixed: int) -> int:
        """The slot of the key at *at*, which is *mixed*, or the free one where it belongs."""
        tag = _TAGGED | (mixed >> _TAG_SHIFT)
        slot = mixed & self._mask
        tags = self._tags
        held = self._held
        while tags[slot] and not (tags[slot] == tag and _same(held, slot * _PAIR, keys, at)):
            slot = (slot + 1) & self._mask
        return slot

    def _put(self, pairs: bytes, at: int) -> bool:
        """Add the pair at *at*; False when its key is there."""
        if 2 * (self._count + 1) > self._mask:
            self._grow()
        mixed = self._mix(pairs, at)
        slot = self._find(pairs, at, mixed)
        if self._tags[slot]:
            return False
        self._tags[slot] = _TAGGED | (mixed >> _TAG_SHIFT)
        _move(self._held, slot * _PAIR, pairs, at)
        self._count += 1
        return True

    def _drop(self, pairs: bytes, at: int) -> bool:
        """Forget the key at *at*; False when it is not there."""
        free = self._find(pairs, at, self._mix(pairs, at))
        if not self._tags[free]:
            return False
        self._count -= 1
        # Who was pushed on by the pair that leaves moves back, or it would not be found behind the free slot.
        slot = free
        while True:
            slot = (slot + 1) & self._mask
            if not self._tags[slot]:
                break
            home = self._mix(self._held, slot * _PAIR) & self._mask
            if (slot - home) & self._mask >= (slot - free) & self._mask:
                self._tags[free] = self._tags[slot]
                _move(self._held, free * _PAIR, self._held, slot * _PAIR)
                free = slot
        self._tags[free] = 0
        return True

    def _grow(self) -> None:
        tags = self._tags
        held = self._held
        slots = self._mask + 1
        # Both, before one of them counts: there may be no memory for the second.
        self._tags, self._held = bytearray(2 * slots), bytearray(2 * slots * _PAIR)
        self._mask = 2 * slots - 1
        for slot in range(slots):
            if tags[slot]:
                place = self._find(held, slot * _PAIR, self._mix(held, slot * _PAIR))
                self._tags[place] = tags[slot]
                _move(self._held, place * _PAIR, held, slot * _PAIR)

    def _mix(self, keys: bytes | bytearray, at: int) -> int:
        """64 bits of the key at *at* and the secret: both halves of a product."""
        if _COMPILED:
            return auditspan_mix(keys, at, self._first, self._second)  # type: ignore[name-defined,no-any-return] # noqa: F821
        low, high = struct.unpack_from("<QQ", keys, at)
        product: int = (low ^ self._first) * (high ^ self._second)
        return (product ^ (product >> 64)) & _WORD


def _same(held: bytearray, slot: int, keys: bytes | bytearray, at: int) -> bool:
    if _COMPILED:
        return auditspan_same_key(held, slot, keys, at)  # type: ignore[name-defined,no-any-return] # noqa: F821
    return held[slot : slot + _KEY] == keys[at : at + _KEY]


def _move(held: bytearray, to: int, pairs: bytes | bytearray, at: int) -> None:
    if _COMPILED:
        auditspan_copy(held, to, pairs, at, _PAIR)  # type: ignore[name-defined] # noqa: F821
    else:
        held[to : to + _PAIR] = pairs[at : at + _PAIR]
