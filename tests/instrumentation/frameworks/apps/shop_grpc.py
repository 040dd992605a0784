"""The shop as gRPC services, sync or asyncio (first argument). An interceptor authenticates, and says so to Auditspan."""

import asyncio
import json
import os
import sys
import threading
import time
from concurrent import futures

import auditspan
import grpc
import grpc.aio
from shop import ROLES, WrongPasswordError, in_the_background, notify, pieces, say, steps, user_of

Code = grpc.StatusCode


class RefusedError(Exception):
    """*code* and *details* are the answer."""

    def __init__(self, code, details=""):
        super().__init__(code, details)
        self.code, self.details = code, details


def done(said, user):
    pass


def create(said, user):
    if not said.get("product"):
        raise RefusedError(Code.INVALID_ARGUMENT, "which product?")


def update(said, user):
    if not user:
        raise RefusedError(Code.UNAUTHENTICATED)


def for_admins(said, user):
    if "admin" not in ROLES.get(user, ()):
        raise RefusedError(Code.PERMISSION_DENIED)


def missing(said, user):
    raise RefusedError(Code.NOT_FOUND)


def crash(said, user):
    raise RuntimeError("out of luck")


began = threading.Event()


def mixed(said, user):
    began.set()
    time.sleep(int(said["ms"]) / 1000)
    say(said["id"])


def wait_until_began(said, user):
    began.wait(30)
    began.clear()


def calls_itself(said, user):
    depth = int(said["id"])
    auditspan.set_actor(f"depth-{depth}")
    if depth:
        with grpc.insecure_channel(f"127.0.0.1:{os.environ['PORT']}") as channel:
            channel.unary_unary("/shop.v1.CallsService/CreateCall")(json.dumps({"id": depth - 1}).encode())
    say(depth)


def in_steps(said, user):
    steps()


def background(said, user):
    in_the_background(notify)


METHODS = {
    "Orders/CreateOrder": create,
    "Orders/GetOrder": done,
    "Orders/UpdateOrder": update,
    "Orders/DeleteOrder": for_admins,
    "Orders/RefundOrder": done,
    "Orders/LoseOrder": missing,
    "Orders/CrashOrder": crash,
    "Reports/GetReport": done,
    "Secrets/GetSecret": for_admins,
    "Mixed/CreateMixed": mixed,
    "Mixed/GetBegun": wait_until_began,
    "Calls/CreateCall": calls_itself,
    "Steps/CreateSteps": in_steps,
    "Background/CreateBackground": background,
    "Excluded/CreateExcluded": done,
}


def user(metadata):
    return user_of(dict(metadata).get("authorization", ""))


def admitted(details):
    """Whether the call may come in; whoever has proved who they are is the actor."""
    try:
        name = user(details.invocation_metadata)
    except WrongPasswordError:
        return False
    if name:
        auditspan.set_actor(name, roles=ROLES[name], auth_method="basic")
    return True


def refuse(request, context):
    context.abort(Code.UNAUTHENTICATED, "wrong password")


class Authentication(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details) if admitted(details) else grpc.unary_unary_rpc_method_handler(refuse)


def plain(method):
    def handle(request, context):
        try:
            method(json.loads(request), user(context.invocation_metadata()))
        except RefusedError as refused:
            context.abort(refused.code, refused.details)
        return b""

    return grpc.unary_unary_rpc_method_handler(handle)


def stream(request, context):
    for piece in pieces(json.loads(request)["id"]):
        yield piece.encode()


# -- the same with asyncio


async def refuse_aio(request, context):
    await context.abort(Code.UNAUTHENTICATED, "wrong password")


class AioAuthentication(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation, details):
        if admitted(details):
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(refuse_aio)


async def mixed_aio(said):
    began.set()
    await asyncio.sleep(int(said["ms"]) / 1000)
    await asyncio.to_thread(say, said["id"])


def asynchronous(method):
    async def handle(request, context):
        said, name = json.loads(request), user(context.invocation_metadata())
        try:
            await (mixed_aio(said) if method is mixed else asyncio.to_thread(method, said, name))
        except RefusedError as refused:
            await context.abort(refused.code, refused.details)
        return b""

    return grpc.unary_unary_rpc_method_handler(handle)


async def astream(request, context):
    for piece in pieces(json.loads(request)["id"]):
        yield piece.encode()


def register(server, wrap, streamed):
    services = {}
    for name, method in METHODS.items():
        service, _, method_name = name.partition("/")
        services.setdefault(service, {})[method_name] = wrap(method)
    services["Streams"] = {"CreateStream": grpc.unary_stream_rpc_method_handler(streamed)}
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(f"shop.v1.{service}Service", handlers)
            for service, handlers in services.items()
        ]
    )
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")


async def serve():
    server = grpc.aio.server(interceptors=[AioAuthentication()])
    register(server, asynchronous, astream)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    if sys.argv[1] == "aio":
        asyncio.run(serve())
    else:
        server = grpc.server(futures.ThreadPoolExecutor(16), interceptors=[Authentication()])
        register(server, plain, stream)
        server.start()
        server.wait_for_termination()
