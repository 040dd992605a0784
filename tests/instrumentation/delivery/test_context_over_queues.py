"""Real producers and consumers: Celery with worker processes, kafka-python against librdkafka's broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from auditspan.context import Actor
from auditspan.propagation import KeyRing, Tokens
from auditspan.propagation.tokens import Claims
from confluent_kafka import Producer
from file_broker import IMPORTABLE, application
from instrumentation.services import spooled
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from instrumentation.services import Written

KEYS = "k1 thirty-two-characters-at-the-very-least"
TRACE, OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
BIN = Path(sys.executable).parent
INSTRUMENTED = (str(BIN / "opentelemetry-instrument"),)
DEADLINE_S = 60.0

GATEWAY_APP = """
import os
import flask
import auditspan

app = flask.Flask("gateway")

@app.post("/orders")
def order():
    auditspan.set_actor("alice", roles=["support"], auth_method="bearer")
    publish(flask.request.headers.get("audit-context"))
    return ""

def serve():
    headers = {"traceparent": os.environ["TRACEPARENT"], "audit-context": os.environ["TOKEN"]}
    assert app.test_client().post("/orders", headers=headers).status_code == 200
"""


class Services:
    """Processes that share a folder, and what each wrote down."""

    def __init__(self, folder: Path, destinations: str) -> None:
        self.folder = folder
        self.destinations = destinations
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "keys").write_text(KEYS)
        (folder / "keys").chmod(0o600)

    def start(self, service: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("OTEL_")}
        environment = (
            clean
            | {
                "OTEL_SERVICE_NAME": service,
                "OTEL_TRACES_EXPORTER": "none",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_AUDITSPAN_ENDPOINT": "http://127.0.0.1:9",  # nobody listens: records stay on disk
                "OTEL_AUDITSPAN_SPOOL_DIR": str(self.folder / "spool"),
                "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(self.folder / "keys"),
                "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": self.destinations,
            }
            | environment
        )
        with (self.folder / f"{service}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def run(self, service: str, code: str, runner: tuple[str, ...] = (), **environment: str) -> None:
        script = self.folder / f"{service}.py"
        script.write_text(code)
        process = self.start(service, [*runner, sys.executable, str(script)], **environment)
        process.wait(DEADLINE_S)
        assert process.returncode == 0, self.log(service)

    def log(self, service: str) -> str:
        return (self.folder / f"{service}.log").read_text()

    def records(self, service: str) -> list[Written]:
        return spooled(self.folder / "spool" / service)

    def stop(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers too; there is nobody to wait for
            process.wait()


def eventually(find: Callable[[], Any], log: Callable[[], str]) -> Any:
    until = time.monotonic() + DEADLINE_S
    while not (found := find()):
        assert time.monotonic() < until, log()
        time.sleep(0.05)
    return found


def token(trace_id: str = TRACE, keys: str = KEYS, *, queue: bool = True, age_s: float = 0.0) -> str:
    judge = Tokens(KeyRing.from_text(keys), clock=lambda: time.time() - age_s)
    return judge.sign(Claims(trace_id, Actor("mallory"), "00f067aa0ba902b7", "elsewhere"), queue=queue)


def attacks() -> dict[str, str]:
    """Tokens that nobody may believe; made when they are used, since a request's lives for a minute."""
    good = token()
    return {
        "forged": good[:-3] + ("AAA" if not good.endswith("AAA") else "BBB"),
        "wrong-key": token(keys="k1 another-another-another-another-secret"),
        "unknown-key": token(keys=KEYS.replace("k1", "k2")),
        "wrong-algorithm": good + "A" * 43,
        "replayed": token(OTHER_TRACE),
        "expired": token(age_s=86_460),
        "for-a-request": token(queue=False),
        "two-in-one": f"{good}, {good}",
        "over-long": "A" * 100_000,
        "a-name": "mallory",
    }


REASONS = {
    "forged": "bad_signature",
    "wrong-key": "bad_signature",
    "unknown-key": "unknown_key",
    "wrong-algorithm": "wrong_algorithm",
    "replayed": "wrong_trace",
    "expired": "expired",
    "for-a-request": "wrong_purpose",
    "two-in-one": "malformed",
    "over-long": "malformed",
    "a-name": "malformed",
    "doubled": "malformed",
    "baggage": "unsigned",
    "plain": None,
}
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
CLAIMS = "audit.actor.id=mallory,user.id=mallory,enduser.id=mallory"


def assert_nobody(record: Written, reason: str) -> None:
    assert (record["actor.id"], record["actor.origin"]) == ("unknown", "unverified")
    assert record["context.rejected"] == reason
    assert record["parent.span_id"] is None
    ours = {name: text for name, text in record.attributes.items() if name.startswith("audit.")}
    assert "mallory" not in str(ours)


def assert_alice_by_the_gateway(record: Written, services: Services) -> None:
    (published,) = services.records("gateway")
    assert (record["actor.id"], record["actor.origin"]) == ("alice", "asserted")
    assert (record["actor.roles"], record["actor.auth_method"]) == (["support"], "bearer")
    assert record["actor.delegate"] == "gateway"
    assert record["parent.span_id"] == published.span.span_id.hex()
    assert record.trace_id == published.trace_id
    assert record["context.rejected"] is None


# -- Celery

TASKS = """
from pathlib import Path

import auditspan
from file_broker import application

app = application("tasks", Path.cwd(), results=False)

@app.task
def ship(order):
    auditspan.describe(action="SHIP", target_type="orders", target_id=order)
    if order == "first":
        notify.delay(order)

@app.task(bind=True)
def pack(self, order):
    if not self.request.retries:
        raise self.retry(countdown=0)
    auditspan.describe(action="PACK", target_type="orders", target_id=order)

@app.task
def notify(order):
    with auditspan.record("NOTIFY", target_type="orders", target_id=order):
        pass
"""


@pytest.fixture(scope="module")
def celery(tmp_path_factory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("celery")
    (folder / "tasks.py").write_text(TASKS)
    services = Services(folder, "queue:celery")
    services.run(
        "gateway",
        GATEWAY_APP
        + """
from tasks import pack, ship

def publish(token):
    ship.delay("first")
    pack.delay("first")
    ship.apply_async(("copied",), queue="strangers", headers={"audit-context": token} if token else None)

serve()
os._exit(0)  # what is written down stays so; nobody listens whom it could be sent to
""",
        INSTRUMENTED,
        TRACEPARENT=TRACEPARENT,
        TOKEN=token(queue=False),
        **IMPORTABLE,
    )
    with application("outsider", folder, results=False) as outsider:
        for name, value in attacks().items():
            headers = {"traceparent": TRACEPARENT, "audit-context": value}
            outsider.send_task("tasks.ship", (name,), headers=headers)
        headers = {"traceparent": TRACEPARENT, "audit-context": [token(), token()]}
        outsider.send_task("tasks.ship", ("doubled",), headers=headers)
        outsider.send_task(
            "tasks.ship", ("baggage",), headers={"traceparent": TRACEPARENT, "baggage": CLAIMS}
        )
        outsider.send_task(
            "tasks.ship", ("plain",), headers={"traceparent": TRACEPARENT, "user.id": "mallory"}
        )
    worker = [
        *INSTRUMENTED,
        str(BIN / "celery"),
        "--app",
        "tasks",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "1",
    ]
    services.start(
        "worker", [*worker, "--without-gossip", "--without-mingle", "--without-heartbeat"], **IMPORTABLE
    )
    yield services
    services.stop()


def by_task(services: Services, action: str, order: str) -> Written:
    def find() -> list[Written]:
        found = services.records("worker")
        return [record for record in found if (record["action"], record["target.id"]) == (action, order)]

    (record,) = eventually(find, lambda: services.log("worker"))
    return record


def plain_runs(services: Services) -> dict[str, Written]:
    """The records of the worker's runs that the tasks did not describe, by their span ids."""
    return {
        record.span.span_id.hex(): record
        for record in services.records("worker")
        if record["action"] == "EXECUTE"
    }


def test_a_task_acts_in_the_name_of_whoever_published_it(celery):
    assert_alice_by_the_gateway(by_task(celery, "SHIP", "first"), celery)


def test_a_task_s_task_does_too_and_hangs_below_it(celery):
    record = by_task(celery, "NOTIFY", "first")
    assert (record["actor.id"], record["actor.origin"]) == ("alice", "asserted")
    assert record["actor.delegate"] == "gateway"
    runs = plain_runs(celery)
    run = runs[record["parent.span_id"]]
    assert run["parent.span_id"] == by_task(celery, "SHIP", "first").span.span_id.hex()


def test_a_task_that_is_tried_again_still_does(celery):
    record = by_task(celery, "PACK", "first")
    assert record.attributes["celery.retries"] == 1
    assert (record["actor.id"], record["actor.origin"]) == ("alice", "asserted")
    assert record["actor.delegate"] == "gateway"
    assert record["context.rejected"] is None


def test_a_celery_queue_that_is_not_listed_gets_nothing_not_even_a_copied_token(celery):
    (message,) = [
        text
        for path in (celery.folder / "queue").glob("*strangers*")
        if "copied" in (text := path.read_text())
    ]
    headers = json.loads(message)["headers"]
    assert headers["task"] == "tasks.ship"
    assert "traceparent" in headers
    assert "audit-context" not in message


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_no_task_s_header_makes_an_actor(celery, name, reason):
    assert_nobody(by_task(celery, "SHIP", name), reason)


# -- Kafka

CONSUMER = """
import os
import auditspan
from auditspan.bootstrap import pre_instrument
from opentelemetry import propagate, trace
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.instrumentation.kafka.utils import KafkaContextGetter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

trace.set_tracer_provider(TracerProvider(resource=Resource.create()))
pre_instrument()

def consumed(span, record, args, kwargs):
    auditspan.describe(action="RECEIVE", target_type="orders", target_id=record.key.decode())

KafkaInstrumentor().instrument(consume_hook=consumed)

from kafka import KafkaConsumer, TopicPartition

consumer = KafkaConsumer(bootstrap_servers=[os.environ["BROKER"]], api_version=(2, 1), auto_offset_reset="earliest")
# Not subscribed: without a group that sometimes leaves a consumer of kafka-python 3.0.12 without partitions.
consumer.assign([TopicPartition("orders", number) for number in consumer.partitions_for_topic("orders")])
for _ in range(int(os.environ["COUNT"])):
    message = next(consumer)
    # As docs/audit-context.md tells an application that works on messages.
    sent = propagate.extract(message.headers, getter=KafkaContextGetter())
    with trace.get_tracer("shipping").start_as_current_span("process", sent, trace.SpanKind.CONSUMER):
        auditspan.describe(action="SHIP", target_type="orders", target_id=message.key.decode())
consumer.close(autocommit=False)
os._exit(0)
"""


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """librdkafka's broker for tests: it speaks Kafka's protocol on a port, for as long as its client lives."""
    keeper = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none:1", "log_level": 0})
    (address,) = keeper.list_topics(timeout=30).brokers.values()
    yield f"{address.host}:{address.port}"
    del keeper


@pytest.fixture(scope="module")
def kafka(tmp_path_factory, broker) -> Iterator[Services]:
    services = Services(tmp_path_factory.mktemp("kafka"), f"queue:orders@{broker},queue:elsewhere@127.0.0.9")
    services.run(
        "gateway",
        GATEWAY_APP
        + """
from kafka import KafkaProducer

producer = KafkaProducer(bootstrap_servers=[os.environ["BROKER"]], api_version=(2, 1))

def publish(token):
    producer.send("orders", b"", b"first")
    producer.send("orders", b"", b"own-headers", [("x-own", b"kept"), ("audit-context", token.encode())])
    for topic in ("strangers", "elsewhere"):
        producer.send(topic, b"", b"copied", headers=[("x-own", b"kept"), ("audit-context", token.encode())])
    producer.send("strangers", b"", b"own", headers=[("audit-context", b"season 3")])

serve()
producer.close()
os._exit(0)
""",
        INSTRUMENTED,
        TRACEPARENT=TRACEPARENT,
        TOKEN=token(queue=False),
        BROKER=broker,
    )
    outsider = KafkaProducer(bootstrap_servers=[broker], api_version=(2, 1))
    sent = {name: [("audit-context", value.encode())] for name, value in attacks().items()}
    sent["doubled"] = [("audit-context", token().encode())] * 2
    sent["forged-behind-a-good-one"] = [("audit-context", token().encode()), ("audit-context", b"forged")]
    sent["no-text"] = [("audit-context", b"\xff\xfe")]
    sent["baggage"] = [("baggage", CLAIMS.encode())]
    sent["plain"] = [("user.id", b"mallory"), ("audit.actor.id", b"mallory")]
    for name, headers in sent.items():
        outsider.send("orders", b"", name.encode(), [("traceparent", TRACEPARENT.encode()), *headers])
    outsider.close()
    services.run("shipping", CONSUMER, BROKER=broker, COUNT=str(len(sent) + 2))
    yield services
    services.stop()


def by_message(services: Services, key: str, action: str) -> Written:
    found = services.records("shipping")
    (record,) = [record for record in found if (record["action"], record["target.id"]) == (action, key)]
    return record


CONSUMER_SPANS = pytest.mark.parametrize(
    "action", ["RECEIVE", "SHIP"], ids=["the instrumentation's span", "the application's span"]
)


@CONSUMER_SPANS
@pytest.mark.parametrize("key", ["first", "own-headers"])
def test_a_message_is_worked_on_in_the_name_of_whoever_published_it(kafka, key, action):
    assert_alice_by_the_gateway(by_message(kafka, key, action), kafka)


def messages(broker: str, *wanted: tuple[str, bytes]) -> list[list[tuple[str, bytes]]]:
    """The headers of the messages with these topics and keys."""
    consumer = KafkaConsumer(
        bootstrap_servers=[broker],
        api_version=(2, 1),
        auto_offset_reset="earliest",
        consumer_timeout_ms=60_000,
    )
    topics = {topic for topic, _ in wanted}
    consumer.assign([TopicPartition(t, n) for t in topics for n in consumer.partitions_for_topic(t)])
    found: dict[tuple[str, bytes], list[tuple[str, bytes]]] = {}
    for message in consumer:
        found[message.topic, message.key] = message.headers
        if found.keys() >= set(wanted):
            break
    consumer.close(autocommit=False)
    return [found[place] for place in wanted]


def test_a_topic_or_broker_that_is_not_listed_gets_nothing_not_even_a_copied_token(kafka, broker):
    copied, at_another_broker, own = messages(
        broker, ("strangers", b"copied"), ("elsewhere", b"copied"), ("strangers", b"own")
    )
    for headers in (copied, at_another_broker):
        assert [name for name, _ in headers] == ["x-own", "traceparent"]
    assert own[0] == ("audit-context", b"season 3")


def test_a_listed_topic_gets_one_token_beside_the_application_s_headers(kafka, broker):
    own_headers, first = messages(broker, ("orders", b"own-headers"), ("orders", b"first"))
    assert [name for name, _ in own_headers] == ["x-own", "traceparent", "audit-context"]
    assert dict(first)["audit-context"].startswith(b"q.k1.")


@CONSUMER_SPANS
@pytest.mark.parametrize(
    ("name", "reason"),
    [*REASONS.items(), ("forged-behind-a-good-one", "malformed"), ("no-text", "malformed")],
)
def test_no_message_s_header_makes_an_actor(kafka, name, reason, action):
    assert_nobody(by_message(kafka, name, action), reason)
