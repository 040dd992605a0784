"""Carries orders out as tasks, by a broker and results that are files; an order named ``exit`` ends the process."""

import os
import uuid
from pathlib import Path
from time import monotonic_ns

from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps


def put_whole(channel, queue, payload, **_):
    """Give a message its name when it is whole: kombu's own way lets a worker read it empty, and end by that."""
    place = Path(channel.data_folder_out)
    unnamed = place / f"{uuid.uuid4()}.unnamed"
    unnamed.write_text(dumps(payload))
    unnamed.rename(place / f"{monotonic_ns()}_{unnamed.stem}.{queue}.msg")


def make(folder):
    filesystem.Channel._put = put_whole
    folder = Path(folder)
    for name in ("queue", "results", "control"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    app = Celery("orders", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "queue"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,
        },
        worker_prefetch_multiplier=8,  # the loop sleeps for a second when it has enough
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
    )
    return app


app = make(os.environ["CELERY_FOLDER"]) if "CELERY_FOLDER" in os.environ else None

if app is not None:

    @app.task(name="orders.carry_out")
    def carry_out(order_id):
        if order_id == "exit":
            os._exit(1)
        return order_id
