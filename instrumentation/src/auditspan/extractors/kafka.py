"""kafka-python's consumers: work on each message is a record, from when it was given out until the next is asked for.

The instrumentation's span of a message has ended before the application has it, and nothing tells when the work on it
ends. So its record is held, the ended span is made current again for the code that gets the message, and both last
until that code asks the consumer for another message, closes it, or leaves the ``for`` loop. Who acts is who published,
when the message has a signed token; the application may say otherwise with ``set_actor()``.

A ``for`` loop gets an iterator of its own, so that leaving the loop is seen: what comes behind it is not done in a
message's name. How a message's work ended that left the loop nobody can say.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final

import wrapt
from opentelemetry import context as otel_context
from opentelemetry import trace

from auditspan import attributes as names
from auditspan import context
from auditspan.context import Facts
from auditspan.extractors import begin, chain, finish, guard, hold, respond, warn_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan

    from auditspan.context import Actor, AuditedSpan

INSTRUMENTORS: Final = ("opentelemetry.instrumentation.kafka:KafkaInstrumentor",)
TESTED: Final = {"kafka-python": ("2.3", "3")}

ACTION: Final = "EXECUTE"
_WORK: Final = otel_context.create_key("auditspan-kafka-work")


def instrument(instrumentor: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """Hear of each message by the documented hook, and afterwards of what the application asks its consumers for."""
    del instrumentor
    return {**arguments, "consume_hook": chain(arguments.get("consume_hook"), _received)}, _watch


class MessageSource:
    """One message of *topic*."""

    outcome = names.UNKNOWN  # until the work on it has ended
    reason = ""

    def __init__(self, topic: str, place: str, headers: Any) -> None:
        """*place* is the message's own in the topic: partition and offset."""
        self._topic = topic
        self._place = place
        self._headers = headers or ()

    def actor(self) -> Actor | None:
        """Nobody: who published comes with the message."""
        return None

    def facts(self, span: ReadableSpan) -> Facts:
        """The message, and how the work on it ended."""
        del span
        return Facts(
            action=ACTION,
            outcome=self.outcome,
            reason=self.reason,
            target_type=self._topic,
            target_id=self._place,
            route=self._topic,
            changes=True,
        )

    def header(self, name: str) -> list[str]:
        """The values of a message's header that are text."""
        return [
            value.decode("utf-8", "replace")
            for key, value in self._headers
            if key.lower() == name and isinstance(value, bytes)
        ]


class _Work:
    """What is done with one message."""

    def __init__(self, span: Any, state: AuditedSpan, source: MessageSource, origin: Context | None) -> None:
        self._span = span
        self._source = source
        self._within = trace.set_span_in_context(span, context.with_state(state, origin))
        self._lock = threading.Lock()
        self._ended = False
        self._before: Context | None = None

    def start(self) -> None:
        """Let the code that runs next be the work on this message."""
        now = otel_context.get_current()
        other = otel_context.get_value(_WORK, now)
        # Another consumer's in the same thread: what was before it is what was before this one.
        self._before = other._before if isinstance(other, _Work) else now  # noqa: SLF001 - one class
        otel_context.attach(otel_context.set_value(_WORK, self, self._within))

    def end(self, outcome: str, reason: str = "") -> None:
        """Write the record, once, and let what comes now not be in this message's name."""
        with self._lock:
            ended, self._ended = self._ended, True
        if ended:
            return
        self._source.outcome, self._source.reason = outcome, reason
        finish(self._span)
        # Elsewhere (another thread closes the consumer) what is current is not ours to change.
        if self._before is not None and otel_context.get_value(_WORK) is self:
            otel_context.attach(self._before)


_just_received: Final = threading.local()
_at_work: Final[weakref.WeakKeyDictionary[Any, _Work]] = weakref.WeakKeyDictionary()  # by consumer


def _received(span: Any, record: Any, *_: Any) -> None:
    """The instrumentation's span of *record* is open, and its consumer is about to give it out."""
    source = MessageSource(record.topic, f"{record.partition}/{record.offset}", record.headers)
    state = begin(span, source)
    if state is None:
        return
    state.certain = True
    respond(span)
    if hold(span):
        origin: Any = getattr(state, "origin", None)
        _just_received.work = _Work(span, state, source, origin)


def _watch() -> None:
    import kafka  # noqa: PLC0415 - called only where kafka-python is

    consumer: Any = kafka.KafkaConsumer
    if getattr(consumer, "_auditspan", False):
        return
    wrapt.wrap_function_wrapper(consumer, "__next__", _next)
    wrapt.wrap_function_wrapper(consumer, "__iter__", _iter)
    wrapt.wrap_function_wrapper(consumer, "close", _close)
    consumer._auditspan = True  # noqa: SLF001 - our own mark
    atexit.register(guard(_end_all))


def _next(wrapped: Any, consumer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _end(consumer, names.SUCCESS)
    _just_received.work = None
    record = wrapped(*args, **kwargs)
    work = _just_received.work
    if work is not None:
        try:
            _just_received.work = None
            work.start()
            _at_work[consumer] = work
        except Exception:  # noqa: BLE001 - runs inside the application's loop; nothing of ours may break it
            warn_once("Kafka consumer")
    return record


def _iter(wrapped: Any, consumer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    del consumer
    return _Messages(wrapped(*args, **kwargs))


def _close(wrapped: Any, consumer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    error = sys.exc_info()[0]  # of a finally or a with statement that an exception passes through
    if error is None:
        _end(consumer, names.SUCCESS)
    else:
        _end(consumer, names.FAILURE, f"ended by {error.__name__}")
    return wrapped(*args, **kwargs)


class _Messages:
    """A consumer's messages in one ``for`` loop; it goes when the loop is left."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer

    def __iter__(self) -> _Messages:
        return self

    def __next__(self) -> Any:
        return next(self._consumer)

    def __getattr__(self, name: str) -> Any:
        """What a consumer has besides."""
        return getattr(self._consumer, name)

    def __del__(self) -> None:
        consumer = self.__dict__.get("_consumer")
        if consumer is not None:
            _end(consumer, names.UNKNOWN, "the loop over the messages was left")


def _end(consumer: Any, outcome: str, reason: str = "") -> None:
    try:
        work = _at_work.pop(consumer, None)
        if work is not None:
            work.end(outcome, reason)
    except Exception:  # noqa: BLE001 - as above
        warn_once("Kafka consumer")


def _end_all() -> None:
    for consumer in list(_at_work):
        _end(consumer, names.UNKNOWN, "the process ended")


# For the README's table (auditspan.extractors.table); nothing at run time reads it.
FRAMEWORKS: Final = {
    "kafka-python's consumers": {"page": "kafka", "distribution": "kafka-python", "gives": "upstream"},
}
