"""Services under ``opentelemetry-instrument`` that are ended in every way, and clients that remember what they saw.

A client that has read a whole response knows that the action was taken; so its record must be in the store, once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import grpc
import httpx
import loopback
from celery.exceptions import TimeoutError as NoResult
from collector.service.otlp_peer import wait_until
from faults.services import orders_celery
from file_broker import IMPORTABLE
from integration.whole_line import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent / "services"
BIN = Path(sys.executable).parent
CLIENTS = 3
RECYCLE_AFTER = 25  # requests of one worker
STUCK_S = 40.0  # a pool may hang when one of its workers was killed with a lock in its hands
_UNSEEN_S = 3.0  # a task whose result does not come was lost with its worker


def _script(name: str) -> str:
    return str(BIN / name)


@dataclass(frozen=True)
class Server:
    """How one kind of server is started; *recycling* are the options that let its workers end after some requests."""

    name: str
    command: tuple[str, ...]
    recycling: tuple[str, ...] = ()
    client: str = "http"
    environ: dict[str, str] = field(default_factory=dict)
    workers: bool = False  # whether its work is done by child processes


_GUNICORN = (_script("gunicorn"), "--workers", "2", "--graceful-timeout", "2", "--bind", "127.0.0.1:{port}")
_GUNICORN_RECYCLING = ("--max-requests", str(RECYCLE_AFTER))
_CELERY = (
    _script("celery"),
    "--app",
    "orders_celery",
    "worker",
    "--pool",
    "prefork",
    "--loglevel",
    "warning",
)
SERVERS = {
    server.name: server
    for server in (
        Server(
            "uvicorn, FastAPI",
            (_script("uvicorn"), "orders_fastapi:app", "--port", "{port}", "--no-access-log"),
            ("--limit-max-requests", str(RECYCLE_AFTER)),
        ),
        Server("gunicorn, Flask", (*_GUNICORN, "orders_flask:app"), _GUNICORN_RECYCLING, workers=True),
        Server(
            "gunicorn --preload, Flask",
            (*_GUNICORN, "--preload", "orders_flask:app"),
            _GUNICORN_RECYCLING,
            workers=True,
        ),
        Server(
            "gunicorn with UvicornWorker, FastAPI",
            (*_GUNICORN, "--worker-class", "uvicorn.workers.UvicornWorker", "orders_fastapi:app"),
            _GUNICORN_RECYCLING,
            workers=True,
        ),
        Server(
            "Celery prefork",
            (*_CELERY, "--concurrency", "2", "--without-gossip", "--without-mingle", "--without-heartbeat"),
            ("--max-tasks-per-child", str(RECYCLE_AFTER // 2)),
            client="celery",
            workers=True,
        ),
        Server(
            "gRPC",
            (sys.executable, "orders_grpc.py"),
            client="grpc",
            environ={"MAX_REQUESTS": str(RECYCLE_AFTER)},
        ),
    )
}


class Unseen(Exception):  # noqa: N818 - a state
    """No response came, or not all of it."""


class Client(Protocol):
    def order(self, order_id: str) -> str:
        """Have an order carried out: what finds its record, once a whole response has been seen. Raises Unseen."""

    def close(self) -> None: ...


class HttpClient:
    def __init__(self, service: Service):
        self._client = loopback.ClosingClient(timeout=10)  # as many users would
        self._url = f"http://127.0.0.1:{service.port}/orders/"

    def order(self, order_id: str) -> str:
        trace_id, headers = _new_trace()
        try:
            response = self._client.post(self._url + order_id, headers=headers)
        except httpx.TransportError as error:
            raise Unseen from error
        if response.status_code != 200:  # a server that stops may say so
            raise Unseen
        return trace_id

    def close(self) -> None:
        self._client.close()


class GrpcClient:
    def __init__(self, service: Service):
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{service.port}", options=options)
        self._call = self._channel.unary_unary("/shop.v1.OrderService/CreateOrder")

    def order(self, order_id: str) -> str:
        trace_id, headers = _new_trace()
        try:
            self._call(order_id.encode(), metadata=list(headers.items()), timeout=10)
        except grpc.RpcError as error:
            raise Unseen from error
        return trace_id

    def close(self) -> None:
        self._channel.close()


class CeleryClient:
    def __init__(self, service: Service):
        self._app = orders_celery.make(service.celery)

    def order(self, order_id: str) -> str:
        result = self._app.send_task("orders.carry_out", (order_id,))
        try:
            # That its worker was lost is a result too.
            result.get(timeout=_UNSEEN_S, interval=0.01, propagate=False)
        except NoResult as error:
            raise Unseen from error
        return str(result.id)

    def close(self) -> None:
        self._app.close()


CLIENT_KINDS: dict[str, Callable[[Service], Client]] = {
    "http": HttpClient,
    "grpc": GrpcClient,
    "celery": CeleryClient,
}


def _new_trace() -> tuple[str, dict[str, str]]:
    trace_id = secrets.token_hex(16)
    return trace_id, {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-00"}


class Service:
    """One service whose processes are replaced when they end; *seen* has what its clients saw, by phase."""

    def __init__(self, folder: Path, server: Server, endpoint: str, *, recycle: bool = False, **environ: str):
        folder.mkdir(exist_ok=True)
        self.server, self.port, self.folder = server, free_port(), folder
        self.spool, self.celery = folder / "records", folder / "celery"
        options = server.recycling if recycle else ()
        self._command = [part.format(port=self.port) for part in (*server.command, *options)]
        clean = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
        self._environ = clean | {
            "OTEL_SERVICE_NAME": "orders",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_TRACES_SAMPLER": "always_off",
            "OTEL_AUDITSPAN_ENDPOINT": endpoint,
            "OTEL_AUDITSPAN_SPOOL_DIR": str(self.spool),
            "CELERY_FOLDER": str(self.celery),
            "PORT": str(self.port),
            **IMPORTABLE,
            **(server.environ if recycle else {}),
            **environ,
        }
        self.seen: dict[str, set[str]] = {}
        self.phase = ""
        self.starts = 0
        self.failure: BaseException | None = None
        self._over, self._enough = threading.Event(), threading.Event()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    # The service manager

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        with (self.folder / "service.log").open("ab") as log:
            return subprocess.Popen(
                [_script("opentelemetry-instrument"), *self._command],
                cwd=HERE,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _keep(self) -> None:
        while not self._over.wait(0.02):
            if self.process.poll() is not None:
                self._kill_all()
                self.process = self._start()

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        self.process = self._start()
        self._keeper = threading.Thread(target=self._keep)
        self._clients = [threading.Thread(target=self._order) for _ in range(CLIENTS)]
        for thread in (self._keeper, *self._clients):
            thread.start()
        return self

    def stop_clients(self) -> None:
        """No more requests."""
        self._enough.set()
        for thread in self._clients:
            thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop_clients()
        self._over.set()
        self._keeper.join()
        self._kill_all()
        self.process.wait()

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text(errors="replace")

    # Its clients

    def _order(self) -> None:
        client = CLIENT_KINDS[self.server.client](self)
        try:
            while not self._enough.is_set():
                with contextlib.suppress(Unseen):
                    found = client.order(f"o{next(self._numbers)}")
                    with self._lock:
                        self.seen.setdefault(self.phase, set()).add(found)
                    continue
                self._enough.wait(0.02)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self.failure = error
        finally:
            client.close()

    def count(self) -> int:
        return sum(len(found) for found in self.seen.values())

    def progress(self, responses: int) -> None:
        """Wait until clients have seen so many more."""
        enough = self.count() + responses
        last = (self.count(), time.monotonic())

        def reached() -> bool:
            nonlocal last
            assert self.failure is None, self.failure
            count, now = self.count(), time.monotonic()
            if count > last[0]:
                last = (count, now)
            elif now > last[1] + STUCK_S:  # as a health check would see to
                self._kill_all()
                last = (count, now)
            return count >= enough

        try:
            wait_until(reached, limit_s=200, what=f"{responses} more responses")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-3000:]}") from None

    # What happens to it

    def terminate(self, _: int) -> None:
        starts = self.starts
        self.process.terminate()
        wait_until(lambda: self.starts > starts, limit_s=30, what="the end of the service")

    def kill(self, turn: int) -> None:
        """All its processes, or in every second turn one worker."""
        workers = self._children() if self.server.workers and turn % 2 else []
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(workers[0], signal.SIGKILL)
            return
        starts = self.starts
        self._kill_all()
        wait_until(lambda: self.starts > starts, limit_s=30, what="the end of the service")

    def exit(self, _: int) -> None:
        client = CLIENT_KINDS[self.server.client](self)
        with contextlib.suppress(Unseen):
            client.order("exit")
        client.close()

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            return [int(pid) for pid in path.read_text().split()]
        return []

    # What it left

    def waiting_files(self) -> list[str]:
        """Segments that hold something which is not acknowledged."""
        found = []
        for path in self.spool.rglob("*.spool"):
            with contextlib.suppress(OSError):
                size, ack = path.stat().st_size, path.with_suffix(".ack")
                done = int(ack.read_text().split()[2]) if ack.exists() else 0
                if done < size:
                    found.append(path.name)
        return found


class RestartingCollector:
    """Ends the collector of *line* again and again, which its keeper replaces."""

    def __init__(self, line):
        self._line, self._over = line, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.times = 0

    def _run(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(AssertionError):
                self._line.collector.ports()
            if self._over.wait(0.3):
                return
            self._line.kill_now()
            self.times += 1
            time.sleep(0.2)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
