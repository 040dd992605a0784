"""Know the shop's people: their roles, and their passwords as salted scrypt hashes in a JSON file.

Add or change somebody, with the password on standard input:

    python -m shop.gateway.users users.json alice support < password.txt
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

Role = Literal["customer", "support", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)

_N, _R, _P, _BYTES = 2**14, 8, 1, 32  # RFC 7914's interactive cost: about 50 ms and 16 MiB a check


class NoSuchUser(LookupError):  # noqa: N818 - a fact about a request
    """Nobody has this name."""


@dataclass(frozen=True)
class User:
    """One person; *salt* and *password_hash* are base64."""

    name: str
    role: Role
    salt: str
    password_hash: str

    @classmethod
    def create(cls, name: str, role: Role, password: str) -> User:
        """A person with a fresh salt."""
        salt = secrets.token_bytes(16)
        return cls(
            name, role, base64.b64encode(salt).decode(), base64.b64encode(_scrypt(password, salt)).decode()
        )

    def has_password(self, password: str) -> bool:
        """Whether *password* is theirs; takes about 50 ms either way."""
        found = _scrypt(password, base64.b64decode(self.salt))
        return hmac.compare_digest(found, base64.b64decode(self.password_hash))


class Users:
    """The people in one file. A change is on disk before the call returns. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        # Checked when nobody has the name, so that the time of an answer doesn't tell which names exist.
        self._nobody = User.create("", "customer", secrets.token_hex(16))
        self._users = {row["name"]: User(**row) for row in json.loads(path.read_text(encoding="utf-8"))}

    def authenticate(self, name: str, password: str) -> User | None:
        """Who that is, or None when there is no such person or the password is wrong."""
        user = self._users.get(name)
        proved = (user or self._nobody).has_password(password)
        return user if proved else None

    def set_role(self, name: str, role: Role) -> User:
        """The person with their new role. Raises NoSuchUser."""
        with self._lock:
            if name not in self._users:
                raise NoSuchUser(name)
            changed = replace(self._users[name], role=role)
            users = {**self._users, name: changed}
            write(self._path, users)
            self._users = users
            return changed


def write(path: Path, users: dict[str, User]) -> None:
    """Replace the file in one step; readable by its owner only."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump([asdict(user) for user in users.values()], file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, dklen=_BYTES)


def main(arguments: list[str]) -> None:
    """Add or change one person."""
    if len(arguments) != 3 or arguments[2] not in ROLES:
        sys.exit(f"usage: python -m shop.gateway.users FILE NAME {'|'.join(ROLES)} < PASSWORD")
    path, name, role = Path(arguments[0]), arguments[1], arguments[2]
    password = sys.stdin.readline().rstrip("\n")
    if not password:
        sys.exit("the password comes on standard input, and can't be empty")
    users = {row["name"]: User(**row) for row in json.loads(path.read_text())} if path.exists() else {}
    write(path, {**users, name: User.create(name, role, password)})
    print(f"{path}: {name} is {role}")


if __name__ == "__main__":
    main(sys.argv[1:])
