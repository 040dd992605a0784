"""The secrets that services of one trust domain share to sign and verify ``audit-context``.

The file has one key a line, ``key-id secret``; blank lines and lines that begin with # don't count. The first key
signs, all verify. So a key is replaced without a gap in three rollouts: add the new one as the last line
everywhere, move it to the first line everywhere, remove the old one everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MIN_SECRET_LENGTH: Final = 32
MAX_KEYS: Final = 16
_MAX_FILE_BYTES: Final = 64 * 1024
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,32}")


class KeysError(ValueError):
    """A keys file that can't be used: which line, and what is allowed. Never contains a secret."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Keys by their id, the signing one first. Holds what is derived for one *purpose*, not the secrets."""

    signing_id: str
    derived: dict[str, bytes] = field(repr=False)

    @classmethod
    def from_text(cls, text: str, purpose: str) -> KeyRing:
        """Keys from a file's content, usable for *purpose* only. Raises KeysError."""
        derived: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2:
                raise KeysError(f"line {number}: expected a key id and a secret, separated by a space")
            key_id, secret = words
            if not _KEY_ID.fullmatch(key_id):
                raise KeysError(f"line {number}: a key id is 1 to 32 letters, digits, _ or -")
            if key_id in derived:
                raise KeysError(f"line {number}: key id {key_id} occurs twice")
            if len(secret) < MIN_SECRET_LENGTH:
                raise KeysError(
                    f"line {number}: the secret has {len(secret)} characters; {MIN_SECRET_LENGTH} random ones or "
                    "more are needed, for instance from `openssl rand -base64 32`"
                )
            derived[key_id] = hmac.digest(secret.encode(), purpose.encode(), hashlib.sha256)
        if not derived:
            raise KeysError("no key in it; a line is `key-id secret`")
        if len(derived) > MAX_KEYS:
            raise KeysError(
                f"{len(derived)} keys; {MAX_KEYS} are allowed, remove those that nobody signs with"
            )
        return cls(next(iter(derived)), derived)

    @classmethod
    def from_file(cls, path: Path, purpose: str) -> KeyRing:
        """Keys from *path*. Raises KeysError, also when it can't be read."""
        try:
            with path.open(encoding="utf-8") as file:
                return cls.from_text(file.read(_MAX_FILE_BYTES), purpose)
        except UnicodeDecodeError as problem:
            raise KeysError(f"{path}: is not UTF-8 text") from problem
        except OSError as problem:
            raise KeysError(f"{path}: {problem.strerror or problem}") from problem
        except KeysError as problem:
            raise KeysError(f"{path}: {problem}") from None


def readable_by_all(path: Path) -> bool:
    """Whether every user of this host can read *path*."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
