"""The same routes behind Starlette's AuthenticationMiddleware, which stands somewhere else in each application."""

from fastapi import FastAPI
from shop import ROLES, WrongPasswordError, user_of
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    BaseUser,
    SimpleUser,
    requires,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


class Person(BaseUser):
    """A backend's own user: with an identity, and roles besides the credentials' scopes."""

    is_authenticated = True

    def __init__(self, name):
        self.name = name
        self.roles = ["staff"]

    @property
    def identity(self):
        return self.name


class Passwords(AuthenticationBackend):
    async def authenticate(self, conn):
        try:
            name = user_of(conn.headers.get("authorization", ""))
        except WrongPasswordError as error:
            raise AuthenticationError(str(error)) from None
        user = Person(name) if "x-person" in conn.headers else SimpleUser(name)
        return (AuthCredentials(ROLES[name]), user) if name else None


@requires("sales", status_code=401)
async def update(request: Request):
    return JSONResponse({})


MIDDLEWARE = Middleware(AuthenticationMiddleware, backend=Passwords())


def make(kind, **arguments):
    if kind is FastAPI:
        app = FastAPI(**arguments)
        app.put("/{place}/orders/{order_id}")(update)
        return app
    return Starlette(routes=[Route("/{place}/orders/{order_id}", update, methods=["PUT"])], **arguments)


def added(kind):
    app = make(kind)
    app.add_middleware(AuthenticationMiddleware, backend=Passwords())
    return app


APPS = {
    f"{name}-{place}": app
    for name, kind in (("fastapi", FastAPI), ("starlette", Starlette))
    for place, app in {
        "given": make(kind, middleware=[MIDDLEWARE]),
        "added": added(kind),
        "around": AuthenticationMiddleware(make(kind), backend=Passwords()),
    }.items()
}


async def app(scope, receive, send):
    if scope["type"] == "http":
        await APPS[scope["path"].split("/")[1]](scope, receive, send)
