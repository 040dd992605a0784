"""Carries orders out as tasks, by a broker and results that are files; an order named ``exit`` ends the process."""

import os
from pathlib import Path

from celery import Celery


def make(folder):
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
