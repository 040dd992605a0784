"""Give gRPC calls a thread for as long as they have something to say, and none to those that only hold one.

A call begins with its headers; its message comes when its client sends it, or never. gRPC's Python server gives a
call its thread at the headers, so that a client which opens calls and sends nothing would hold them all. Here such a
call is cancelled when its message takes longer than the patience, which is short as soon as other calls wait for a
thread: a client that means it has its message on the way with the headers. Its client may retry (OTLP: CANCELLED).
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

PRESSED_PATIENCE_S: Final = 1.0
_SWEEP_S: Final = 0.25


class NoMessage(Exception):  # noqa: N818 - an answer, not a failure
    """A call ended without its message: its client sent none, or more than gRPC takes."""


class Turns:
    """The threads of one method. Thread-safe.

    `take` when a call is announced, `message` in its thread, `leave` when it is answered. Calls without threads say
    `expect` and `came` instead of `message`.
    """

    def __init__(
        self,
        name: str,
        *,
        threads: int,
        limit: int,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """At most *limit* calls at a time, *threads* of them worked on; each message may take *patience_s*."""
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads, self._limit = threads, limit
        self._patience_s = patience_s
        self._clock = clock
        self._taken = 0
        self._lock = threading.Lock()  # guards the counter
        # When each call began to wait for its message, the oldest first. Its operations are atomic.
        self._waiting: dict[grpc.ServicerContext, float] = {}

    def take(self) -> bool:
        """Whether there is room for one call more; each True needs a `leave`."""
        with self._lock:
            if self._taken >= self._limit:
                return False
            self._taken += 1
        return True

    def leave(self) -> None:
        """A call that was taken is over."""
        with self._lock:
            self._taken -= 1

    def message(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """The call's message; blocks until it is there.

        Raises NoMessage when there is none, and grpc.RpcError when the call was cancelled, by its client or by `sweep`.
        """
        self.expect(context)
        try:
            return next(messages)
        except StopIteration:
            raise NoMessage from None
        finally:
            self.came(context)

    def expect(self, context: grpc.ServicerContext) -> None:
        """The call waits for its message from now on."""
        self._waiting[context] = self._clock()

    def came(self, context: grpc.ServicerContext) -> None:
        """The call waits no longer."""
        self._waiting.pop(context, None)

    def sweep(self) -> None:
        """Cancel the calls whose message takes too long."""
        patience_s = self._patience_s
        if self._taken > self._threads:
            patience_s = min(patience_s, PRESSED_PATIENCE_S)
        due = self._clock() - patience_s
        for context, since in list(self._waiting.items()):
            if since > due:
                break
            context.cancel()  # type: ignore[no-untyped-call]


class Sweeper:
    """Sweeps all *turns* a few times a second, in a thread of its own. Start once, stop once."""

    def __init__(self, *turns: Turns) -> None:
        self._turns = turns
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="otlp-grpc-sweep", daemon=True).start()

    def stop(self) -> None:
        """End, and close the pools; what still runs in them ends by itself."""
        self._stopped.set()
        for turns in self._turns:
            turns.pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        while not self._stopped.wait(_SWEEP_S):
            for turns in self._turns:
                turns.sweep()
