"""kafka-python's consumers in processes of their own, against librdkafka's broker for tests."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from confluent_kafka import Producer
from instrumentation.services import BIN, environment_of, spooled

if TYPE_CHECKING:
    from instrumentation.services import Written

APPS = Path(__file__).parent / "apps"
KEYS = "k1 thirty-two-characters-at-the-very-least"
PROGRAM = (str(BIN / "opentelemetry-instrument"), sys.executable)
LEFT = "the loop over the messages was left"


class Process:
    """One of the application's processes, which does one thing after the other."""

    def __init__(self, shop: Shop, service: str, **environment: str) -> None:
        self.spool, self.log = shop.folder / service, shop.folder / f"{service}.log"
        self.seen: set[bytes] = set()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, str(APPS / "kafka_shop.py"), "serve"],
                env=shop.environment(service, environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def do(self, *command: str, says: str = "done") -> list[Written]:
        """The records that came of it."""
        self.process.stdin.write(" ".join(command) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == says, self.log.read_text()
        new = [record for record in spooled(self.spool) if record.span.span_id not in self.seen]
        self.seen.update(record.span.span_id for record in new)
        return new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.process.communicate(timeout=60)
        finally:
            self.process.kill()


class Shop:
    """What publishes, and what works on it; both go on for all tests."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder, self.broker = folder, broker
        (folder / "keys").write_text(KEYS)
        (folder / "keys").chmod(0o600)
        self.gateway, self.shipping = Process(self, "gateway"), Process(self, "shipping")

    def environment(self, service: str, changes: dict[str, str] | None = None) -> dict[str, str]:
        known = {
            "OTEL_SERVICE_NAME": service,
            "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE": str(self.folder / "keys"),
            "OTEL_AUDITSPAN_CONTEXT_DESTINATIONS": f"queue:*@{self.broker}",
            "BROKER": self.broker,
        }
        return environment_of(self.folder / service, known | (changes or {}))

    def publish(self, topic: str, *messages: str) -> None:
        """Each *name/what*, in that name."""
        self.gateway.do("publish", *(f"/{topic}/{message}" for message in messages))

    def consume(self, way: str, topic: str, *messages: str, says: str = "done") -> list[Written]:
        self.publish(topic, *messages)
        return self.shipping.do(way, topic, str(len(messages)), says=says)

    def run(self, service: str, *command: str) -> list[Written]:
        """The records of a process of its own, which ends."""
        done = subprocess.run(
            [*PROGRAM, *command], env=self.environment(service), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return spooled(self.folder / service)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The broker speaks Kafka's protocol on a port, for as long as its client lives."""
    keeper = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "none:1", "log_level": 0})
    (address,) = keeper.list_topics(timeout=30).brokers.values()
    shop = Shop(tmp_path_factory.mktemp("kafka"), f"{address.host}:{address.port}")
    with shop.gateway, shop.shipping:
        yield shop
    del keeper


def told(records, action="EXECUTE"):
    return Counter((r["actor.id"], r["outcome"], r["reason"]) for r in records if r["action"] == action)


@pytest.mark.parametrize(("way", "last"), [("loop", ("unknown", LEFT)), ("one_by_one", ("success", None))])
def test_work_on_each_message_is_a_record_in_the_name_of_who_published_it(shop, way, last):
    records = shop.consume(way, f"names-{way}", "alice/plain", "bob/plain", "alice/nested", "bob/plain")
    by_outcome = Counter((r["actor.id"], r["outcome"]) for r in records if r["action"] == "EXECUTE")
    # Which message comes last is the broker's to say: it has several partitions.
    assert sum(by_outcome.values()) == 4
    assert Counter(name for name, _ in by_outcome.elements()) == {"alice": 2, "bob": 2}
    assert Counter((r["outcome"], r["reason"]) for r in records if r["action"] == "EXECUTE") == (
        Counter({("success", None): 3}) + Counter([last])
    )
    for record in records:
        if record["action"] == "EXECUTE":
            assert (record["actor.origin"], record["actor.roles"]) == ("asserted", ["support"])
            assert record["target.type"] == f"names-{way}"
            assert record["target.id"].count("/") == 1


def test_what_is_done_with_a_message_hangs_below_it(shop):
    records = shop.consume("loop", "below", "alice/nested", "bob/nested")
    work = {r.span.span_id.hex(): r["actor.id"] for r in records if r["action"] == "EXECUTE"}
    charged = {r["target.id"]: r for r in records if r["action"] == "CHARGE"}
    assert set(charged) == {"alice", "bob"}
    for name, record in charged.items():
        assert (record["actor.id"], work[record["parent.span_id"]]) == (name, name)


@pytest.mark.parametrize("way", ["loop", "one_by_one", "interleave"])
def test_what_comes_after_is_not_done_in_a_message_s_name(shop, way):
    records = shop.consume(way, f"after-{way}", "alice/plain")
    assert told(records, "AFTERWARDS") == {("unknown", "success", None): 1}


def test_two_consumers_in_one_thread_are_never_mixed_up(shop):
    records = shop.consume("interleave", "two", *(f"{('alice', 'bob')[n % 2]}/{n}" for n in range(20)))
    packed = [r for r in records if r["action"] == "PACK"]
    assert len(packed) == 40
    assert all(r["target.id"].startswith(r["actor.id"] + " ") for r in packed)


def test_two_hundred_messages_of_two_users_are_never_mixed_up(shop):
    records = shop.consume("one_by_one", "many", *(f"{('alice', 'bob')[n % 2]}/nested" for n in range(200)))
    charged = [r for r in records if r["action"] == "CHARGE"]
    assert Counter(r["target.id"] for r in charged) == {"alice": 100, "bob": 100}
    assert all(r["actor.id"] == r["target.id"] for r in charged)
    assert told(records) == {("alice", "success", None): 100, ("bob", "success", None): 100}


def test_the_application_s_word_counts(shop):
    records = shop.consume("one_by_one", "words", "alice/describe", "bob/said")
    (shipped,) = [r for r in records if r["action"] == "SHIP"]
    assert (shipped["actor.id"], shipped["outcome"], shipped["target.id"]) == ("alice", "failure", "alice")
    assert told(records) == {("robot", "success", None): 1}


def test_a_rule_with_the_topic_as_its_route_skips_or_names_it(shop, tmp_path):
    rules = 'rules:\n  - route: "*quiet"\n    do: skip\n  - route: "*named"\n    action: SHIP\n'
    (tmp_path / "rules.yaml").write_text(rules)
    with Process(shop, "ruled", OTEL_AUDITSPAN_RULES=str(tmp_path / "rules.yaml")) as ruled:
        for topic, actions in (("quiet", []), ("named", ["SHIP"])):
            shop.publish(topic, "alice/plain")
            records = ruled.do("one_by_one", topic, "1")
            assert [record["action"] for record in records] == [*actions, "AFTERWARDS"]


def test_an_exception_that_closes_the_consumer_is_a_failure(shop):
    records = shop.consume("fail", "failing", "alice/plain", says="raised ValueError('out of luck')")
    assert told(records) == {("alice", "failure", "ended by ValueError"): 1}


def test_a_process_that_ends_over_a_message_leaves_its_record(shop):
    shop.publish("dying", "alice/plain")
    records = shop.run("dying", str(APPS / "kafka_shop.py"), "die", "dying")
    assert told(records) == {("alice", "unknown", "the process ended"): 1}


def test_a_thread_that_was_given_the_message_alone_names_nobody(shop):
    records = shop.consume("one_by_one", "threads", "alice/thread")
    assert told(records, "CHARGE") == {("unknown", "success", None): 1}


def test_the_example_of_the_guide_does_what_it_says(shop, tmp_path):
    guide = (Path(__file__).parents[3] / "docs/frameworks/kafka.md").read_text()
    code = guide.partition("```python\n")[2].partition("```")[0]
    code += "    break\n"  # after one message
    code = code.replace('group_id="shipping"', 'group_id="shipping", api_version=(2, 1)')
    (tmp_path / "shipping.py").write_text(code)
    shop.publish("orders", "alice/plain")
    records = shop.run("guide", str(tmp_path / "shipping.py"))
    by_action = {record["action"]: record for record in records}
    for action in ("EXECUTE", "SHIP"):
        record = by_action[action]
        assert (record["actor.id"], record["actor.origin"]) == ("alice", "asserted")
        assert record["actor.delegate"] == "gateway"
    assert by_action["SHIP"]["parent.span_id"] == by_action["EXECUTE"].span.span_id.hex()
