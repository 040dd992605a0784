"""Take gRPC calls without keeping a thread for each: whichever thread has the answer sends it.

gRPC's Python server gives each call a thread, which sleeps until the message is there, and again until its answer is.
With raw bytes and little to do, waking it is much of what a request costs (docs/decisions/0013). Here gRPC's own
thread asks for the message and goes on; when that is there a few workers take it, and the answer is sent by whoever
has it, a commit later.

    enter     in gRPC's thread, when the headers are there: ask for the message now, or wait for a place
    arrived   in gRPC's thread, when the message is there: into the queue
    work      in a worker: handed on
    answer    in any thread: sent; the place is the next call's

gRPC offers half of this: a handler that is marked as non-blocking sends its answers when it likes, and a handler's pool
may be one that runs it at once. To be told of the message, and to send answer and status as one, functions of
grpc/_server.py are called that are nobody's interface; *supported* says whether they are there, and who uses this
module must know another way.
"""

# ruff: noqa: SLF001 - its purpose, as the module says

from __future__ import annotations

import inspect
import logging
import queue
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from auditspan_collector.receiver.turns import Turns

_log = logging.getLogger(__name__)

_USED: Final = {
    "_status": ["rpc_event", "state", "serialized_response"],
    "_receive_message": ["state", "call", "request_deserializer"],
    "_is_rpc_state_active": ["state"],
}


def supported() -> bool:
    """Whether the installed gRPC has what this module calls, with the parameters that it knows."""
    try:
        return (
            all(
                list(inspect.signature(getattr(_server, name)).parameters) == is_
                for name, is_ in _USED.items()
            )
            and isinstance(_server._RECEIVE_MESSAGE_TOKEN, str)
            and callable(cygrpc.ReceiveMessageOperation)
        )
    except (AttributeError, TypeError, ValueError):
        return False


class Call:
    """A call of one message and one answer. One of `answer` and `refuse` is to be called, once, from any thread.

    It was announced at *started_s*, had a place at *placed_s* and its message, *body_bytes* bytes, at *arrived_s*
    (time.monotonic).
    """

    __slots__ = (
        "_body",
        "_calls",
        "_event",
        "_state",
        "arrived_s",
        "body_bytes",
        "context",
        "placed_s",
        "sender",
        "started_s",
    )

    def __init__(self, calls: Calls, sender: Any, context: Any) -> None:
        """For *Calls*."""
        self._calls = calls
        self._event, self._state = context._rpc_event, context._state
        self.context: grpc.ServicerContext = context
        self.sender = sender
        self._body: bytes | None = None
        self.body_bytes = 0
        self.started_s = time.monotonic()
        self.placed_s = self.arrived_s = 0.0

    @property
    def waiting_since_s(self) -> float:
        """When its wait began, less the time that its client took for the message."""
        return self.arrived_s - (self.placed_s - self.started_s)

    def take(self) -> bytes | None:
        """The message, which is forgotten here; None when there is none."""
        body, self._body = self._body, None
        return body

    def answer(self, message: bytes) -> None:
        """Send *message* and OK, with the trailing metadata that *context* was given."""
        try:
            _server._status(self._event, self._state, message)
        finally:
            self._calls._over()

    def refuse(self, status: grpc.Status) -> None:
        """Send *status* instead of a message; nothing when the call is over."""
        try:
            self.context.set_code(status.code)
            self.context.set_details(status.details or "")
            self.context.set_trailing_metadata(status.trailing_metadata or ())
            _server._status(self._event, self._state, None)
        finally:
            self._calls._over()

    def _receive(self, arrived: Callable[[Call], None]) -> bool:
        """Ask for the message, and have *arrived* called in gRPC's thread; False when the call is over already."""
        state, call = self._state, self._event.call
        noted = _server._receive_message(state, call, None)

        def received(event: Any) -> Any:
            done = noted(event)
            self._body, state.request = state.request, None
            arrived(self)
            return done

        with state.condition:
            if not _server._is_rpc_state_active(state):
                return False
            call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
            state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        return True


class Calls:
    """The calls of one method: *at_once* of them are read and answered at a time, the others wait for a place.

    *turns* is told when a call waits for its message, and left when it is over; it must have been taken for each.
    """

    def __init__(
        self,
        name: str,
        turns: Turns,
        *,
        at_once: int,
        workers: int,
        handle: Callable[[Call], None],
    ) -> None:
        """*handle* is called in one of *workers* threads with each call that has its message, or ended without.

        It answers or refuses the call, then or later.
        """
        self._turns = turns
        self._at_once = at_once
        self._handle = handle
        self._lock = threading.Lock()  # guards both
        self._places = at_once
        self._announced: deque[Call] = deque()
        self._messages: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._in_place = _InPlace()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        """Start the workers; once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the workers when the queue is empty; does not wait for them."""
        for _ in self._threads:
            self._messages.put(None)

    def handler(self, sender: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """What gRPC is to be given for a call of *sender*."""

        def announced(_messages: Any, context: Any, _send: Any) -> None:
            self._enter(Call(self, sender, context))

        # gRPC looks for both on the function. It calls in its own thread then, with the call's lock held.
        announced.experimental_thread_pool = self._in_place  # type: ignore[attr-defined]
        announced.experimental_non_blocking = True  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(announced)

    def _enter(self, call: Call) -> None:
        with self._lock:
            if not self._places:
                self._announced.append(call)
                return
            self._places -= 1
        self._begin(call)

    def _begin(self, call: Call) -> None:
        call.placed_s = time.monotonic()
        self._turns.expect(call.context)
        try:
            there = call._receive(self._arrived)
        except Exception:  # noqa: BLE001 - it may be another's answer that made the place
            _log.exception("a call over gRPC can't be read")
            there = False
        if not there:
            self._arrived(call)

    def _arrived(self, call: Call) -> None:
        self._turns.came(call.context)
        call.arrived_s = time.monotonic()
        if call._body is not None:
            call.body_bytes = len(call._body)
        self._messages.put(call)

    def _work(self) -> None:
        while (call := self._messages.get()) is not None:
            try:
                self._handle(call)
            except Exception:  # noqa: BLE001 - the other calls want their turn
                _log.exception("a call over gRPC failed")
            del call

    def _over(self) -> None:
        """A call is answered: its place is the next one's."""
        self._turns.leave()
        with self._lock:
            if not self._announced:
                self._places += 1
                return
            call = self._announced.popleft()
        self._begin(call)


class _InPlace(ThreadPoolExecutor):
    """A pool without threads: who submits runs it. gRPC takes no other kind of executor."""

    def __init__(self) -> None:
        super().__init__(1)

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        call(*arguments, **named)
        # gRPC counts calls by their futures, and only when there is one.
        return None  # type: ignore[return-value]
