"""Takes orders; one named ``exit`` ends the process on the spot. After MAX_REQUESTS it stops, as workers that recycle."""

import itertools
import os
import signal
import threading
from concurrent import futures

import grpc

over = threading.Event()
count = itertools.count(1)


def order(request, context):
    if request == b"exit":
        os._exit(1)
    if next(count) == int(os.environ.get("MAX_REQUESTS", "0")):
        over.set()
    return request


server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 1)])
handler = grpc.unary_unary_rpc_method_handler(order)
server.add_generic_rpc_handlers(
    (grpc.method_handlers_generic_handler("shop.v1.OrderService", {"CreateOrder": handler}),)
)
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
signal.signal(signal.SIGTERM, lambda *_: over.set())
server.start()
over.wait()
server.stop(2).wait()
