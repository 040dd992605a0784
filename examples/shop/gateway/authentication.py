"""Say who sends a request, from HTTP Basic credentials, and let a route ask for a role."""

import base64
import binascii
from typing import Any

from fastapi import Depends, HTTPException, Request, status
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse

from shop.gateway.users import Users

CHALLENGE = {"WWW-Authenticate": 'Basic realm="shop", charset="UTF-8"'}


class BasicAuthentication(AuthenticationBackend):
    """Starlette's way in: the user's name becomes ``request.user``, their role a scope of ``request.auth``."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        scheme, _, credentials = conn.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as problem:
            raise AuthenticationError("malformed Basic credentials") from problem
        # Hashing takes its time on purpose; the event loop has other requests to serve meanwhile.
        user = await run_in_threadpool(self._users.authenticate, name, password)
        if user is None:
            raise AuthenticationError("wrong name or password")
        return AuthCredentials([user.role]), SimpleUser(user.name)


def refuse(_: HTTPConnection, problem: AuthenticationError) -> JSONResponse:
    """The answer to credentials that are wrong."""
    return JSONResponse({"detail": str(problem)}, status.HTTP_401_UNAUTHORIZED, CHALLENGE)


def signed_in(request: Request) -> SimpleUser:
    """The user, or 401 for a request without credentials."""
    if not request.user.is_authenticated:
        raise HTTPException(status.HTTP_401_UNAUTHORIZED, "sign in first", CHALLENGE)
    user: SimpleUser = request.user
    return user


def role(name: str) -> Any:
    """A dependency: the user when they have the role *name*, or 403."""

    def has_role(request: Request, user: SimpleUser = Depends(signed_in)) -> SimpleUser:  # noqa: B008 - FastAPI's way
        if name not in request.auth.scopes:
            raise HTTPException(status.HTTP_403_FORBIDDEN, f"this needs the role {name}")
        return user

    return Depends(has_role)
