"""Let a service of the shop prove to another that it belongs to the shop.

All services share one token, in a file that only they can read. HTTP and gRPC carry it alike:
``authorization: Bearer <token>``.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MINIMUM_LENGTH = 32


class ServiceToken:
    """The shop's token; never printed."""

    def __init__(self, token: str) -> None:
        if len(token) < MINIMUM_LENGTH:
            raise ValueError(f"the service token has {len(token)} characters; use at least {MINIMUM_LENGTH}")
        self._authorization = f"Bearer {token}"

    @classmethod
    def read(cls, path: Path) -> ServiceToken:
        """The token in *path*. Raises OSError when it can't be read, ValueError when it is too short."""
        return cls(path.read_text(encoding="utf-8").strip())

    @property
    def authorization(self) -> str:
        """The value of the ``authorization`` header or metadata entry."""
        return self._authorization

    def accepts(self, authorization: str) -> bool:
        """Whether *authorization* carries this token; takes the same time for any wrong one."""
        return hmac.compare_digest(authorization.encode(), self._authorization.encode())
