"""A collector that counts: an OTLP/gRPC server that answers OK and knows how many records it was sent.

    python -m bench.instrumentation.collector PORT

Each line on its stdin is answered with the number of records so far. Ordinary spans are thrown away: only a record
has a place in a sequence.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
RECORD: Final = b"audit.sequence.number"


def main(port: int) -> None:
    """Serve until stdin ends."""
    lock = threading.Lock()
    found = 0

    def export(body: bytes, _: grpc.ServicerContext) -> bytes:
        nonlocal found
        with lock:
            found += body.count(RECORD)
        return b""

    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 64 << 20)])
    handlers = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    for _ in sys.stdin:
        print(found, flush=True)
    server.stop(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
