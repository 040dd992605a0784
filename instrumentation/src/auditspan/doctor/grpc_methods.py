"""The methods of gRPC services: of a server, of generic handlers, of a registration function, of descriptors.

Imports grpc, so it is imported where grpc is.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SYNC: Final = "opentelemetry.instrumentation.grpc:GrpcInstrumentorServer"
AIO: Final = "opentelemetry.instrumentation.grpc:GrpcAioInstrumentorServer"


class _Registrations:
    """What a server was told; it opens no port and serves nothing."""

    instrumentors: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.methods: list[str] = []  # /package.Service/Method
        self.unknown: list[str] = []  # handlers that can't be asked for their methods

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        for handler in generic_rpc_handlers:
            known = getattr(handler, "_method_handlers", None)  # of method_handlers_generic_handler()
            if isinstance(known, dict):
                self._add(known)
            else:
                self.unknown.append(type(handler).__qualname__)

    def add_registered_method_handlers(self, service_name: str, method_handlers: dict[str, Any]) -> None:
        self._add(f"/{service_name}/{method}" for method in method_handlers)

    def _add(self, methods: Iterable[str]) -> None:
        self.methods += [method for method in methods if method not in self.methods]

    def add_insecure_port(self, address: str) -> int:
        del address
        return 1

    def add_secure_port(self, address: str, server_credentials: Any) -> int:
        del address, server_credentials
        return 1


class Noted(_Registrations, grpc.Server):
    """In place of ``grpc.server()``'s."""

    instrumentors = (SYNC,)

    def start(self) -> None:
        """Nothing."""

    def stop(self, grace: float | None = None) -> Any:
        """Nothing."""
        del grace

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        """At once: nothing runs."""
        del timeout
        return True


class NotedAio(_Registrations, grpc.aio.Server):
    """In place of ``grpc.aio.server()``'s."""

    instrumentors = (AIO,)

    async def start(self) -> None:
        """Nothing."""

    async def stop(self, grace: float | None = None) -> None:
        """Nothing."""
        del grace

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - grpc's signature
        """At once: nothing runs."""
        del timeout
        return True


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Let ``grpc.server()`` and ``grpc.aio.server()`` make servers that only note."""
    modules: tuple[tuple[Any, type[Any]], ...] = ((grpc, Noted), (grpc.aio, NotedAio))
    before = [module.server for module, _ in modules]
    for module, kind in modules:
        module.server = lambda *_, _kind=kind, **__: _kind()
    try:
        yield
    finally:
        for (module, _), original in zip(modules, before, strict=True):
            module.server = original


def registered(thing: Any) -> _Registrations | None:
    """The registrations that *thing* stands for, or None when it is nothing of gRPC's."""
    if isinstance(thing, _Registrations):
        return thing
    found = _Registrations()
    found.instrumentors = (SYNC, AIO)  # whichever server it will be registered with
    if isinstance(thing, grpc.GenericRpcHandler):
        found.add_generic_rpc_handlers((thing,))
        return found
    services = _described(thing)
    if services:
        for service in services:
            found.add_registered_method_handlers(
                service.full_name, {each.name: None for each in service.methods}
            )
        return found
    if inspect.isfunction(thing) and list(inspect.signature(thing).parameters) == ["servicer", "server"]:
        thing(_AnyServicer(), found)  # a generated add_...Servicer_to_server
        return found
    return None


def _described(thing: Any) -> list[Any]:
    """Service descriptors of a generated module, a file descriptor, or one service's."""
    thing = getattr(thing, "DESCRIPTOR", thing)
    services = getattr(thing, "services_by_name", None)
    if services is not None:
        return list(services.values())
    return [thing] if hasattr(thing, "methods_by_name") and hasattr(thing, "full_name") else []


class _AnyServicer:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
