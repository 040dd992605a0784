"""Work that comes through queues: Celery's tasks, and messages of Kafka.

No run of a task is a record unless an extractor or the application says so. Here the application does (``describe()``),
so that both services write as many records and what is measured is the extractor. Of a message of Kafka nobody but the
extractor can say it: the instrumentation's span has ended before the application has the message. So the record is in it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import auditspan
from celery import Celery
from celery.app.trace import build_tracer
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.trace import SpanKind

from bench.instrumentation.extractors.turns import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.instrumentation.extractors.turns import Service

_TOPIC: Final = "orders"


def _celery(service: Service) -> Any:
    """A task of an application whose broker is this process's memory."""
    instrumentor: Any = CeleryInstrumentor
    service.instrument("opentelemetry.instrumentation.celery:CeleryInstrumentor", instrumentor().instrument)
    app = Celery("shop", broker="memory://", backend="cache+memory://")

    def refund(order_id: int) -> int:
        auditspan.describe(action="REFUND")
        return order_id

    return app.task(name="shop.refund")(refund)


def publish(service: Service) -> Callable[[range], None]:
    """Publishing from within an audited request."""
    task = _celery(service)
    tracer = service.provider.get_tracer("bench")

    def serve(numbers: range) -> None:
        for number in numbers:
            with tracer.start_as_current_span(
                "POST /orders", kind=SpanKind.SERVER, attributes={"http.request.method": "POST"}
            ):
                task.apply_async((number,))

    return serve


def run(service: Service) -> Callable[[range], None]:
    """The function that a worker's process runs a task with."""
    task = _celery(service)
    traced = build_tracer(task.name, task, app=task.app)

    def serve(numbers: range) -> None:
        for number in numbers:
            task_id = f"00000000-0000-0000-0000-{number:012}"
            request = {
                "id": task_id,
                "task": task.name,
                "args": (number,),
                "is_eager": False,
                "hostname": "worker",
            }
            traced(task_id, (number,), {}, request)

    return serve


def kafka(service: Service) -> Callable[[range], float]:
    """kafka-python's consumer at librdkafka's broker for tests; what counts is the loop over the messages."""
    service.instrument(
        "opentelemetry.instrumentation.kafka:KafkaInstrumentor", KafkaInstrumentor().instrument
    )
    keeper = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none:1", "log_level": 0})
    broker = next(iter(keeper.list_topics(timeout=10).brokers.values()))
    place = f"{broker.host}:{broker.port}"
    keeper.list_topics(_TOPIC, timeout=10)  # makes it
    producer = Producer({"bootstrap.servers": place, "linger.ms": 0})
    consumer = KafkaConsumer(bootstrap_servers=[place], api_version=(2, 1), auto_offset_reset="earliest")
    consumer.assign([TopicPartition(_TOPIC, 0)])
    kept = [keeper]

    def serve(numbers: range) -> float:
        for number in numbers:
            kept[0].poll(0)
            producer.produce(_TOPIC, str(number).encode(), partition=0)
        producer.flush()
        started = time.thread_time()
        for message in consumer:
            if int(message.value) == numbers[-1]:
                break  # which ends the work on the last one
        return time.thread_time() - started

    return serve


SUBJECTS: Final = (
    Subject("Celery, publishing", "celery", publish, tells=b""),
    Subject("Celery, a run", "celery", run, tells=b"audit.target.type"),
    Subject(
        "kafka-python",
        "kafka",
        kafka,
        records=(0, 1),
        tells=b"audit.target.type",
        case="extractor_with_record",
    ),
)
