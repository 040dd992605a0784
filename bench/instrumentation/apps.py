"""Two real applications without any audit code: FastAPI and Flask, each with a signed-in user and routes for orders."""

from __future__ import annotations

from typing import Any, Final

import flask
from fastapi import FastAPI
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware

ROLES: Final = ["sales", "admin"]


class SignedIn(AuthenticationBackend):
    """Everybody is alice; that costs nothing, so what is measured is not the authentication."""

    async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser]:
        """Starlette's answer for a user that it knows."""
        del conn
        return AuthCredentials(ROLES), SimpleUser("alice")


def fastapi_app() -> FastAPI:
    """GET changes nothing, so it is not audited; POST is."""
    app = FastAPI()
    app.add_middleware(AuthenticationMiddleware, backend=SignedIn())

    @app.get("/orders/{order_id}")
    async def read(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    @app.post("/orders/{order_id}/refund")
    async def refund(order_id: int) -> dict[str, int]:
        return {"refunded": order_id}

    return app


class User:
    """A user object like Flask-Login's."""

    id = "alice"
    roles = tuple(ROLES)
    is_authenticated = True


def flask_app() -> flask.Flask:
    """As the FastAPI application."""
    app = flask.Flask(__name__)
    user = User()

    @app.before_request
    def sign_in() -> None:
        flask.g.user = user

    @app.get("/orders/<int:order_id>")
    def read(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    @app.post("/orders/<int:order_id>/refund")
    def refund(order_id: int) -> dict[str, int]:
        return {"refunded": order_id}

    return app
