"""The audit attributes of one record: as a mapping for its ordinary span, and as bytes for the record itself.

Actors and actions come back again and again, so both forms of each are kept; what is new in every record is its id,
its target's id and its place in the sequence.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import time
from binascii import hexlify
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from auditspan import attributes as names
from auditspan.pseudonyms import key_id
from auditspan.wire import SpanEncoder, varint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opentelemetry.util.types import AnyValue

    from auditspan.context import Actor, AuditedSpan, Facts

_attribute: Final = SpanEncoder().attribute
_TARGET_ID: Final = names.TARGET_ID


class Told:
    """What the record of *state* says with *facts* under *actor*, but for its place in the sequence."""

    __slots__ = ("_parts", "encoded", "facts", "said")

    def __init__(self, state: AuditedSpan, found: Facts, facts: Facts, actor: Actor) -> None:
        """*facts* is what may be shown of those that were *found*."""
        self.facts = found
        self.said = state.actor
        record_id = state.record_id = state.record_id or uuid7()
        # Field by field, for the cache then compares them without a line of Python.
        by_actor, actor_bytes = _of_actor(
            actor.id, actor.origin, actor.type, actor.roles, actor.session, actor.auth_method, actor.delegate
        )
        by_action, action_bytes = _of_action(facts.action, facts.outcome, facts.reason, facts.target_type)
        target_id = facts.target_id
        encoded = action_bytes + actor_bytes + _RECORD_ID_HEAD + record_id
        if target_id:
            raw = target_id.encode("utf-8", "replace")
            size = len(raw)
            encoded += _TARGET_ID_HEADS[size] + raw if size < _SHORT_ID else _attribute(_TARGET_ID, target_id)
        upstream = state.upstream
        parent = state.parent_record() if state.parent is not None else upstream.parent_span_id
        if parent:
            encoded += _attribute(names.PARENT_SPAN_ID, parent)
        if upstream.rejected:
            encoded += _attribute(names.CONTEXT_REJECTED, upstream.rejected)
        self.encoded = encoded
        self._parts = (by_actor, by_action, record_id, target_id, parent, upstream.rejected)

    def mapping(self) -> dict[str, AnyValue]:
        """The attributes."""
        by_actor, by_action, record_id, target_id, parent, rejected = self._parts
        attributes = {**by_action, **by_actor, names.RECORD_ID: record_id.decode()}
        if target_id:
            attributes[_TARGET_ID] = target_id
        if parent:
            attributes[names.PARENT_SPAN_ID] = parent
        if rejected:
            attributes[names.CONTEXT_REJECTED] = rejected
        return attributes


class Sequence:
    """The places of one stream's records, as the attributes that say so. Thread-safe."""

    def __init__(self, stream: str) -> None:
        self._next = count(1).__next__  # of two threads, none gets the other's number
        self._unused: list[int] = []  # left out, they would look like losses
        heads = [_attribute(names.SEQUENCE_NUMBER, 1 << 7 * size)[: -size - 1] for size in range(10)]
        self._heads = [_attribute(names.SEQUENCE_STREAM, stream) + head for head in heads]

    def next(self) -> int:
        """The next number, from 1."""
        if self._unused:
            with contextlib.suppress(IndexError):  # another thread was faster
                return self._unused.pop()
        return self._next()

    def give_back(self, number: int) -> None:
        """Let *number*, which nothing came of, be the next record's."""
        self._unused.append(number)

    def place(self, number: int) -> bytes:
        """The attributes that say *number*."""
        encoded = varint(number)
        return self._heads[len(encoded) - 1] + encoded


def uuid7() -> bytes:
    """A UUID of version 7 (RFC 9562 section 5.7): 48 bits of milliseconds, then random bits; 36 characters."""
    if _record_id is not None:
        written: bytes = _record_id(time.time_ns(), _random_bits(12), _random_bits(62))
        return written
    number = time.time_ns() // 1_000_000 << 80 | _random_bits(80)
    number = number & _NOT_FIXED | _VERSION_AND_VARIANT
    return b"-".join(_groups(hexlify(number.to_bytes(16))))


# Ids must differ, not be secret; asking the system for each takes four times as long. Our own, so that an application
# that seeds the common one does not make ours repeat; a forked child begins with another seed.
_random: Final = random.Random()  # noqa: S311 - see above
_random_bits: Final = _random.getrandbits
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)
_NOT_FIXED: Final = (1 << 128) - 1 & ~(0xF << 76) & ~(0x3 << 62)
_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0x2 << 62
_groups: Final = struct.Struct("8s4s4s4s12s").unpack

_record_id: Any = None
with contextlib.suppress(ImportError):  # installed where there was no compiler
    from auditspan._packing import record_id as _record_id

_Part = tuple["Mapping[str, AnyValue]", bytes]


@lru_cache(maxsize=1024)
def _of_actor(  # noqa: PLR0917 - positions are what makes it cheap
    actor_id: str,
    origin: str,
    kind: str,
    roles: tuple[str, ...],
    session: str,
    auth_method: str,
    delegate: str,
) -> _Part:
    return _part(
        {
            names.ACTOR_ID: actor_id,
            names.ACTOR_ORIGIN: origin,
            names.ACTOR_TYPE: kind if actor_id != names.UNKNOWN else "",
            names.ACTOR_ROLES: roles,
            names.ACTOR_SESSION: session,
            names.ACTOR_AUTH_METHOD: auth_method,
            names.ACTOR_DELEGATE: delegate,
            names.ACTOR_KEY_ID: key_id(actor_id),
        }
    )


@lru_cache(maxsize=1024)
def _of_action(action: str, outcome: str, reason: str, target_type: str) -> _Part:
    return _part(
        {
            names.SCHEMA_VERSION: names.SCHEMA_VERSION_VALUE,
            names.ACTION: action,
            names.OUTCOME: outcome,
            names.REASON: reason,
            names.TARGET_TYPE: target_type,
        }
    )


def _part(attributes: dict[str, AnyValue]) -> _Part:
    said = {key: value for key, value in attributes.items() if value}
    return said, b"".join([_attribute(key, value) for key, value in said.items()])


_SHORT_ID: Final = 64  # bytes
_TARGET_ID_HEADS: Final = [
    _attribute(_TARGET_ID, " " * size)[: -size or None] for size in range(_SHORT_ID)
]  # by the length
# Of a UUID, whose text always has 36 characters.
_RECORD_ID_HEAD: Final = _attribute(names.RECORD_ID, " " * 36)[:-36]
