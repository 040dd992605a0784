"""Orders over HTTP, for the shop's own services only.

    POST /orders                    {"customer", "item", "quantity"} -> 201 with the order
    GET  /orders/<id>                                                -> 200 with the order
    POST /orders/<id>/refund        {"reason"}                       -> 200 with the order
    GET  /health                                                     -> 200

Errors are JSON, ``{"detail": ...}``: 400 a body that makes no sense, 401 not of this shop, 404 no such order,
409 not paid or refunded before, 502 billing failed, or the queue to shipping.

SHOP_ORDERS_DB         SQLite file of the orders (orders.db)
SHOP_BILLING_TARGET    host:port of billing (127.0.0.1:8002)
SHOP_QUEUE_DIR         folder of the queue to shipping (queue)
SHOP_TOKEN_FILE        file with the token that the shop's services share; required
"""

from __future__ import annotations

import os
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Flask, abort, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from shop.orders.billing_client import AlreadyRefunded, BillingClient, BillingFailed
from shop.orders.shipping_client import ShippingClient, ShippingFailed
from shop.orders.store import NoSuchOrder, Orders
from shop.service_token import ServiceToken

if TYPE_CHECKING:
    from flask.typing import ResponseReturnValue

PRICES_CENTS = {"book": 1900, "lamp": 4500, "chair": 12900}
MAX_QUANTITY = 100

routes = Blueprint("orders", __name__)


def create_app() -> Flask:
    """The service, with what the environment says."""
    app = Flask("shop.orders")
    token = ServiceToken.read(Path(os.environ["SHOP_TOKEN_FILE"]))
    app.extensions["orders"] = Orders(Path(os.environ.get("SHOP_ORDERS_DB", "orders.db")))
    app.extensions["billing"] = BillingClient(os.environ.get("SHOP_BILLING_TARGET", "127.0.0.1:8002"), token)
    app.extensions["shipping"] = ShippingClient(Path(os.environ.get("SHOP_QUEUE_DIR", "queue")))

    @app.before_request
    def only_the_shop() -> None:
        if request.path != "/health" and not token.accepts(request.headers.get("Authorization", "")):
            abort(HTTPStatus.UNAUTHORIZED, "the caller is not of this shop")

    app.register_blueprint(routes)
    app.register_error_handler(HTTPException, _as_json)
    app.register_error_handler(NoSuchOrder, lambda _: _problem(HTTPStatus.NOT_FOUND, "no such order"))
    app.register_error_handler(BillingFailed, _billing_failed)
    app.register_error_handler(ShippingFailed, _shipping_failed)
    return app


@routes.post("/orders")
def place_order() -> ResponseReturnValue:
    body = _body()
    customer, item, quantity = body.get("customer"), body.get("item"), body.get("quantity")
    if not isinstance(customer, str) or not customer:
        abort(HTTPStatus.BAD_REQUEST, "customer: a name is needed")
    if item not in PRICES_CENTS:
        abort(HTTPStatus.BAD_REQUEST, f"item: this shop sells {', '.join(PRICES_CENTS)}")
    if type(quantity) is not int or not 1 <= quantity <= MAX_QUANTITY:
        abort(HTTPStatus.BAD_REQUEST, f"quantity: 1 to {MAX_QUANTITY}")
    orders, billing = _orders(), _billing()
    order = orders.place(customer, item, quantity, PRICES_CENTS[item] * quantity)
    # When billing fails here the order stays "placed": unpaid, and refused by refund.
    invoice = billing.charge(order.order_id, customer, order.amount_cents)
    order = orders.set_paid(order.order_id, invoice.invoice_id)
    _shipping().send(order)
    return asdict(order), HTTPStatus.CREATED


@routes.get("/orders/<int:order_id>")
def show_order(order_id: int) -> ResponseReturnValue:
    return asdict(_orders().get(order_id))


@routes.post("/orders/<int:order_id>/refund")
def refund_order(order_id: int) -> ResponseReturnValue:
    reason = _body().get("reason")
    if not isinstance(reason, str) or not reason.strip():
        abort(HTTPStatus.BAD_REQUEST, "reason: say why the money goes back")
    orders = _orders()
    order = orders.get(order_id)
    if order.state == "placed":
        abort(HTTPStatus.CONFLICT, f"order {order_id} is not paid")
    # Billing decides whether it was refunded before: it alone knows when an answer got lost on the way here.
    try:
        _billing().refund(order.invoice_id, reason)
    except AlreadyRefunded:
        orders.set_refunded(order_id)
        abort(HTTPStatus.CONFLICT, f"order {order_id} was refunded before")
    return asdict(orders.set_refunded(order_id))


@routes.get("/health")
def health() -> ResponseReturnValue:
    return {"status": "ok"}


def _orders() -> Orders:
    orders: Orders = current_app.extensions["orders"]
    return orders


def _billing() -> BillingClient:
    billing: BillingClient = current_app.extensions["billing"]
    return billing


def _shipping() -> ShippingClient:
    shipping: ShippingClient = current_app.extensions["shipping"]
    return shipping


def _body() -> dict[str, Any]:
    body = request.get_json()
    if not isinstance(body, dict):
        abort(HTTPStatus.BAD_REQUEST, "the body must be a JSON object")
    return body


def _billing_failed(problem: BillingFailed) -> ResponseReturnValue:
    current_app.logger.warning("billing: %s", problem)
    return _problem(HTTPStatus.BAD_GATEWAY, "billing failed")


def _shipping_failed(problem: ShippingFailed) -> ResponseReturnValue:
    current_app.logger.error("shipping: %s", problem)
    return _problem(HTTPStatus.BAD_GATEWAY, "the order is paid; it could not be handed to shipping")


def _as_json(problem: HTTPException) -> ResponseReturnValue:
    return _problem(problem.code or HTTPStatus.INTERNAL_SERVER_ERROR, problem.description or problem.name)


def _problem(status: int, detail: str) -> ResponseReturnValue:
    return jsonify(detail=detail), status
