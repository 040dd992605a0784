"""Tasks that end in every way; broker and results are files. Listens on PORT once the worker is ready."""

import os
import signal
import socket
from pathlib import Path

import auditspan
from celery import Celery, Task
from celery.exceptions import Ignore, Reject
from celery.signals import worker_ready
from file_broker import application


def make(folder):
    return application("shop", Path(folder), worker_lost_wait=1.0)  # seconds; ten otherwise


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
