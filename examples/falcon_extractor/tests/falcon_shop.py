"""A Falcon application without a line of audit code, for the tests: alice may refund, bob may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon

if TYPE_CHECKING:
    from collections.abc import Iterator

USERS = {
    "Bearer alice-token": {"username": "alice", "roles": ["support", "sales"]},
    "Bearer bob-token": {"username": "bob", "roles": ["sales"]},
}


class Authentication:
    """However an application verifies who it is; what it found is in ``req.context.user``."""

    def process_request(self, req: Any, resp: Any) -> None:
        token = req.get_header("Authorization")
        if token and token not in USERS:
            raise falcon.HTTPUnauthorized
        req.context.user = USERS.get(token)


class Orders:
    def on_post(self, req: Any, resp: Any) -> None:
        resp.status = 201


class Refund:
    def on_post(self, req: Any, resp: Any, order_id: int) -> None:
        if req.context.user is None:
            raise falcon.HTTPUnauthorized
        if "support" not in req.context.user["roles"]:
            raise falcon.HTTPForbidden
        resp.media = {"refunded": order_id}


class Crash:
    def on_post(self, req: Any, resp: Any, order_id: int) -> None:
        raise ValueError(order_id)


class Leave:
    def on_post(self, req: Any, resp: Any) -> None:
        raise falcon.HTTPSeeOther("/login")


class Export:
    def on_post(self, req: Any, resp: Any, whole: str) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"first,"
            if whole != "whole":
                raise OSError
            yield b"last"

        resp.stream = pieces()


def make_app() -> Any:
    app = falcon.App(middleware=[Authentication()])
    app.add_route("/orders", Orders())
    app.add_route("/orders/{order_id:int}/refund", Refund())
    app.add_route("/orders/{order_id:int}/crash", Crash())
    app.add_route("/away", Leave())
    app.add_route("/streams/{whole}/export", Export())
    return app
