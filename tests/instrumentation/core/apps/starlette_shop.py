"""Starlette with middleware added after construction, so outside of the instrumentation's unless it is moved."""

import base64

from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
    requires,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route


class Passwords(AuthenticationBackend):
    async def authenticate(self, conn):
        scheme, _, credential = conn.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        name, _, password = base64.b64decode(credential).decode().partition(":")
        if password != f"{name}-password":
            raise AuthenticationError("wrong password")
        return AuthCredentials(["authenticated"]), SimpleUser(name)


async def order(request):
    return JSONResponse({})


async def crash(request):
    raise RuntimeError("out of luck")


async def stream(request):
    return StreamingResponse(iter([b"a", b"b"]))


@requires("authenticated", status_code=401)
async def private(request):
    return JSONResponse({})


app = Starlette(
    routes=[
        Route("/orders/{order_id:int}/{action}", order, methods=["POST"]),
        Route("/crash", crash, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/private", private),
        Mount("/inner", routes=[Route("/files/{path:path}", order, methods=["DELETE"])]),
    ]
)
app.add_middleware(AuthenticationMiddleware, backend=Passwords())
