"""A gRPC server (sync or aio, by its first argument) whose requests are messages."""

import asyncio
import os
import sys
from concurrent import futures

import auditspan
import grpc
import grpc.aio
from google.protobuf.struct_pb2 import Struct
from google.protobuf.type_pb2 import Field


def handle(request, context):
    auditspan.set_actor("alice")
    return request


async def handle_aio(request, context):
    return handle(request, context)


def bind(server, behaviour):
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            behaviour, request_deserializer=kind.FromString, response_serializer=kind.SerializeToString
        )
        for name, kind in (("GetInvoice", Field), ("ChargeCard", Field), ("Ping", Struct))
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.Billing", methods),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    return server


async def serve_aio():
    server = bind(grpc.aio.server(), handle_aio)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        asyncio.run(serve_aio())
    else:
        server = bind(grpc.server(futures.ThreadPoolExecutor(4)), handle)
        server.start()
        server.wait_for_termination()
