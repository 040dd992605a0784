"""Ask orders for what changes one."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import httpx

from shop.service_token import ServiceToken

TIMEOUT_S = 5.0  # a call; longer than orders waits for billing


class Refused(Exception):  # noqa: N818 - told to the clerk
    """Orders did not do it; the message says why, for a person."""


@functools.cache
def _http() -> httpx.Client:
    token = ServiceToken.read(Path(os.environ["SHOP_TOKEN_FILE"]))
    url = os.environ.get("SHOP_ORDERS_URL", "http://127.0.0.1:8001")
    return httpx.Client(base_url=url, headers={"Authorization": token.authorization}, timeout=TIMEOUT_S)


def refund(order_id: int, reason: str) -> None:
    """Raises Refused."""
    try:
        response = _http().post(f"/orders/{order_id}/refund", json={"reason": reason})
    except httpx.HTTPError as problem:
        raise Refused("orders does not answer") from problem
    if not response.is_success:
        raise Refused(response.json()["detail"] if response.status_code < 500 else "orders failed")
