"""gRPC servers, with a client in the same process, whose part is in both figures."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio
from opentelemetry.instrumentation import grpc as instrumentation

from bench.instrumentation.extractors.turns import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.instrumentation.extractors.turns import Service

    Serve = Callable[[range], None]

_METHOD: Final = "/shop.OrderService/RefundOrder"
_MODULE: Final = "opentelemetry.instrumentation.grpc"


def _handler(refund: Any) -> Any:
    methods = {"RefundOrder": grpc.unary_unary_rpc_method_handler(refund)}
    return grpc.method_handlers_generic_handler("shop.OrderService", methods)


def sync(service: Service) -> Serve:
    """A server with one thread for calls."""
    instrumentor: Any = instrumentation.GrpcInstrumentorServer
    service.instrument(f"{_MODULE}:GrpcInstrumentorServer", instrumentor().instrument)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((_handler(lambda request, _: request),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel: Any = grpc.insecure_channel(f"127.0.0.1:{port}")
    refund = channel.unary_unary(_METHOD)

    def serve(numbers: range, _: object = server) -> None:  # a server that nobody has stops
        for number in numbers:
            refund(str(number).encode())

    return serve


def aio(service: Service) -> Serve:
    """A server on asyncio."""
    instrumentor: Any = instrumentation.GrpcAioInstrumentorServer
    service.instrument(f"{_MODULE}:GrpcAioInstrumentorServer", instrumentor().instrument)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    async def echo(request: bytes, _: Any) -> bytes:
        return request

    async def start() -> Any:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((_handler(echo),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        kept.append(server)
        channel: Any = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return channel.unary_unary(_METHOD)

    kept: list[Any] = []
    refund = loop.run_until_complete(start())

    async def some(numbers: range, _: object = kept) -> None:  # a server that nobody has stops
        for number in numbers:
            await refund(str(number).encode())

    return lambda numbers: loop.run_until_complete(some(numbers))


# The service's own instrumentation tells as much of these as the extractor, but for who calls.
SUBJECTS: Final = (
    Subject("gRPC", "grpc", sync, tells=b"", whole=True),
    Subject("gRPC on asyncio", "grpc", aio, tells=b"", whole=True),
)
