"""Ask shipping to send an order out; nobody waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError

from shop.shipping import queue

if TYPE_CHECKING:
    from pathlib import Path

    from shop.orders.store import Order


class ShippingFailed(Exception):  # noqa: N818 - a state
    """The queue did not take the order."""


class ShippingClient:
    """The queue, shared by all threads."""

    def __init__(self, folder: Path) -> None:
        self._celery = queue.celery(folder)

    def send(self, order: Order) -> None:
        """Raises ShippingFailed."""
        task = {"customer": order.customer, "content": f"{order.quantity} x {order.item}"}
        try:
            # The order's number is the task's, too, so that each finds the other.
            self._celery.send_task(
                queue.SEND,
                (order.order_id,),
                task,
                task_id=str(order.order_id),
                queue=queue.NAME,
            )
        except OperationalError as problem:
            raise ShippingFailed(str(problem)) from problem
