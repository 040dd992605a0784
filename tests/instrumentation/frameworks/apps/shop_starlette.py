import asyncio

import auditspan
import httpx
from shop import ROLES, WrongPasswordError, next_url, notify, pieces, say, steps, user_of
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
    requires,
)
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route


class Passwords(AuthenticationBackend):
    async def authenticate(self, conn):
        try:
            name = user_of(conn.headers.get("authorization", ""))
        except WrongPasswordError as error:
            raise AuthenticationError(str(error)) from None
        return (AuthCredentials(ROLES[name]), SimpleUser(name)) if name else None


def refuse(_, error):
    return PlainTextResponse(str(error), 401)


async def create(request):
    if not (await request.json()).get("product"):
        raise HTTPException(422)
    return JSONResponse({})


async def done(request):
    return JSONResponse({})


changed = requires("sales", status_code=401)(done)
for_admins = requires("admin", status_code=403)(done)


async def missing(request):
    raise HTTPException(404)


def crash(request):
    raise RuntimeError("out of luck")


async def stream(request):
    return StreamingResponse(pieces(request.path_params["kind"]))


async def cancelled(request):
    raise asyncio.CancelledError


async def mixed(request):
    await asyncio.sleep(int(request.query_params["ms"]) / 1000)
    await asyncio.to_thread(say, request.path_params["name"])
    return JSONResponse({})


async def calls_itself(request):
    depth = request.path_params["depth"]
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(next_url(depth))
    say(depth)
    return JSONResponse({})


def in_steps(request):
    steps()
    return JSONResponse({})


async def background(request):
    return JSONResponse({}, background=BackgroundTask(notify))


app = Starlette(
    middleware=[Middleware(AuthenticationMiddleware, backend=Passwords(), on_error=refuse)],
    routes=[
        Route("/orders", create, methods=["POST"]),
        Route("/orders/{order_id:int}", done, methods=["GET"]),
        Route("/orders/{order_id:int}", changed, methods=["PUT"]),
        Route("/orders/{order_id:int}", for_admins, methods=["DELETE"]),
        Route("/orders/{order_id:int}/refund", done, methods=["POST"]),
        Route("/orders/{order_id:int}/missing", missing, methods=["POST"]),
        Route("/orders/{order_id:int}/crash", crash, methods=["POST"]),
        Route("/reports/{report_id}", done),
        Route("/secrets/{name}", for_admins),
        Route("/streams/{kind}", stream, methods=["POST"]),
        Route("/cancelled", cancelled, methods=["POST"]),
        Route("/mixed/{name}", mixed, methods=["POST"]),
        Route("/calls-itself/{depth:int}", calls_itself, methods=["POST"]),
        Route("/steps", in_steps, methods=["POST"]),
        Route("/background", background, methods=["POST"]),
        Route("/excluded", done, methods=["POST"]),
        Mount("/shop", routes=[Route("/customers/{customer_id}", done, methods=["PUT"])]),
        Mount(
            "/admin/{region}",
            app=Starlette(routes=[Route("/users/{name}/role", for_admins, methods=["PUT"])]),
        ),
    ],
)
