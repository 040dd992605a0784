"""The floor: a gRPC server in Python that takes the same bytes, throws them away and answers at once.

    python -m bench.collector.floor PORT WORKERS

What any collector in Python costs at least. It has the options and the number of threads of the collector's receiver;
with two workers there are two such processes on one port.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from types import FrameType

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


def _throw_away(body: bytes, context: grpc.ServicerContext) -> bytes:  # noqa: ARG001 - gRPC calls it so
    return b""


def _serve(port: int) -> None:
    over = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal calls it so
        over.set()

    signal.signal(signal.SIGTERM, stop)
    server = grpc.server(
        ThreadPoolExecutor(32),
        options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 1)],
    )
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(_throw_away)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    over.wait()
    server.stop(1).wait()


def main(port: int, workers: int) -> None:
    """Serve until SIGTERM, with *workers* processes."""
    children = []
    for _ in range(workers - 1):
        # Before gRPC has started anything in this process.
        child = os.fork()
        if not child:
            _serve(port)
            return
        children.append(child)
    _serve(port)
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
