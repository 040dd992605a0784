"""What services of one trust domain sign ``audit-context`` with, and what they believe.

The file has one key a line; blank lines and lines that begin with # don't count:

    2026-11 SECRET                      HMAC-SHA256: whoever verifies can sign as well
    gateway-1 ed25519 PRIVATE           Ed25519: signs, and verifies what it signed
    gateway-1 ed25519-public PUBLIC     Ed25519: verifies only

SECRET is any text without spaces, PRIVATE and PUBLIC are 32 bytes in base64 (``python -m
auditspan.propagation.new_key`` writes such lines). The first key that can sign does, all verify. So a key is replaced
without a gap in three rollouts: add the new one as the last line everywhere, move it to the first line everywhere,
remove the old one everywhere.

A key's line fixes its algorithm; nothing in a token chooses one. What is signed for requests and what is signed for
messages in queues are different things under the same key.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from auditspan.propagation.letters import from_letters, to_letters

if TYPE_CHECKING:
    from collections.abc import Mapping

REQUESTS: Final = "auditspan audit-context"
QUEUES: Final = "auditspan audit-context in queues"
PURPOSES: Final = (REQUESTS, QUEUES)

MIN_SECRET_LENGTH: Final = 32
MAX_KEYS: Final = 16
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_ED25519: Final = "ed25519"
_ED25519_PUBLIC: Final = "ed25519-public"


class KeysError(ValueError):
    """A keys file that can't be used: which line, and what is allowed. Never contains a secret."""


class Key(Protocol):
    """One key. Thread-safe; its ``repr`` shows no secret."""

    @property
    def letters(self) -> int:
        """How many base64 letters a signature has: the algorithm's mark."""

    @property
    def signs(self) -> bool:
        """Whether it can sign, not only verify."""

    def sign(self, purpose: str, payload: bytes) -> str:
        """The signature of *payload* in URL-safe base64 letters."""

    def verify(self, purpose: str, payload: bytes, signature: str) -> bool:
        """Whether *signature*, of *letters* URL-safe base64 letters, is that of *payload*."""


class HmacKey:
    """HMAC-SHA256 with a key derived for each purpose; the secret itself is not kept."""

    letters: Final = 43
    signs: Final = True

    def __init__(self, secret: str) -> None:
        # A copy of a started HMAC takes half the time of a new one.
        self._started = {
            purpose: hmac.new(hmac.digest(secret.encode(), purpose.encode(), "sha256"), digestmod="sha256")
            for purpose in PURPOSES
        }

    def sign(self, purpose: str, payload: bytes) -> str:
        """See Key."""
        mac = self._started[purpose].copy()
        mac.update(payload)
        return to_letters(mac.digest())

    def verify(self, purpose: str, payload: bytes, signature: str) -> bool:
        """See Key. Compares in constant time."""
        return hmac.compare_digest(self.sign(purpose, payload), signature)


class Ed25519Key:
    """Ed25519 (RFC 8032) over the purpose, a line feed and the payload; *private* or *public* is 32 bytes.

    Imports cryptography, which takes 40 ms. Raises ImportError without it, ValueError for bytes that are no key.
    """

    letters: Final = 86

    def __init__(self, *, private: bytes = b"", public: bytes = b"") -> None:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra, and heavy
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - as above

        self._wrong: Final = InvalidSignature
        self._private = ed25519.Ed25519PrivateKey.from_private_bytes(private) if private else None
        self._public = (
            self._private.public_key()
            if self._private is not None
            else ed25519.Ed25519PublicKey.from_public_bytes(public)
        )
        self.signs: Final = self._private is not None

    def sign(self, purpose: str, payload: bytes) -> str:
        """See Key. Raises ValueError when this is a public key."""
        if self._private is None:
            raise ValueError("a public key does not sign")
        return to_letters(self._private.sign(_for(purpose, payload)))

    def verify(self, purpose: str, payload: bytes, signature: str) -> bool:
        """See Key."""
        try:
            self._public.verify(from_letters(signature), _for(purpose, payload))
        except self._wrong:
            return False
        return True


def _for(purpose: str, payload: bytes) -> bytes:
    return purpose.encode() + b"\n" + payload


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys by their id; *signing_id* is the one to sign with, empty when none can."""

    signing_id: str = ""
    keys: Mapping[str, Key] = field(default_factory=dict, repr=False)

    @classmethod
    def from_text(cls, text: str) -> KeyRing:
        """Keys from a file's content. Raises KeysError."""
        keys: dict[str, Key] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                key = _key(words)
            except KeysError as problem:
                raise KeysError(f"line {number}: {problem}") from None
            if words[0] in keys:
                raise KeysError(f"line {number}: key id {words[0]} occurs twice")
            keys[words[0]] = key
        if not keys:
            raise KeysError("no key in it; a line is `key-id secret`")
        if len(keys) > MAX_KEYS:
            raise KeysError(f"{len(keys)} keys; {MAX_KEYS} are allowed, remove those that nobody signs with")
        return cls(next((key_id for key_id, key in keys.items() if key.signs), ""), keys)


def _key(words: list[str]) -> Key:
    if not _KEY_ID.fullmatch(words[0]):
        raise KeysError("a key id is 1 to 32 letters, digits, _ or -")
    match words[1:]:
        case [secret] if len(secret) >= MIN_SECRET_LENGTH:
            return HmacKey(secret)
        case [secret]:
            raise KeysError(
                f"the secret has {len(secret)} characters; {MIN_SECRET_LENGTH} random ones or more are needed, for "
                "instance from `openssl rand -base64 32`"
            )
        case [algorithm, text] if algorithm in (_ED25519, _ED25519_PUBLIC):
            return _ed25519(algorithm, text)
        case [_, _]:
            raise KeysError(f"the word between key id and key must be {_ED25519} or {_ED25519_PUBLIC}")
    raise KeysError("expected a key id and a secret, separated by a space")


def _ed25519(algorithm: str, text: str) -> Ed25519Key:
    try:
        key = from_letters(text)
        return Ed25519Key(private=key) if algorithm == _ED25519 else Ed25519Key(public=key)
    except ImportError as problem:
        raise KeysError(
            f"Ed25519 needs the package cryptography ({problem}): pip install 'auditspan[ed25519]'"
        ) from problem
    except ValueError as problem:
        raise KeysError(f"an {algorithm} key is 32 bytes in base64") from problem
