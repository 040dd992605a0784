"""The signed token in the ``audit-context`` header: what it says, and when it is believed.

A token is four parts of URL-safe base64 letters, joined by dots, and begins with ``q.`` when it is one for queues:

    key id . claims . time . signature

*claims* is compact JSON; *time* is when it was signed, in whole seconds; *signature* is the key's, over all before it
and for the token's purpose alone. Nothing in the token chooses the algorithm. It is bound to one trace and believed
for a limited time, in which it can say only what it already said about that trace.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from functools import lru_cache
from json.encoder import encode_basestring as _quoted
from typing import TYPE_CHECKING, Final, NamedTuple

from auditspan import attributes as names
from auditspan.context import Actor, Upstream
from auditspan.propagation.keys import QUEUES, REQUESTS
from auditspan.propagation.letters import from_letters, to_letters

if TYPE_CHECKING:
    from collections.abc import Callable

    from auditspan.propagation.keys import KeyRing

MAX_TOKEN_LENGTH: Final = 4096
CUT: Final = "..."  # the last role of an actor who holds more than fit
_QUEUE_MARK: Final = "q."
_SKEW_S: Final = 5  # how far another host's clock may be ahead
_TIME_LETTERS: Final = 12
_SHAPE: Final = re.compile(
    r"(q\.)?([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]{4,})\.([A-Za-z0-9_-]{1,12})\.([A-Za-z0-9_-]{43}|[A-Za-z0-9_-]{86})"
)
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}|")
_decode_json: Final = json.JSONDecoder().raw_decode

# Why a token was not believed; kept with the record as attributes.CONTEXT_REJECTED.
MALFORMED: Final = "malformed"
UNKNOWN_KEY: Final = "unknown_key"
WRONG_ALGORITHM: Final = "wrong_algorithm"
BAD_SIGNATURE: Final = "bad_signature"
EXPIRED: Final = "expired"
WRONG_TRACE: Final = "wrong_trace"


class Rejected(ValueError):  # noqa: N818 - an answer
    """A token that is not believed; its text is one of the reasons above."""


class Claims(NamedTuple):
    """What a token says: on trace *trace_id* (32 hex digits), *service* acts for *actor*.

    *parent_span_id* is the nearest record above, 16 hex digits or empty.
    """

    trace_id: str
    actor: Actor | None = None
    parent_span_id: str = ""
    service: str = ""


class Tokens:
    """Signs and verifies with the keys of *ring*. Thread-safe."""

    def __init__(
        self,
        ring: KeyRing,
        *,
        ttl_s: float = 60.0,
        queue_ttl_s: float = 86_400.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A token is believed for *ttl_s* after it was signed, *queue_ttl_s* when for queues; *clock* gives Unix seconds."""
        self.ring: Final = ring
        self._signing_key = ring.keys.get(ring.signing_id)
        self._ttl_s = ttl_s
        self._queue_ttl_s = queue_ttl_s
        self._clock = clock
        # Holds only what the keys vouch for: a failure is never cached, so garbage can't push anything out.
        self._verified = lru_cache(maxsize=512)(self._verify)

    @property
    def can_sign(self) -> bool:
        """Whether there is a key to sign with."""
        return self._signing_key is not None

    def sign(self, claims: Claims, *, queue: bool = False) -> str:
        """A token for *claims*; roles are cut to fit and marked with CUT. Raises ValueError when that is not enough.

        With *queue* it is one for a message, otherwise for a request.
        """
        key = self._signing_key
        if key is None:
            raise ValueError("there is no key to sign with")
        mark, purpose = (_QUEUE_MARK, QUEUES) if queue else ("", REQUESTS)
        room = MAX_TOKEN_LENGTH - key.letters - _TIME_LETTERS - 2  # dots
        actor = claims.actor
        roles = list(actor.roles) if actor is not None else []
        while True:
            value = f"{mark}{self.ring.signing_id}.{to_letters(_encode(claims))}"
            if len(value) <= room:
                payload = f"{value}.{_time_letters(int(self._clock()))}"
                return f"{payload}.{key.sign(purpose, payload.encode())}"
            if actor is None or not roles:
                raise ValueError("the actor's name alone is too long for a header")
            del roles[len(roles) // 2 :]
            claims = claims._replace(actor=replace(actor, roles=(*roles, CUT)))

    def verify(self, token: str, trace_id: str) -> Upstream:
        """What *token* says on this trace; the actor is then ``asserted``. Raises Rejected.

        The answer says whether it was signed for a queue; where it may count is the caller's to judge.
        """
        upstream, bound_to, from_s, until_s = self._verified(token)
        if not from_s <= self._clock() <= until_s:
            raise Rejected(EXPIRED)
        if bound_to != trace_id:
            raise Rejected(WRONG_TRACE)
        return upstream

    def _verify(self, token: str) -> tuple[Upstream, str, float, float]:
        found = _SHAPE.fullmatch(token) if len(token) <= MAX_TOKEN_LENGTH else None
        if found is None:
            raise Rejected(MALFORMED)
        mark, key_id, content, signed_at, signature = found.groups()
        key = self.ring.keys.get(key_id)
        if key is None:
            raise Rejected(UNKNOWN_KEY)
        if len(signature) != key.letters:
            raise Rejected(WRONG_ALGORITHM)
        payload = token[: -len(signature) - 1].encode()
        if not key.verify(QUEUES if mark else REQUESTS, payload, signature):
            raise Rejected(BAD_SIGNATURE)
        try:
            trace_id, upstream = _decode(from_letters(content), queued=bool(mark))
            signed_s = _seconds(signed_at)
        except (ValueError, TypeError, KeyError, RecursionError) as problem:
            raise Rejected(MALFORMED) from problem
        ttl_s = self._queue_ttl_s if mark else self._ttl_s
        return upstream, trace_id, signed_s - _SKEW_S, signed_s + ttl_s


@lru_cache(maxsize=4)
def _time_letters(now_s: int) -> str:
    return to_letters(now_s.to_bytes(8, "big").lstrip(bytes(1)))


@lru_cache(maxsize=64)
def _seconds(letters: str) -> int:
    return int.from_bytes(from_letters(letters), "big")


def has_token(value: str) -> bool:
    """Whether a header's *value* has anything with the shape of a token in it, whoever signed it."""
    return any(_SHAPE.fullmatch(part.strip()) for part in value.split(","))


def _encode(claims: Claims) -> bytes:
    """JSON, put together by hand: a third of the time."""
    trace_id, actor, parent, service = claims
    head = f'{{"t":"{trace_id}","p":"{parent}","s":{_quoted(service)}'
    if actor is None:
        return f"{head}}}".encode()
    roles = ",".join(map(_quoted, actor.roles))
    return (
        f'{head},"a":[{_quoted(actor.id)},{_quoted(actor.type)},[{roles}],{_quoted(actor.auth_method)},'
        f"{_quoted(actor.delegate)}]}}"
    ).encode()


def _decode(content: bytes, *, queued: bool) -> tuple[str, Upstream]:
    """Trace id and claims of a verified token. Raises ValueError, TypeError or KeyError when its signer got them wrong."""
    found, _ = _decode_json(content.decode())
    trace_id, parent, service = found["t"], found["p"], found["s"]
    if not (_SPAN_ID.fullmatch(parent) and isinstance(trace_id, str) and isinstance(service, str)):
        raise ValueError("ids")
    if "a" not in found:
        return trace_id, Upstream(None, parent, service, "", queued)
    actor_id, kind, roles, auth_method, delegate = found["a"]
    if not isinstance(roles, list) or kind not in names.ACTOR_TYPES or not actor_id:
        raise ValueError("actor")
    for text in (actor_id, auth_method, delegate, *roles):
        if not isinstance(text, str):
            raise TypeError("actor")
    actor = Actor(actor_id, kind, tuple(roles), names.ASSERTED, "", auth_method, delegate)
    return trace_id, Upstream(actor, parent, service, "", queued)
