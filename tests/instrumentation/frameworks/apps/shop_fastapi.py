import asyncio

import auditspan
import httpx
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from shop import ROLES, WrongPasswordError, next_url, notify, pieces, say, steps, user_of
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.responses import PlainTextResponse


class Passwords(AuthenticationBackend):
    async def authenticate(self, conn):
        try:
            name = user_of(conn.headers.get("authorization", ""))
        except WrongPasswordError as error:
            raise AuthenticationError(str(error)) from None
        return (AuthCredentials(ROLES[name]), SimpleUser(name)) if name else None


def refuse(_, error):
    return PlainTextResponse(str(error), 401)


def user(request: Request):
    if not request.user.is_authenticated:
        raise HTTPException(401)


def admins(request: Request):
    if "admin" not in request.auth.scopes:
        raise HTTPException(403)


class Order(BaseModel):
    product: str


app = FastAPI()
app.add_middleware(AuthenticationMiddleware, backend=Passwords(), on_error=refuse)
customers = APIRouter(prefix="/shop")
back_office = FastAPI()


@app.post("/orders")
def create(order: Order):
    return {"product": order.product}


@app.get("/orders/{order_id}")
@app.put("/orders/{order_id}", dependencies=[Depends(user)])
async def order(order_id: int):
    return {"id": order_id}


@app.delete("/orders/{order_id}", dependencies=[Depends(admins)])
def delete(order_id: int):
    return {}


@app.post("/orders/{order_id}/refund")
def refund(order_id: int):
    return {}


@app.post("/orders/{order_id}/missing")
def missing(order_id: int):
    raise HTTPException(404)


@app.post("/orders/{order_id}/crash")
def crash(order_id: int):
    raise RuntimeError("out of luck")


@app.get("/reports/{report_id}")
def report(report_id: str):
    return {}


@app.get("/secrets/{name}", dependencies=[Depends(admins)])
def secret(name: str):
    return {}


@app.post("/streams/{kind}")
def stream(kind: str):
    return StreamingResponse(pieces(kind))


@app.post("/cancelled")
async def cancelled():
    raise asyncio.CancelledError


@app.post("/mixed/{name}")
async def mixed(name: str, ms: int):
    await asyncio.sleep(ms / 1000)
    await asyncio.to_thread(say, name)
    return {}


@app.post("/calls-itself/{depth}")
async def calls_itself(depth: int):
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(next_url(depth))
    say(depth)
    return {}


@app.post("/steps")
def in_steps():
    steps()
    return {}


@app.post("/background")
def background(tasks: BackgroundTasks):
    tasks.add_task(notify)
    return {}


@app.post("/excluded")
def excluded():
    return {}


@customers.put("/customers/{customer_id}")
def customer(customer_id: str):
    return {}


@back_office.put("/users/{name}/role", dependencies=[Depends(admins)])
def role(name: str):
    return {}


app.include_router(customers)
app.mount("/admin/{region}", back_office)
