"""A service that publishes over HTTP in its caller's name, and one that works on what was published."""

import os
import sys
import threading

import auditspan
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

BROKER, COUNT = os.environ["BROKER"], int(os.environ.get("COUNT", "0"))


def publish():
    """Each message in the name that it begins with."""
    import flask

    app = flask.Flask("gateway")
    producer = KafkaProducer(bootstrap_servers=[BROKER], api_version=(2, 1))

    @app.post("/<topic>/<name>/<what>")
    def send(topic, name, what):
        auditspan.set_actor(name, roles=["support"], auth_method="bearer")
        producer.send(topic, b"", f"{name} {what}".encode())
        return ""

    client = app.test_client()
    for line in sys.stdin.read().splitlines():
        client.post(line)
    producer.close()


def consumer(topic):
    found = KafkaConsumer(bootstrap_servers=[BROKER], api_version=(2, 1), auto_offset_reset="earliest")
    found.assign([TopicPartition(topic, number) for number in found.partitions_for_topic(topic)])
    return found


def work(message):
    """What is asked for by the second word of the message's key."""
    name, _, what = message.key.decode().partition(" ")
    if what == "describe":
        auditspan.describe(action="SHIP", target_type="orders", target_id=name, outcome="failure")
    elif what == "said":
        auditspan.set_actor("robot", type="service")
    elif what == "nested":
        with auditspan.record("CHARGE", target_type="card", target_id=name):
            pass
    elif what == "thread":
        thread = threading.Thread(target=work, args=(message._replace(key=b"nobody nested"),))
        thread.start()
        thread.join()


def loop(topic):
    """All of them; the last one is followed by a break."""
    messages = consumer(topic)
    for number, message in enumerate(messages, 1):
        work(message)
        if number == COUNT:
            break
    with auditspan.record("AFTERWARDS"):
        pass
    messages.close(autocommit=False)


def one_by_one(topic):
    messages = consumer(topic)
    for _ in range(COUNT):
        work(next(messages))
    messages.close(autocommit=False)
    with auditspan.record("AFTERWARDS"):
        pass


def fail(topic):
    messages = consumer(topic)
    try:
        next(messages)
        raise ValueError("out of luck")
    finally:
        messages.close(autocommit=False)


def die(topic):
    """Without closing anything."""
    next(consumer(topic))


def interleave(topic):
    """Two consumers in one thread."""
    one, other = consumer(topic), consumer(topic)
    for _ in range(COUNT):
        for messages in (one, other):
            message = next(messages)
            with auditspan.record("PACK", target_id=message.key.decode()):
                pass
    for messages in (one, other):
        messages.close(autocommit=False)
    with auditspan.record("AFTERWARDS"):
        pass


if __name__ == "__main__":
    todo = globals()[sys.argv[1]]
    todo(*sys.argv[2:])
    sys.stdout.flush()
