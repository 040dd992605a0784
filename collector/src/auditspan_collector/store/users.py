"""Who is asking: names and passwords in every place where ClickHouse's HTTP interface takes them.

Basic authorization, the headers ``X-ClickHouse-User`` and ``X-ClickHouse-Key``, or the URL parameters ``user`` and
``password``; two of these at once are an error, as on a server.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

from auditspan_collector.store.config import User
from auditspan_collector.store.failures import AUTHENTICATION_FAILED, QueryFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from auditspan_collector.store.body import Headers


def _basic(authorization: str) -> tuple[str, str]:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise QueryFailed.because(
            AUTHENTICATION_FAILED,
            f"Invalid authentication: the scheme {scheme!r} is not supported; use Basic.",
        )
    try:
        name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise QueryFailed.because(
            AUTHENTICATION_FAILED, "Invalid authentication: Basic is malformed."
        ) from None
    return name, password


def _given(headers: Headers, parameters: Mapping[str, str]) -> tuple[str, str] | None:
    """The name and password that came with a request, or None. Raises QueryFailed."""
    authorization = headers.get("Authorization")
    in_headers = headers.get("X-ClickHouse-User") is not None or headers.get("X-ClickHouse-Key") is not None
    in_url = "user" in parameters or "password" in parameters
    if (authorization is not None) + in_headers + in_url > 1:
        raise QueryFailed.because(
            AUTHENTICATION_FAILED, "Invalid authentication: credentials came in more than one way; use one."
        )
    if authorization is not None:
        return _basic(authorization)
    if in_headers:
        return headers.get("X-ClickHouse-User") or "default", headers.get("X-ClickHouse-Key") or ""
    if in_url:
        return parameters.get("user", "default"), parameters.get("password", "")
    return None


def _same(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode("utf-8", "surrogatepass"), right.encode("utf-8", "surrogatepass"))


class Users:
    """Those who may ask."""

    def __init__(self, configured: Sequence[User]) -> None:
        """Nobody configured: ``default`` without a password."""
        self._users = tuple(configured) or (User(name="default"),)

    def identify(self, headers: Headers, parameters: Mapping[str, str]) -> User:
        """Whose request it is. Raises QueryFailed (516): 401 when no name came, 403 when it or the password is wrong."""
        given = _given(headers, parameters)
        name, password = given or ("default", "")
        # Every user is compared, so that the time taken does not tell which names exist.
        found = [user for user in self._users if _same(user.name, name) & _same(user.password, password)]
        if found:
            return found[0]
        raise QueryFailed.because(
            AUTHENTICATION_FAILED,
            f"{name}: Authentication failed: password is incorrect, or there is no user with such name.",
            status=403 if given else 401,
        )
