"""Tasks that end in every way; broker and results are files. Listens on PORT once the worker is ready."""

import os
import signal
import socket
import uuid
from pathlib import Path
from time import monotonic_ns

import auditspan
from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from celery.signals import worker_ready
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
    app = Celery("shop", broker="filesystem://", backend=f"file://{folder}/results")
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "queue"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,
        },
        worker_prefetch_multiplier=8,
        broker_connection_retry_on_startup=True,
    )
    return app


app = (
    make(os.environ.get("CELERY_FOLDER", "/nonexistent")) if "CELERY_FOLDER" in os.environ else Celery("none")
)


@worker_ready.connect
def listen(sender, **_):
    sender.listening = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))


@app.task(name="orders.ship")
def ship(order_id):
    return order_id


@app.task(name="orders.crash")
def crash(order_id):
    raise RuntimeError("out of luck")


@app.task(name="orders.forbidden")
def forbidden(order_id):
    raise PermissionError("managers only")


@app.task(name="orders.later", bind=True, max_retries=1)
def later(self: Task, order_id):
    if not self.request.retries:
        raise self.retry(countdown=0)
    return order_id


@app.task(name="orders.ignored")
def ignored(order_id):
    raise Ignore


@app.task(name="orders.rejected", acks_late=True)
def rejected(order_id):
    raise Reject("no", requeue=False)


@app.task(name="orders.said")
def said(order_id):
    auditspan.set_actor("alice")
    auditspan.describe(action="SHIP", target_type="order", target_id=order_id, reason="paid")
    with auditspan.record("LABEL"):
        pass


@app.task(name="orders.killed")
def killed(order_id):
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="orders.slow", time_limit=1)
def slow(order_id):
    signal.pause()
