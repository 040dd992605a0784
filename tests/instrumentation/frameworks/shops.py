"""A shop that runs, spoken to in one way whatever it speaks: HTTP, or gRPC for the same requests."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import grpc
import httpx

from instrumentation import services

if TYPE_CHECKING:
    from instrumentation.frameworks.frameworks import Framework, Headers

NOBODY = {"actor.origin": "unverified", "actor.roles": None}


class Shop:
    """One that speaks HTTP, and the people who are signed in to it."""

    cut_short = "the response was cut short"  # how the reason begins of a stream that breaks
    left_alone = ("the response was cut short", "the client disconnected")
    cancelled = "cancelled before there was a response"

    def __init__(self, framework: Framework, service: services.Service) -> None:
        self.framework = framework
        self.service = service
        self._headers: dict[str, Headers] = {"": framework.always}

    def stop(self) -> None:
        self.service.stop()

    def expected(self, expected: dict[str, Any]) -> dict[str, Any]:
        """What a record says here that elsewhere says *expected*."""
        return expected

    def nobody(self) -> dict[str, Any]:
        """What a record says of who has not signed in."""
        return {"actor.id": self.framework.nobody} | NOBODY

    def headers(self, who: str) -> Headers:
        """What *who* sends with each request; nothing for nobody."""
        if who not in self._headers:
            self._headers[who] = self.framework.sign_in(self.service, who)
        return self._headers[who]

    def call(self, method: str, path: str, who: str = "", **arguments: Any) -> tuple[Any, str]:
        """The response and the trace of a request of *who*."""
        headers = self.headers(who) | arguments.pop("headers", {})
        return self.service.call(method, path, headers=headers, **arguments)

    def record(self, method: str, path: str, who: str = "", **arguments: Any) -> services.Written:
        """The one record of it."""
        trace_id = services.new_trace()
        with contextlib.suppress(
            httpx.RemoteProtocolError
        ):  # aiohttp's answer to a handler that is cancelled
            self.call(method, path, who, trace_id=trace_id, **arguments)
        (record,) = self.service.records(trace_id)
        return record

    def streamed(self, kind: str, hang_up_after: int = 0) -> services.Written:
        """The record of bob's stream, read to its end or until he has so many pieces."""
        trace_id = services.new_trace()
        headers = services.traceparent(trace_id) | self.headers("bob")
        url = f"http://127.0.0.1:{self.service.port}/streams/{kind}"
        with self.service.client.stream("POST", url, headers=headers) as response:
            try:
                for number, _ in enumerate(response.iter_lines(), 1):
                    if number == hang_up_after:
                        break
            except (httpx.RemoteProtocolError, httpx.ReadError):
                pass
        (record,) = self.service.records(trace_id)
        return record

    def cancel(self) -> services.Written:
        """The record of a request whose handler is cancelled while it runs."""
        return self.record("POST", "/cancelled", "bob")

    def left(self) -> services.Written:
        """The record of a request whose client closes the connection without reading a byte."""
        trace_id = services.new_trace()
        headers = services.traceparent(trace_id) | self.headers("bob")
        headers |= {"host": "shop", "content-length": "0"}
        lines = ["POST /mixed/left?ms=50 HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
        with socket.create_connection(("127.0.0.1", self.service.port)) as connection:
            connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        (record,) = self.service.records(trace_id)
        return record


@dataclass(frozen=True)
class RpcAnswer:
    code: grpc.StatusCode

    @property
    def is_success(self) -> bool:
        return self.code is grpc.StatusCode.OK


# The calls that the suite's requests are here; what is in braces is the message's id.
CALLS = {
    "POST /orders": "Orders/CreateOrder",
    "GET /orders/{}": "Orders/GetOrder",
    "PUT /orders/{}": "Orders/UpdateOrder",
    "DELETE /orders/{}": "Orders/DeleteOrder",
    "POST /orders/{}/refund": "Orders/RefundOrder",
    "POST /orders/{}/missing": "Orders/LoseOrder",
    "POST /orders/{}/crash": "Orders/CrashOrder",
    "GET /reports/{}": "Reports/GetReport",
    "GET /secrets/{}": "Secrets/GetSecret",
    "POST /streams/{}": "Streams/CreateStream",
    "POST /mixed/{}": "Mixed/CreateMixed",
    "POST /calls-itself/{}": "Calls/CreateCall",
    "POST /steps": "Steps/CreateSteps",
    "POST /background": "Background/CreateBackground",
    "POST /excluded": "Excluded/CreateExcluded",
}
REASONS = {"401 Unauthorized": "UNAUTHENTICATED", "403 Forbidden": "PERMISSION_DENIED"}


class RpcShop(Shop):
    """One that speaks gRPC: the target is the service's name, and a message's fields are no target id."""

    cut_short = ""
    left_alone = ("the client cancelled the call, or its deadline passed",)
    cancelled = "the client cancelled the call, or its deadline passed"

    def __init__(self, framework: Framework, service: services.Service) -> None:
        super().__init__(framework, service)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{service.port}")

    def stop(self) -> None:
        self._channel.close()
        super().stop()

    def expected(self, expected: dict[str, Any]) -> dict[str, Any]:
        known = {"target.id": None} if "target.id" in expected else {}
        if (reason := expected.get("reason")) in REASONS:
            known["reason"] = REASONS[reason]
        if target := expected.get("target.type"):
            known["target.type"] = target.capitalize()
        return expected | known

    def call(self, method: str, path: str, who: str = "", **arguments: Any) -> tuple[Any, str]:
        trace_id = arguments.pop("trace_id", "") or services.new_trace()
        name, message = _call(method, path, arguments.pop("json", {}))
        metadata = self._metadata(trace_id, who, arguments.pop("headers", {}))
        assert not arguments
        kind = self._channel.unary_stream if name.startswith("Streams/") else self._channel.unary_unary
        try:
            answer = kind(f"/shop.v1.{name.replace('/', 'Service/')}")(
                message, metadata=metadata, timeout=services.DEADLINE_S
            )
            if name.startswith("Streams/"):
                list(answer)
        except grpc.RpcError as error:
            return RpcAnswer(error.code()), trace_id
        return RpcAnswer(grpc.StatusCode.OK), trace_id

    def streamed(self, kind: str, hang_up_after: int = 0) -> services.Written:
        trace_id = services.new_trace()
        stream = self._channel.unary_stream("/shop.v1.StreamsService/CreateStream")(
            json.dumps({"id": kind}).encode(), metadata=self._metadata(trace_id, "bob", {})
        )
        with contextlib.suppress(grpc.RpcError):
            for number, _ in enumerate(stream, 1):
                if number == hang_up_after:
                    stream.cancel()
        (record,) = self.service.records(trace_id)
        return record

    def cancel(self) -> services.Written:
        return self._cancelled(b'{"id": "left", "ms": 60000}')

    def left(self) -> services.Written:
        return self._cancelled(b'{"id": "left", "ms": 50}')

    def _cancelled(self, message: bytes) -> services.Written:
        trace_id = services.new_trace()
        call = self._channel.unary_unary("/shop.v1.MixedService/CreateMixed").future(
            message, metadata=self._metadata(trace_id, "bob", {})
        )
        self._channel.unary_unary("/shop.v1.MixedService/GetBegun")(b"{}")
        call.cancel()  # which only asyncio's handlers hear of
        (record,) = self.service.records(trace_id)
        return record

    def _metadata(self, trace_id: str, who: str, headers: Headers) -> tuple[tuple[str, str], ...]:
        return tuple((services.traceparent(trace_id) | self.headers(who) | headers).items())


def _call(method: str, path: str, said: dict[str, Any]) -> tuple[str, bytes]:
    """The RPC's name and its message."""
    url = urlsplit(path)
    said = dict(parse_qsl(url.query)) | said
    known = f"{method} {url.path}"
    if known not in CALLS:
        first, second, *rest = url.path.removeprefix("/").split("/")
        known = " ".join((method, "/" + "/".join((first, "{}", *rest))))
        said["id"] = second
    return CALLS[known], json.dumps(said).encode()
