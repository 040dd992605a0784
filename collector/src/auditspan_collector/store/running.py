"""What runs now: how many statements at a time, under which names, and for whom.

A statement waits for its turn. Those who only read never get the last one, so that they can't keep the writers out,
whatever they ask for. A statement is stopped when its client has gone (reading statements only: a write whose
client lost patience may still be wanted, and its retry is deduplicated) or when the store stops.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from auditspan_collector.store.failures import (
    ABORTED,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
    TOO_MANY_SIMULTANEOUS_QUERIES,
    QueryFailed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOOK_S: Final = 0.5  # how long after its client a reading statement may run on


@dataclass(slots=True, eq=False)
class Turn:
    """One statement's place among those that run. *tag* names it to the engine; *abandonable* once it only reads."""

    query_id: str
    client: socket.socket
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    abandonable: bool = False
    stopped: bool = False


def _has_gone(client: socket.socket) -> bool:
    """Whether the peer has closed: readable, and nothing there."""
    try:
        poll = select.poll()  # not select(), which takes no descriptor beyond 1023
        poll.register(client, select.POLLIN)
        return bool(poll.poll(0)) and not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except (OSError, ValueError):
        return True


class Running:
    """The statements that run. *stop_statement* tells the engine to stop the one with a tag."""

    def __init__(self, limit: int, queue_wait_s: float, stop_statement: Callable[[str], None]) -> None:
        """Allow *limit* at a time, one less that only read; a further one waits at most *queue_wait_s*.

        A limit of 1 leaves nothing to keep back.
        """
        self._slots = threading.BoundedSemaphore(limit)
        self._reading_slots = threading.BoundedSemaphore(max(1, limit - 1))
        self._limit = limit
        self._queue_wait_s = queue_wait_s
        self._stop_statement = stop_statement
        self._turns: set[Turn] = set()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="store-clients", daemon=True)
        self._watcher.start()

    @contextlib.contextmanager
    def turn(self, query_id: str, client: socket.socket, *, reading: bool) -> Iterator[Turn]:
        """Run in here; *reading* when it may only read.

        Raises QueryFailed: 202 when no turn came in time, 216 for an id that runs, 236 at the end.
        """
        with self._slot(reading=reading):
            turn = Turn(query_id, client)
            self._enter(turn)
            try:
                yield turn
            finally:
                self._leave(turn)

    def close(self) -> None:
        """Let no further statement start."""
        self._closed.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until nothing runs; whether that came true in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._turns, timeout_s)

    def stop_all(self) -> None:
        """Stop what runs; it ends soon after, with an error to its client."""
        with self._changed:
            turns = list(self._turns)
        for turn in turns:
            self._stop(turn)

    @contextlib.contextmanager
    def _slot(self, *, reading: bool) -> Iterator[None]:
        deadline = time.monotonic() + self._queue_wait_s
        with contextlib.ExitStack() as held:
            # Readers queue among themselves first: one that holds a slot of all must not wait any more.
            for slots in (self._reading_slots, self._slots) if reading else (self._slots,):
                if not slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise QueryFailed.because(
                        TOO_MANY_SIMULTANEOUS_QUERIES,
                        f"Too many simultaneous queries. Maximum: {self._limit}. Try again later.",
                    )
                held.callback(slots.release)
            yield

    def _enter(self, turn: Turn) -> None:
        with self._changed:
            if self._closed.is_set():
                raise QueryFailed.because(ABORTED, "The store is stopping. Try again later.")
            if any(other.query_id == turn.query_id for other in self._turns):
                raise QueryFailed.because(
                    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
                    f"Query with id = {turn.query_id} is already running.",
                )
            self._turns.add(turn)

    def _leave(self, turn: Turn) -> None:
        with self._changed:
            self._turns.discard(turn)
            self._changed.notify_all()

    def _stop(self, turn: Turn) -> None:
        turn.stopped = True
        with contextlib.suppress(QueryFailed):  # it may have ended by itself meanwhile
            self._stop_statement(turn.tag)

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_S):
            with self._changed:
                turns = [turn for turn in self._turns if turn.abandonable and not turn.stopped]
            for turn in turns:
                if _has_gone(turn.client):
                    self._stop(turn)
