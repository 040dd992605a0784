"""The worker's tasks: `celery --app shop.shipping.worker worker --queues shipping`.

SHOP_QUEUE_DIR         folder of the queue (queue)
SHOP_SHIPPING_DB       SQLite file of the parcels (shipping.db)
"""

from __future__ import annotations

import logging
import os
from functools import cache
from pathlib import Path

from shop.shipping import queue
from shop.shipping.parcels import Parcels

log = logging.getLogger("shop.shipping")

app = queue.celery(Path(os.environ.get("SHOP_QUEUE_DIR", "queue")))


@cache
def _parcels() -> Parcels:
    # Not before a worker's process needs them: a database's connections don't survive a fork.
    return Parcels(Path(os.environ.get("SHOP_SHIPPING_DB", "shipping.db")))


@app.task(name=queue.SEND)
def send(order_id: int, customer: str, content: str) -> None:
    sent = _parcels().send(order_id, customer, content)
    log.info("order %s: %s", order_id, "sent" if sent else "was sent before")
