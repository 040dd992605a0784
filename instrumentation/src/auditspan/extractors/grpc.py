"""gRPC servers, sync and asyncio: the peer's certificate as the acting service, action and target from the method.

The instrumentation has no hooks and puts its interceptor first. Ours goes right behind it, before the application's:
there it runs inside the span, and also when an interceptor of the application refuses the call.

``auditspan.set_actor()`` works in the application's interceptors too, in ``intercept_service`` as well, where the
span has not started yet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from auditspan.context import Actor
from auditspan.extractors import text
from auditspan.facts import grpc_facts
from auditspan.spans import attributes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Announced, Facts

_SYNC: Final = "opentelemetry.instrumentation.grpc:GrpcInstrumentorServer"
_AIO: Final = "opentelemetry.instrumentation.grpc:GrpcAioInstrumentorServer"
INSTRUMENTORS: Final = (_SYNC, _AIO)
TESTED: Final = {"grpcio": ("1", "1")}
_CANCELLED: Final = 1  # https://grpc.io/docs/guides/status-codes/

# grpc.server's and grpc.aio.server's parameters by position; the instrumentation looks at keywords only.
_PARAMETERS: Final = {
    _SYNC: (
        "thread_pool",
        "handlers",
        "interceptors",
        "options",
        "maximum_concurrent_rpcs",
        "compression",
        "xds",
    ),
    _AIO: (
        "migration_thread_pool",
        "handlers",
        "interceptors",
        "options",
        "maximum_concurrent_rpcs",
        "compression",
    ),
}


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Leave the arguments as they are; afterwards let new servers have our interceptor."""

    def afterwards() -> None:
        import grpc.aio  # noqa: PLC0415 - heavy, and here it is there already

        from auditspan.extractors import grpc_interceptors  # noqa: PLC0415 - needs grpc

        module: Any = grpc if instrumentor == _SYNC else grpc.aio
        interceptor: Any = (
            grpc_interceptors.AuditServerInterceptor()
            if instrumentor == _SYNC
            else grpc_interceptors.AuditAioServerInterceptor()
        )
        instrumented = module.server
        parameters = _PARAMETERS[instrumentor]

        def server(*args: Any, **kwargs: Any) -> Any:
            kwargs.update(zip(parameters[2:], args[2:], strict=False))
            kwargs["interceptors"] = [interceptor, *(kwargs.get("interceptors") or ())]
            return instrumented(*args[:2], **kwargs)

        module.server = server

    return arguments, afterwards


class GrpcSource:
    """What one RPC's context says. *reads* says that the method changes nothing."""

    def __init__(self, servicer_context: Any, method: str, announced: Announced, *, reads: bool) -> None:
        self._context = servicer_context
        self._method = method
        self._announced = announced
        self._reads = reads
        # Now, because grpc.aio reads it from a call that is gone when a stream is closed late: that ends the process.
        self._identities = servicer_context.peer_identities()
        self.raised = False
        self.ended = False  # the handler
        self.interrupted = False  # nobody wanted the rest: cancelled, or the deadline passed
        self.unheard = False  # the same, but the work was done
        self.request: Any = None  # the message, of a method that takes one

    def actor(self) -> Actor | None:
        """Whom the application announced before the span began, else the service named in the peer's certificate."""
        if self._announced.actor is not None:
            return self._announced.actor
        first = next(iter(self._identities or ()), None)
        if not first:
            return None
        identity = text(first.decode("utf-8", "replace") if isinstance(first, bytes) else first)
        return Actor(identity, type="service", auth_method="mtls")

    def facts(self, span: ReadableSpan) -> Facts:
        """From the method's name and the status that the call has by now."""
        # An abandoned stream's handler is closed by the garbage collector, so perhaps after the span.
        self.interrupted = self.interrupted or (span.end_time is not None and not self.ended)
        status = self._status(span)
        details = self._details() if status else ""
        facts = grpc_facts(self._method, status=status, details=details, read=self._reads)
        if self.interrupted and status == _CANCELLED:
            return replace(facts, reason="the client cancelled the call, or its deadline passed")
        if self.unheard and status == 0:
            return replace(facts, reason="done, though the client had cancelled or its deadline had passed")
        return facts

    def header(self, name: str) -> list[str]:
        """The values of a metadata key, but for binary ones."""
        metadata = self._context.invocation_metadata() or ()
        return [value for key, value in metadata if key.lower() == name and isinstance(value, str)]

    def parameter(self, name: str) -> object:
        """A field of the request's message; ``card.number`` of the message in it."""
        value = self.request
        for step in name.split("."):
            value = getattr(value, step, None)
        return value

    def _status(self, span: ReadableSpan) -> int:
        code = self._context.code()
        number = getattr(code, "value", (code,))[0]
        if isinstance(number, int) and number:
            return number
        shown = attributes_of(span).get("rpc.grpc.status_code")
        if isinstance(shown, int) and shown:
            return shown
        if self.interrupted:
            return _CANCELLED
        return 2 if self.raised else 0  # gRPC answers an unhandled exception with UNKNOWN

    def _details(self) -> str:
        details = self._context.details()
        return text(details.decode("utf-8", "replace") if isinstance(details, bytes) else details)


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "gRPC servers": {"page": "grpc", "distribution": "grpcio", "gives": "actor method streams upstream"},
}
