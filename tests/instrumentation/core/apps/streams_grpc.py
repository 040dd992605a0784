"""A gRPC server, sync or asyncio (first argument), whose calls take long or stream without end."""

import asyncio
import os
import sys
import time
from concurrent import futures

import grpc
import grpc.aio

begun = set()


def check(request, context):
    return b"begun" if request in begun else b""


def hold(request, context):
    begun.add(request)
    time.sleep(0.5)
    return request


def watch(request, context):
    for number in range(10**6):
        yield str(number).encode()
        time.sleep(0.01)


async def check_aio(request, context):
    return check(request, context)


async def hold_aio(request, context):
    begun.add(request)
    await asyncio.sleep(0.5)
    return request


async def watch_aio(request, context):
    for number in range(10**6):
        yield str(number).encode()
        await asyncio.sleep(0.01)


def bind(server, *, asyncio_):
    methods = {
        "CheckOrder": grpc.unary_unary_rpc_method_handler(check_aio if asyncio_ else check),
        "HoldOrder": grpc.unary_unary_rpc_method_handler(hold_aio if asyncio_ else hold),
        "ExportOrders": grpc.unary_stream_rpc_method_handler(watch_aio if asyncio_ else watch),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.OrderService", methods),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    return server


async def serve_aio():
    server = bind(grpc.aio.server(), asyncio_=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        asyncio.run(serve_aio())
    else:
        server = bind(grpc.server(futures.ThreadPoolExecutor(8)), asyncio_=False)
        server.start()
        server.wait_for_termination()
