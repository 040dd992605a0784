"""gRPC services as applications register them; the server of ``serve`` would start when the module is imported."""

import os
from concurrent import futures

import grpc
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import (
    LogsServiceServicer,
    add_LogsServiceServicer_to_server,
)


def echo(request, _):
    return request


handlers = grpc.method_handlers_generic_handler(
    "shop.v1.Billing",
    {
        name: grpc.unary_unary_rpc_method_handler(echo)
        for name in ("ChargeCard", "GetInvoice", "GetOrCreateAccount")
    },
)


def register(server):
    server.add_generic_rpc_handlers((handlers,))
    add_LogsServiceServicer_to_server(LogsServiceServicer(), server)


server = grpc.server(futures.ThreadPoolExecutor(1))
register(server)
port = server.add_insecure_port(f"127.0.0.1:{os.environ.get('PORT', '0')}")
server.start()
server.wait_for_termination()
