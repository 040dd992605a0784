"""A Celery application whose broker, and results, are files in a folder: for a test and the services that it starts.

A message appears when it is whole. kombu's own way writes it under its name, and a worker that reads it empty ends.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from time import monotonic_ns
from typing import Any

from celery import Celery
from kombu.transport import filesystem
from kombu.utils.json import dumps

IMPORTABLE = {"PYTHONPATH": str(Path(__file__).parent)}  # in the environment of a service


def application(name: str, folder: Path, *, results: bool = True, **settings: Any) -> Celery:
    """The application *name* with all that it keeps in *folder*."""
    filesystem.Channel._put = _put_whole
    for part in ("queue", "results", "control"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    app = Celery(name, broker="filesystem://", backend=f"file://{folder}/results" if results else None)
    app.conf.update(
        broker_transport_options={
            "data_folder_in": str(folder / "queue"),
            "data_folder_out": str(folder / "queue"),
            "control_folder": str(folder / "control"),
            "polling_interval": 0.02,
        },
        worker_prefetch_multiplier=8,  # the loop sleeps for a second when it has enough
        broker_connection_retry_on_startup=True,
        **settings,
    )
    return app


def _put_whole(channel: Any, queue: str, payload: Any, **_: Any) -> None:
    place = Path(channel.data_folder_out)
    unnamed = place / f"{uuid.uuid4()}.unnamed"
    unnamed.write_text(dumps(payload))
    unnamed.rename(place / f"{monotonic_ns()}_{unnamed.stem}.{queue}.msg")
