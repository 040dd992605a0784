"""Call actors in records, tokens and ordinary spans what the operator wants them to be called.

An actor is recorded as it is (raw), under a pseudonym (hmac) or without an id (off). A pseudonym is
``hmac:KEY-ID:DIGITS``, 128 bits of HMAC-SHA256 in hex with a key derived for this purpose alone: the same name gives
the same pseudonym wherever the same key is, and nobody without the key can try names. It is made as soon as a name is
learned, so that ordinary spans and signed tokens never carry the name either; a pseudonym that a token brings stays
as it is. Where records could show the name in passing (a reason, a path), it is replaced there too.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from auditspan import attributes as names

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

    from opentelemetry.util.types import AnyValue

    from auditspan.context import Actor

RAW: Final = "raw"
HMAC: Final = "hmac"
OFF: Final = "off"
MODES: Final = (RAW, HMAC, OFF)

_PURPOSE: Final = b"auditspan actor"
_MIN_SECRET_LENGTH: Final = 32
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")
_PSEUDONYM: Final = re.compile(r"hmac:([A-Za-z0-9_-]{1,32}):[0-9a-f]{32}")
_DIGITS: Final = 32
_NOBODY: Final = frozenset({names.ANONYMOUS, names.UNKNOWN, ""})

# Attributes of a span that name the person behind it; the collector reads some of them where audit.actor.id is not.
NAMING: Final = (
    "audit.actor",
    "enduser.id",
    "enduser.pseudo.id",
    "tls.client.subject",
    "user.email",
    "user.full_name",
    "user.hash",
    "user.id",
    "user.name",
)


class ActorKeyError(ValueError):
    """A key that can't be used, and why. Never contains a secret."""


@dataclass(frozen=True, slots=True)
class ActorKey:
    """What pseudonyms are made with: derived from the secret for this purpose, so that no other use of it tells."""

    id: str
    derived: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> ActorKey:
        """The key in *text*, one line ``key-id secret``; blank lines and those that begin with # don't count."""
        lines = [words for line in text.splitlines() if (words := line.split()) and words[0][0] != "#"]
        if len(lines) != 1 or len(lines[0]) != 2:
            raise ActorKeyError("expected one line: a key id and a secret, separated by a space")
        key_id, secret = lines[0]
        if not _KEY_ID.fullmatch(key_id):
            raise ActorKeyError("a key id is 1 to 32 letters, digits, _ or -")
        if len(secret) < _MIN_SECRET_LENGTH:
            raise ActorKeyError(
                f"the secret has {len(secret)} characters; {_MIN_SECRET_LENGTH} random ones or more are needed, for "
                "instance from `openssl rand -base64 32`"
            )
        return cls(key_id, hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256))


class ActorNames:
    """How actors are called in what leaves this process. Thread-safe; never raises."""

    def __init__(self, mode: str = RAW, key: ActorKey | None = None) -> None:
        """Without a *key*, hmac is off."""
        self.mode: Final = OFF if mode == HMAC and key is None else mode
        self.hides: Final = self.mode != RAW
        self._key_id = key.id if key is not None else ""
        self._key = key.derived if key is not None else b""
        self._pseudonym = lru_cache(maxsize=4096)(self._keyed)
        self._replacements = lru_cache(maxsize=1024)(self._find)

    def known_here(self, actor: Actor) -> Actor:
        """*actor*, learned from the application or the framework, as records and tokens may show it."""
        if not (
            self.hides or self._key or actor.id.startswith("hmac:") or actor.delegate.startswith("hmac:")
        ):
            return actor
        session = self.session(actor.session) if actor.session else ""
        return replace(actor, id=self.name(actor.id), delegate=self.name(actor.delegate), session=session)

    def asserted(self, actor: Actor) -> Actor:
        """*actor*, learned from a signed token. Who signed a pseudonym has chosen what the delegate may be called."""
        if self.mode != OFF and _PSEUDONYM.fullmatch(actor.id):
            return actor
        return self.known_here(actor)

    def name(self, name: str) -> str:
        """A person's *name* as it may be shown: itself, its pseudonym, or nothing."""
        if name in _NOBODY:
            return name
        if self.mode == RAW:
            # Nobody chooses a name here that a service downstream would take for somebody's pseudonym.
            return f"raw:{name}" if _PSEUDONYM.fullmatch(name) else name
        return self._pseudonym_of(name) if self.mode == HMAC else ""

    def attempted(self, name: str) -> str:
        """The *name* that somebody tried to sign in with, never itself: what is typed there may be a password.

        Its pseudonym where there is a key, the same as of an actor of that name; otherwise a hash, as of sessions.
        """
        if not name or self.mode == OFF:
            return ""
        if self._key:
            return self._pseudonym_of(name)
        return f"sha256:{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:_DIGITS]}"

    def scrub(self, attributes: MutableMapping[str, AnyValue], people: Iterable[str]) -> None:
        """Replace the names of *people* in texts, and lists of texts, in place; with mode raw nothing."""
        if self.mode == RAW:
            return
        for key in NAMING:
            if key in attributes:
                shown = self.name(str(attributes[key]))
                if shown:
                    attributes[key] = shown
                else:
                    del attributes[key]
        found = self._replacements(frozenset(people))
        for key, value in attributes.items() if found else ():
            if isinstance(value, str):
                replaced: AnyValue = _replaced(value, found)
            elif isinstance(value, (tuple, list)):
                replaced = [_replaced(v, found) if isinstance(v, str) else v for v in value]
            else:
                continue
            attributes[key] = replaced

    def without(self, text: str, people: Iterable[str]) -> str:
        """*text* with *people* under the names that may be shown, ``(actor)`` where there is none."""
        return _replaced(text, self._replacements(frozenset(people))) if self.hides else text

    def _find(self, people: frozenset[str]) -> tuple[_Replacement, ...]:
        return tuple(
            (person.lower(), _word(person), self.name(person) or "(actor)")
            for person in sorted(people, key=len, reverse=True)
            if _findable(person)
        )

    def session(self, session: str) -> str:
        """The hash of a session's id as it may be shown: keyed, nobody can check a guess; where no actor is told, none."""
        if self.mode == OFF:
            return ""
        return self._pseudonym("session", session) if self._key else session

    def _pseudonym_of(self, name: str) -> str:
        return f"hmac:{self._key_id}:{self._pseudonym('name', name)}"

    def _keyed(self, kind: str, text: str) -> str:
        message = f"{kind}:{text}".encode("utf-8", "replace")
        return hmac.digest(self._key, message, hashlib.sha256).hex()[:_DIGITS]


def key_id(actor_id: str) -> str:
    """The id of the key that a pseudonym was made with, empty for other names."""
    found = _PSEUDONYM.fullmatch(actor_id) if actor_id.startswith("hmac:") else None
    return found[1] if found is not None else ""


def _findable(person: str) -> bool:
    """A short name, or a number as orders have too, is in many texts without being meant."""
    return len(person) >= 6 or (len(person) >= 3 and not person.isdecimal())


_Replacement: TypeAlias = tuple[
    str, re.Pattern[str], str
]  # the name in lower case, what finds it, what is shown


def _replaced(text: str, replacements: tuple[_Replacement, ...]) -> str:
    lower = text.lower()
    for person, pattern, shown in replacements:
        if person in lower:
            # No pseudonym has a backslash, so none is taken for a reference to a group.
            text = pattern.sub(shown, text)
    return text


def _word(person: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(person)}(?!\w)", re.IGNORECASE)


def people_in(actors: Iterable[Actor | None]) -> frozenset[str]:
    """The names of *actors* and of who acts for them, but for pseudonyms and nobody."""
    found = {name for actor in actors if actor is not None for name in (actor.id, actor.delegate)}
    return frozenset(name for name in found - _NOBODY if not _PSEUDONYM.fullmatch(name))


def _main() -> None:
    """``python -m auditspan.pseudonyms KEY-FILE NAME``: what to search for."""
    import argparse  # noqa: PLC0415 - only here
    from pathlib import Path  # noqa: PLC0415 - only here

    parser = argparse.ArgumentParser(description="Print the pseudonym that records have for a name.")
    parser.add_argument(
        "key_file", type=Path, help="what OTEL_AUDITSPAN_ACTOR_KEY_FILE names in the services"
    )
    parser.add_argument("name")
    given = parser.parse_args()
    try:
        key = ActorKey.parse(given.key_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        parser.error(f"{given.key_file}: {problem}")
    print(ActorNames(HMAC, key).name(given.name))  # noqa: T201 - the command's answer


if __name__ == "__main__":
    _main()
