"""A service like many: authentication middleware, dependencies, routers, mounts. The tests' subject."""

import asyncio
import base64
import os
from typing import Annotated

import auditspan
import httpx
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import RedirectResponse
from opentelemetry import trace
from pydantic import BaseModel
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware

ROLES = {"alice": ["sales", "admin"], "bob": ["sales"]}
tracer = trace.get_tracer("shop")


class Passwords(AuthenticationBackend):
    async def authenticate(self, conn):
        scheme, _, credential = conn.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            return None
        name, _, password = base64.b64decode(credential).decode().partition(":")
        if password != f"{name}-password":
            raise AuthenticationError("wrong password")
        return AuthCredentials(ROLES[name]), SimpleUser(name)


def bearer(authorization: Annotated[str, Header()]) -> str:
    """A dependency that FastAPI runs in its thread pool; no hook sees what it finds."""
    name = authorization.removeprefix("Bearer token-of-")
    if name not in ROLES:
        raise HTTPException(401, "bad token")
    auditspan.set_actor(name, roles=ROLES[name], session="s-1", auth_method="bearer")
    return name


def admins(request: Request) -> None:
    if "admin" not in request.auth.scopes:
        raise HTTPException(403, "admins only")


class Order(BaseModel):
    product: str
    count: int


app = FastAPI()
app.add_middleware(AuthenticationMiddleware, backend=Passwords())
app.add_middleware(SessionMiddleware, secret_key="for tests only")
customers = APIRouter(prefix="/v1/customers")
admin = FastAPI()


@app.get("/orders/{order_id}")
def read(order_id: int):
    return {"id": order_id}


@app.post("/orders")
def create(order: Order):
    return {"id": 7, "product": order.product}


@app.put("/orders/{order_id}")
async def update(order_id: int):
    return {"id": order_id}


@app.delete("/orders/{order_id}", dependencies=[Depends(admins)])
def delete(order_id: int):
    return {"id": order_id}


@app.post("/orders/{order_id}/refund")
def refund(order_id: int):
    return {"id": order_id}


@app.post("/orders/{order_id}/missing")
def missing(order_id: int):
    raise HTTPException(404, "no such order")


@app.post("/orders/{order_id}/crash")
def crash(order_id: int):
    raise RuntimeError("out of luck")


@app.get("/secrets/{name}", dependencies=[Depends(admins)])
def secret(name: str):
    return {"name": name}


@app.get("/reports/{report_id}")
def report(report_id: str):
    return {"id": report_id}


@app.post("/needs-login")
def needs_login():
    return RedirectResponse("/login?next=/needs-login", 303)


@app.post("/tokens/{name}")
def depends(name: str, user: Annotated[str, Depends(bearer)]):
    return {"user": user}


@app.post("/mixed/{name}/spans")
async def mixed(name: str, request: Request, user: Annotated[str, Depends(bearer)]):
    # Under an inner span, which ordinary sampling drops or not, in the task and in a thread.
    with tracer.start_as_current_span("inner"):
        await asyncio.sleep(int(request.query_params.get("ms", "0")) / 1000)
        auditspan.set_actor(f"{name}-of-{user}", roles=ROLES[user])
        await asyncio.to_thread(auditspan.describe, reason=f"{name}'s reason")
    return {}


@app.post("/calls-itself/{depth}")
async def calls_itself(depth: int):
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.post(f"http://127.0.0.1:{os.environ['PORT']}/calls-itself/{depth - 1}")
    # After the inner request, under a span that sampling may drop: still this request and no other.
    with tracer.start_as_current_span("afterwards"):
        auditspan.describe(reason=f"reason-{depth}")
    return {}


@app.get("/exports/{export_id}")
def export(export_id: str):
    with auditspan.record("EXPORT", target_type="report", target_id=export_id) as action:
        action.reason("asked by the auditors")
    return {}


@app.post("/steps")
@auditspan.audited("PREPARE", target_type="step", target_id="request.url.path")
async def steps(request: Request):
    with auditspan.record("FIRST"):
        pass
    return {}


@app.post("/by-hand")
def by_hand():
    trace.get_current_span().set_attributes(
        {
            "audit.action": "ARCHIVE",
            "audit.actor.id": "root",
            "audit.actor.origin": "authenticated",
            "audit.ticket": 3,
        }
    )
    return {}


@app.post("/many-attributes")
def many_attributes():
    trace.get_current_span().set_attributes({f"detail.{number}": number for number in range(200)})
    return {}


@app.post("/background")
def background(tasks: BackgroundTasks):
    def later():
        with auditspan.record("NOTIFY"):
            pass

    tasks.add_task(later)
    return {}


@app.post("/session")
def session(request: Request):
    request.session["session_id"] = "a-secret-session"
    return {}


@customers.post("/{customer_id}/notes")
def note(customer_id: str):
    return {}


@admin.put("/users/{name}/role", dependencies=[Depends(admins)])
def role(name: str):
    return {}


app.include_router(customers)
app.mount("/admin/{region}", admin)
