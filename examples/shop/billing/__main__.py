"""Serve billing until SIGTERM or Ctrl-C; calls that run are finished first.

SHOP_BILLING_LISTEN    host:port to listen on (127.0.0.1:8002)
SHOP_BILLING_DB        SQLite file of the invoices (invoices.db)
SHOP_TOKEN_FILE        file with the token that the shop's services share; required
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shop.billing.invoices import Invoices
from shop.billing.service import Billing, OnlyTheShop
from shop.billing.v1 import billing_pb2_grpc
from shop.service_token import ServiceToken

GRACE_S = 5.0  # how long running calls may take after SIGTERM


def main() -> None:
    """Run until a signal says to stop; exit non-zero when the address can't be had."""
    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())

    listen = os.environ.get("SHOP_BILLING_LISTEN", "127.0.0.1:8002")
    token = ServiceToken.read(Path(os.environ["SHOP_TOKEN_FILE"]))
    invoices = Invoices(Path(os.environ.get("SHOP_BILLING_DB", "invoices.db")))
    server = grpc.server(ThreadPoolExecutor(max_workers=8), interceptors=[OnlyTheShop(token)])
    billing_pb2_grpc.add_BillingServicer_to_server(Billing(invoices), server)  # type: ignore[no-untyped-call]
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as problem:
        sys.exit(f"billing: {listen}: {problem}")
    server.start()
    status.set("shop.billing.v1.Billing", health_pb2.HealthCheckResponse.SERVING)
    print(f"billing: listening on {listen}", flush=True)

    stop.wait()
    status.enter_graceful_shutdown()
    server.stop(GRACE_S).wait()


if __name__ == "__main__":
    main()
