"""The queue in front of shipping: a folder, so that the shop needs no broker.

Who publishes and the worker name the same folder. In a shop of your own this is the URL of RabbitMQ or Redis.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from time import monotonic_ns
from typing import Any

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps

NAME = "shipping"
SEND = "shipping.send"  # the task


class WholeMessages(filesystem.Channel):
    """kombu's own way lets a worker read a message that is still being written, and end by that."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        unnamed = folder / f"{uuid.uuid4()}.unnamed"
        unnamed.write_text(dumps(payload), encoding="utf-8")  # type: ignore[no-untyped-call]
        unnamed.rename(folder / f"{monotonic_ns()}_{unnamed.stem}.{queue}.msg")


class Transport(filesystem.Transport):
    """kombu's transport over a folder, with whole messages."""

    Channel = WholeMessages


TRANSPORT_ALIASES["folder"] = f"{__name__}:Transport"


def celery(folder: Path) -> Celery:
    """An application that publishes to, or works on, the queue in *folder*."""
    places = {name: folder / name for name in ("messages", "control", "done")}
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    app = Celery("shop", broker="folder://", set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(places["messages"]),
            "data_folder_out": str(places["messages"]),
            "control_folder": str(places["control"]),
            # Otherwise a message goes through the system's temporary folder, which may be another disk.
            "processed_folder": str(places["done"]),
            "store_processed": True,
            "polling_interval": 0.1,
        },
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
    )
    return app
