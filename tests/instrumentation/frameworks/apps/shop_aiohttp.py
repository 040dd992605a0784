import asyncio
import os

import auditspan
import httpx
from aiohttp import web
from shop import ROLES, WrongPasswordError, next_url, notify, pieces, say, steps, user_of

USER = web.RequestKey("user", dict) if hasattr(web, "RequestKey") else "user"  # since 3.14


@web.middleware
async def authenticate(request, handler):
    try:
        name = user_of(request.headers.get("Authorization", ""))
    except WrongPasswordError:
        raise web.HTTPUnauthorized from None
    request[USER] = {"username": name, "roles": ROLES[name]} if name else None
    return await handler(request)


def for_admins(request):
    if "admin" not in (request[USER] or {}).get("roles", ()):
        raise web.HTTPForbidden


async def done(request):
    return web.json_response({})


async def create(request):
    if not (await request.json()).get("product"):
        raise web.HTTPUnprocessableEntity
    return web.json_response({})


async def update(request):
    if not request[USER]:
        raise web.HTTPUnauthorized
    return web.json_response({})


async def admins_only(request):
    for_admins(request)
    return web.json_response({})


async def missing(request):
    raise web.HTTPNotFound


async def crash(request):
    raise RuntimeError("out of luck")


async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for piece in pieces(request.match_info["kind"]):
        await response.write(piece.encode())
    await response.write_eof()
    return response


async def cancelled(request):
    raise asyncio.CancelledError


async def mixed(request):
    await asyncio.sleep(int(request.query["ms"]) / 1000)
    await asyncio.to_thread(say, request.match_info["name"])
    return web.json_response({})


async def calls_itself(request):
    depth = int(request.match_info["depth"])
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(next_url(depth))
    say(depth)
    return web.json_response({})


async def in_steps(request):
    steps()
    return web.json_response({})


background_tasks = set()


async def background(request):
    async def work():
        notify()

    background_tasks.add(task := asyncio.create_task(work()))
    task.add_done_callback(background_tasks.discard)
    return web.json_response({})


def shop():
    app = web.Application(middlewares=[authenticate])
    app.add_routes(
        [
            web.post("/orders", create),
            web.get("/orders/{order_id}", done),
            web.put("/orders/{order_id}", update),
            web.delete("/orders/{order_id}", admins_only),
            web.post("/orders/{order_id}/refund", done),
            web.post("/orders/{order_id}/missing", missing),
            web.post("/orders/{order_id}/crash", crash),
            web.get("/reports/{report_id}", done),
            web.get("/secrets/{name}", admins_only),
            web.post("/streams/{kind}", stream),
            web.post("/cancelled", cancelled),
            web.post("/mixed/{name}", mixed),
            web.post("/calls-itself/{depth}", calls_itself),
            web.post("/steps", in_steps),
            web.post("/background", background),
            web.post("/excluded", done),
        ]
    )
    customers, back_office = web.Application(), web.Application()
    customers.add_routes([web.put("/customers/{customer_id}", done)])
    back_office.add_routes([web.put("/eu/users/{name}/role", admins_only)])
    app.add_subapp("/shop", customers)
    app.add_subapp("/admin", back_office)
    return app


if __name__ == "__main__":
    web.run_app(shop(), host="127.0.0.1", port=int(os.environ["PORT"]), print=None)
