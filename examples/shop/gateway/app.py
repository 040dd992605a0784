"""The shop's public HTTP interface; everybody signs in with HTTP Basic.

    POST /orders                   {"item", "quantity"}   anybody signed in, for themselves
    GET  /orders/{order_id}                               whose order it is, and support
    POST /orders/{order_id}/refund {"reason"}             support
    PUT  /users/{user_id}/role     {"role"}               admin
    GET  /health                                          everybody

SHOP_USERS_FILE        JSON file of the people (users.json); `python -m shop.gateway.users` writes it
SHOP_ORDERS_URL        where orders listens (http://127.0.0.1:8001)
SHOP_TOKEN_FILE        file with the token that the shop's services share; required
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, status
from pydantic import BaseModel, Field
from starlette.authentication import SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware

from shop.gateway.authentication import BasicAuthentication, refuse, role, signed_in
from shop.gateway.orders_client import OrdersClient
from shop.gateway.users import NoSuchUser, Role, Users
from shop.service_token import ServiceToken

routes = APIRouter()
SignedIn = Annotated[SimpleUser, Depends(signed_in)]


class NewOrder(BaseModel):
    item: str
    quantity: int = Field(ge=1, le=100)


class Refund(BaseModel):
    reason: str = Field(min_length=1, max_length=500)


class NewRole(BaseModel):
    role: Role


def create_app() -> FastAPI:
    """The service, with what the environment says."""
    users = Users(Path(os.environ.get("SHOP_USERS_FILE", "users.json")))
    token = ServiceToken.read(Path(os.environ["SHOP_TOKEN_FILE"]))
    orders_url = os.environ.get("SHOP_ORDERS_URL", "http://127.0.0.1:8001")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.users, app.state.orders = users, OrdersClient(orders_url, token)
        yield
        await app.state.orders.close()

    authentication = Middleware(AuthenticationMiddleware, backend=BasicAuthentication(users), on_error=refuse)
    app = FastAPI(title="Shop", lifespan=lifespan, middleware=[authentication])
    app.include_router(routes)
    return app


@routes.post("/orders", status_code=status.HTTP_201_CREATED)
async def place_order(request: Request, body: NewOrder, user: SignedIn) -> dict[str, Any]:
    return await _orders(request).place(user.username, body.item, body.quantity)


@routes.get("/orders/{order_id}")
async def show_order(request: Request, order_id: int, user: SignedIn) -> dict[str, Any]:
    order = await _orders(request).get(order_id)
    if order["customer"] != user.username and "support" not in request.auth.scopes:
        raise HTTPException(
            status.HTTP_404_NOT_FOUND, "no such order"
        )  # the answer for an order that isn't there
    return order


@routes.post("/orders/{order_id}/refund", dependencies=[role("support")])
async def refund_order(request: Request, order_id: int, body: Refund) -> dict[str, Any]:
    return await _orders(request).refund(order_id, body.reason)


@routes.put("/users/{user_id}/role", dependencies=[role("admin")])
def change_role(request: Request, user_id: str, body: NewRole) -> dict[str, str]:
    users: Users = request.app.state.users
    try:
        user = users.set_role(user_id, body.role)
    except NoSuchUser as problem:
        raise HTTPException(status.HTTP_404_NOT_FOUND, "no such user") from problem
    return {"user": user.name, "role": user.role}


@routes.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


def _orders(request: Request) -> OrdersClient:
    orders: OrdersClient = request.app.state.orders
    return orders
