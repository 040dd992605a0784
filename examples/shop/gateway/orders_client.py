"""Ask orders, and pass on what it answers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import HTTPException, status

if TYPE_CHECKING:
    from shop.service_token import ServiceToken

log = logging.getLogger("shop.gateway")

TIMEOUT_S = 5.0  # a call; longer than orders waits for billing
_PASSED_ON = {
    400,
    404,
    409,
    502,
}  # what orders says of the request itself; anything else is between the services


class OrdersClient:
    """One connection pool to orders."""

    def __init__(self, url: str, token: ServiceToken) -> None:
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": token.authorization},
            timeout=TIMEOUT_S,
        )

    async def place(self, customer: str, item: str, quantity: int) -> dict[str, Any]:
        """The new order."""
        return await self._ask("POST", "/orders", {"customer": customer, "item": item, "quantity": quantity})

    async def get(self, order_id: int) -> dict[str, Any]:
        """The order."""
        return await self._ask("GET", f"/orders/{order_id}")

    async def refund(self, order_id: int, reason: str) -> dict[str, Any]:
        """The refunded order."""
        return await self._ask("POST", f"/orders/{order_id}/refund", {"reason": reason})

    async def close(self) -> None:
        """End all connections."""
        await self._http.aclose()

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.HTTPError as problem:
            log.warning("orders: %s %s: %r", method, path, problem)
            raise HTTPException(status.HTTP_502_BAD_GATEWAY, "orders does not answer") from problem
        if response.is_success:
            answer: dict[str, Any] = response.json()
            return answer
        if response.status_code in _PASSED_ON:
            raise HTTPException(response.status_code, response.json()["detail"])
        log.error("orders: %s %s: %s %s", method, path, response.status_code, response.text)
        raise HTTPException(status.HTTP_502_BAD_GATEWAY, "orders failed")
