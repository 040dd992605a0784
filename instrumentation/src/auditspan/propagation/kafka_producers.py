"""Headers for kafka-python's messages: the producer knows topic and brokers, which its span is told too late.

KafkaProducer.send is wrapped where kafka is imported, beneath the OpenTelemetry instrumentation, so that the span
that it starts and whose ``traceparent`` it adds is current here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import wrapt
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from auditspan.propagation.propagator import HEADER, is_token

if TYPE_CHECKING:
    from auditspan.propagation.destinations import Destinations
    from auditspan.propagation.propagator import AuditContextPropagator

_log = logging.getLogger(__name__)
_HEADERS_AT: Final = 3  # send(topic, value, key, headers, partition, timestamp_ms)


def wrap_producers(kafka: Any, propagator: AuditContextPropagator, destinations: Destinations) -> None:
    """Let messages carry a token where it may go, and take copied ones away where it may not."""
    context = ProducerContext(propagator, destinations)

    def send(wrapped: Any, producer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[_HEADERS_AT] if len(args) > _HEADERS_AT else kwargs.get("headers")
        topic = args[0] if args else kwargs.get("topic")
        headers = context.headers(given, topic, getattr(producer, "config", {}).get("bootstrap_servers"))
        if headers is not given and len(args) > _HEADERS_AT:
            args = (*args[:_HEADERS_AT], headers, *args[_HEADERS_AT + 1 :])
        elif headers is not given:
            kwargs = {**kwargs, "headers": headers}
        return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(kafka, "KafkaProducer.send", send)


class ProducerContext:
    """What goes with a message."""

    def __init__(self, propagator: AuditContextPropagator, destinations: Destinations) -> None:
        self._propagator = propagator
        self._destinations = destinations

    def headers(self, given: Any, topic: Any, brokers: Any) -> Any:
        """The headers to send for what was *given*, a list of pairs or None. Never raises."""
        try:
            if not (given is None or isinstance(given, list)):
                return given  # what kafka-python refuses
            allowed = isinstance(topic, str) and self._destinations.allows_queue(topic, _brokers(brokers))
            # Without a producer's span there is no traceparent, and a token would count for nothing.
            traced = getattr(trace.get_current_span(), "kind", None) is SpanKind.PRODUCER
            token = self._propagator.token(queue=True) if allowed and traced else ""
            if not token and (allowed or not given):
                return given
            kept = [pair for pair in given or () if not is_token(*pair)]
            return [*kept, (HEADER, token.encode())] if token else kept
        except Exception as problem:  # noqa: BLE001 - the application's message goes on as it is
            _log.debug("auditspan: no audit-context for this message", exc_info=problem)
            return given


def _brokers(configured: Any) -> list[str]:
    """kafka-python takes one address, several with commas, or a list."""
    entries = configured.split(",") if isinstance(configured, str) else configured or ()
    return [str(entry).strip() for entry in entries]
