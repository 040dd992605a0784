"""The embedded store's settings. Secure when left alone: loopback only, and no engine function leaves the folder."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from auditspan_collector.errors import ConfigError
from auditspan_collector.hosts import Address, is_loopback

MIB = 1 << 20


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``127.0.0.1:8123``, ``[::1]:8123`` or ``localhost:8123``. Raises ConfigError."""
    try:
        address = Address.parse(text)
    except ValueError as error:
        raise ConfigError(f"listen: {error}") from None
    return address.host, address.port


class User(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may ask. *readonly* allows reading only; the engine itself enforces it."""

    name: Annotated[str, Meta(min_length=1)]
    password: str = ""
    readonly: bool = False

    def __repr__(self) -> str:
        """Without the password: settings end up in logs."""
        return f"User(name={self.name!r}, readonly={self.readonly})"


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``store`` section.

    Attributes:
        path: Folder of the data; made when it is missing, and used by one process at a time.
        listen: Address and port; port 0 lets the system choose.
        users: Who may ask. None: everybody who reaches the address is ``default``, without a password; so that is
            allowed on loopback only.
        hosts: Further names that clients may reach the store by (HTTP's Host header). Known without saying so:
            ``localhost``, loopback addresses, and the address in *listen*.
        max_concurrent_requests: Statements that run at a time; further ones wait. From 2 on, one is kept for those who
            may write: read-only users, and GET, never get the last one.
        max_connections: Open connections; each costs a thread. A further one is told to come back.
        queue_wait_s: Longest wait for a turn; then 503 with ClickHouse's code 202, which clients retry.
        max_execution_time_s: When a statement is stopped unless it says otherwise; a read-only user can't raise it.
        max_memory_bytes: What the engine may use in all; a statement that would need more fails alone. One statement
            gets half of it unless it says otherwise. The process needs about 250 MB beside it.
        max_query_bytes: Length of a statement without the data of an INSERT, which may be of any length.
        max_form_bytes: Length of a multipart/form-data body; it is held in memory.
        idle_timeout_s: A connection without traffic for this long is closed.

    """

    path: str = ""
    listen: str = "127.0.0.1:8123"
    users: tuple[User, ...] = ()
    hosts: tuple[str, ...] = ()
    max_concurrent_requests: Annotated[int, Meta(ge=1, le=1024)] = 16
    max_connections: Annotated[int, Meta(ge=1, le=4096)] = 256
    queue_wait_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    max_execution_time_s: Annotated[float, Meta(gt=0, le=86400)] = 300.0
    max_memory_bytes: Annotated[int, Meta(ge=512 * MIB)] = 2048 * MIB
    max_query_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB)] = 1 * MIB
    max_form_bytes: Annotated[int, Meta(ge=1024, le=256 * MIB)] = 16 * MIB
    idle_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0

    def __post_init__(self) -> None:
        """Refuse what can't be served safely."""
        host, _ = split_address(self.listen)
        names = [user.name for user in self.users]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ConfigError(f"users: {min(repeated)!r} is there twice; allowed: each name once")
        if is_loopback(host):
            return
        if not self.users:
            raise ConfigError(
                f"users: none, and {self.listen} can be reached from other machines; name users, or listen on 127.0.0.1"
            )
        without = [user.name for user in self.users if not user.password]
        if without:
            raise ConfigError(
                f"users: {without[0]!r} has no password, and {self.listen} can be reached from other machines"
            )
