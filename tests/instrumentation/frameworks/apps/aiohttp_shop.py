"""An aiohttp service with users in the request, in aiohttp-security, in sub-applications, streams and sockets."""

import asyncio
import os

import aiohttp_security
import aiohttp_session
import auditspan
from aiohttp import web

ROLES = {"alice": ["sales", "admin"], "bob": ["sales"]}
USER = web.RequestKey("user", dict) if hasattr(web, "RequestKey") else "user"  # since 3.14
started = asyncio.Event()


@web.middleware
async def authenticate(request, handler):
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    name = token.removesuffix("-token")
    if token and name not in ROLES:
        raise web.HTTPUnauthorized
    if token:
        request[USER] = {"username": name, "roles": ROLES[name]}
    elif "X-Guest" in request.headers:
        request[USER] = None
    return await handler(request)


class Identity(aiohttp_security.AbstractIdentityPolicy):
    async def identify(self, request):
        return request.cookies.get("who")

    async def remember(self, request, response, identity, **kwargs):
        response.set_cookie("who", identity)

    async def forget(self, request, response):
        response.del_cookie("who")


class Authorization(aiohttp_security.AbstractAuthorizationPolicy):
    async def permits(self, identity, permission, context=None):
        return False

    async def authorized_userid(self, identity):
        return identity if identity in ROLES else None


def user(request):
    return request.get(USER) or {"username": "", "roles": []}


async def create(request):
    return web.json_response({"id": 7})


async def delete(request):
    if not user(request)["username"]:
        raise web.HTTPUnauthorized
    if "admin" not in user(request)["roles"]:
        raise web.HTTPForbidden
    raise web.HTTPNoContent


async def account(request):
    raise web.HTTPFound("/login?next=/account")


async def secured(request):
    await aiohttp_security.check_authorized(request)
    session = await aiohttp_session.get_session(request)
    session["seen"] = True
    return web.Response()


async def permitted(request):
    await aiohttp_security.check_permission(request, "approve")
    return web.Response()


async def said(request):
    auditspan.set_actor("carol", roles=["support"], auth_method="mtls")
    return web.Response()


async def stream(request):
    """In pieces, as the handler writes them; "part" stops in the middle."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first")
    if request.match_info["how"] == "part":
        raise RuntimeError("the rest is lost")
    await response.write_eof(b"second")
    if request.match_info["how"] == "killed":
        os._exit(9)  # the client has it all
    return response


async def generated(request):
    """In pieces, as the server asks for them, after the handler has returned."""

    async def pieces():
        yield b"first"
        if request.match_info["how"] == "part":
            raise RuntimeError("the rest is lost")
        yield b"second"

    return web.Response(body=pieces())


async def slow(request):
    started.set()
    await asyncio.sleep(60)
    return web.Response()


async def wait_until_started(request):
    await started.wait()
    started.clear()
    return web.Response()


async def socket(request):
    if not user(request)["username"]:
        raise web.HTTPForbidden
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        if message.data == "raise":
            raise RuntimeError("out of luck")
        if message.data.startswith("close "):
            await ws.close(code=int(message.data.removeprefix("close ")))
        elif message.data.startswith("i am "):
            auditspan.set_actor(message.data.removeprefix("i am "))
            await ws.send_str("noted")
        else:
            await ws.send_str(message.data)
    return ws


def admin():
    app = web.Application(middlewares=(authenticate,))
    app.router.add_put("/users/{name}/role", create)
    deeper = web.Application()
    deeper.router.add_post("/reports", create)
    app.add_subapp("/deeper", deeper)
    return app


def shop():
    sessions = aiohttp_session.session_middleware(aiohttp_session.SimpleCookieStorage())
    app = web.Application(middlewares=[sessions, authenticate])
    aiohttp_security.setup(app, Identity(), Authorization())
    app.add_routes(
        [
            web.post("/orders", create),
            web.delete("/orders/{order_id}", delete),
            web.get("/account", account),
            web.post("/secured", secured),
            web.post("/permitted", permitted),
            web.post("/said", said),
            web.post("/streams/{how}", stream),
            web.post("/generated/{how}", generated),
            web.post("/slow", slow),
            web.get("/started", wait_until_started),
            web.get("/rooms/{room}", socket),
        ]
    )
    app.add_subapp("/admin", admin())
    return app


async def main():
    runner = web.AppRunner(shop(), handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["PORT"])).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
