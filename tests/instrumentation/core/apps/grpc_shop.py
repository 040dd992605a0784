"""A gRPC server, sync or asyncio (first argument), with an interceptor of its own that authenticates by a token."""

import asyncio
import os
import sys
from concurrent import futures
from pathlib import Path

import auditspan
import grpc
import grpc.aio

CERTS = Path(__file__).parent.parent / "certs"
TOKENS = {"token-of-alice": ("alice", ["sales", "admin"])}


def refuse(request, context):
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "bad token")


async def refuse_aio(request, context):
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "bad token")


def authenticated(details):
    token = dict(details.invocation_metadata).get("authorization")
    if token is None:
        return True
    if token not in TOKENS:
        return False
    name, roles = TOKENS[token]
    auditspan.set_actor(name, roles=roles, auth_method="token")
    return True


class Authentication(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return (
            continuation(details) if authenticated(details) else grpc.unary_unary_rpc_method_handler(refuse)
        )


class AioAuthentication(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        if authenticated(details):
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(refuse_aio)


def charge(request, context):
    if request == b"crash":
        raise RuntimeError("out of luck")
    if request == b"denied":
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "managers only")
    if request == b"missing":
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such card")
    return request


def invoices(request, context):
    for number in range(3):
        if request == b"crash" and number == 1:
            raise RuntimeError("out of luck")
        yield str(number).encode()


def upload(requests, context):
    return b",".join(requests)


def chat(requests, context):
    yield from requests


async def charge_aio(request, context):
    if request == b"crash":
        raise RuntimeError("out of luck")
    if request == b"denied":
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "managers only")
    if request == b"missing":
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such card")
    return request


async def invoices_aio(request, context):
    for item in invoices(request, context):
        yield item


async def upload_aio(requests, context):
    return b",".join([item async for item in requests])


async def chat_aio(requests, context):
    async for item in requests:
        yield item


def handlers(*, asyncio_: bool):
    return grpc.method_handlers_generic_handler(
        "shop.v1.BillingService",
        {
            "ChargeCard": grpc.unary_unary_rpc_method_handler(charge_aio if asyncio_ else charge),
            "GetInvoice": grpc.unary_unary_rpc_method_handler(charge_aio if asyncio_ else charge),
            "CreateInvoices": grpc.unary_stream_rpc_method_handler(invoices_aio if asyncio_ else invoices),
            "UploadReceipts": grpc.stream_unary_rpc_method_handler(upload_aio if asyncio_ else upload),
            "Negotiate": grpc.stream_stream_rpc_method_handler(chat_aio if asyncio_ else chat),
        },
    )


def bind(server):
    server.add_generic_rpc_handlers((handlers(asyncio_=sys.argv[1] == "aio"),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    credentials = grpc.ssl_server_credentials(
        [((CERTS / "server.key").read_bytes(), (CERTS / "server.pem").read_bytes())],
        root_certificates=(CERTS / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    server.add_secure_port(f"127.0.0.1:{os.environ['TLS_PORT']}", credentials)
    return server


async def serve_aio():
    server = bind(grpc.aio.server(None, None, [AioAuthentication()]))
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        asyncio.run(serve_aio())
    else:
        server = bind(grpc.server(futures.ThreadPoolExecutor(8), None, [Authentication()]))
        server.start()
        server.wait_for_termination()
