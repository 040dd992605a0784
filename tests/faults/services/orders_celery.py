"""Carries orders out as tasks, by a broker and results that are files; an order named ``exit`` ends the process."""

import os
from pathlib import Path

from file_broker import application


def make(folder):
    return application("orders", Path(folder), worker_hijack_root_logger=False)


app = make(os.environ["CELERY_FOLDER"]) if "CELERY_FOLDER" in os.environ else None

if app is not None:

    @app.task(name="orders.carry_out")
    def carry_out(order_id):
        if order_id == "exit":
            os._exit(1)
        return order_id
