"""Tell whom a credential belongs to, in a time that does not depend on how nearly it was right."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import TYPE_CHECKING

from auditspan_collector.errors import Unauthenticated
from auditspan_collector.record import Sender

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan_collector.receiver.config import Config

_HOW = "send `authorization: Bearer <token>` with a token from receiver.senders"


class Senders:
    """The configured credentials; immutable and thread-safe. Tokens are kept as keyed hashes only.

    A lookup compares hashes under a key drawn when the process started. How far such a comparison gets says
    nothing about a token, since nobody outside can compute the hash of a guess.
    """

    def __init__(self, config: Config) -> None:
        self._key = os.urandom(32)
        self._by_hash = {
            self._hash(each.token): Sender(
                name=each.name, tenant=each.tenant, services=each.services, instrumented=each.instrumented
            )
            for each in config.senders
        }
        self._anonymous = _anonymous(config)

    def authenticate(self, authorization: Sequence[str]) -> Sender:
        """The sender of a request with these ``authorization`` values, usually none or one.

        A wrong token is refused even where anonymous requests are welcome: its sender believes to be somebody.
        Raises Unauthenticated.
        """
        if not self._by_hash or not authorization:
            if self._anonymous is None:
                raise Unauthenticated(f"no credential; {_HOW}")
            return self._anonymous
        if len(authorization) > 1:
            raise Unauthenticated(f"more than one authorization header; {_HOW}")
        scheme, _, token = authorization[0].strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated(f"a credential of another scheme; {_HOW}")
        digest = self._hash(token.strip())
        sender = self._by_hash.get(digest)
        if sender is None:
            raise Unauthenticated(f"an unknown token; {_HOW}")
        return sender

    def _hash(self, token: str) -> bytes:
        return hmac.digest(self._key, token.encode("utf-8", "surrogateescape"), hashlib.sha256)


def _anonymous(config: Config) -> Sender | None:
    """Who a request without a token comes from; None when it is refused. receiver.Config says which applies."""
    choice = config.anonymous
    if choice == "auto":
        choice = "refuse" if config.senders else "trust"
    if choice == "refuse":
        return None
    return Sender(name="anonymous", tenant="default", services=None, instrumented=choice == "trust")
