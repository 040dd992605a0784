"""A service that publishes over HTTP in its caller's name, and one that works on what was published."""

import functools
import os
import sys
import threading

import auditspan
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

BROKER = os.environ["BROKER"]


@functools.cache
def gateway():
    import flask

    app = flask.Flask("gateway")
    producer = KafkaProducer(bootstrap_servers=[BROKER], api_version=(2, 1))

    @app.post("/<topic>/<name>/<what>")
    def send(topic, name, what):
        auditspan.set_actor(name, roles=["support"], auth_method="bearer")
        producer.send(topic, b"", f"{name} {what}".encode())
        return ""

    return app.test_client(), producer


def publish(*paths):
    """Each message in the name that it begins with."""
    client, producer = gateway()
    for path in paths:
        client.post(path)
    producer.flush()


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


def loop(topic, count):
    """All of them; the last one is followed by a break."""
    messages = consumer(topic)
    for number, message in enumerate(messages, 1):
        work(message)
        if number == int(count):
            break
    with auditspan.record("AFTERWARDS"):
        pass
    messages.close(autocommit=False)


def one_by_one(topic, count):
    messages = consumer(topic)
    for _ in range(int(count)):
        work(next(messages))
    messages.close(autocommit=False)
    with auditspan.record("AFTERWARDS"):
        pass


def fail(topic, _):
    messages = consumer(topic)
    try:
        next(messages)
        raise ValueError("out of luck")
    finally:
        messages.close(autocommit=False)


def die(topic):
    """Without closing anything."""
    next(consumer(topic))


def interleave(topic, count):
    """Two consumers in one thread."""
    one, other = consumer(topic), consumer(topic)
    for _ in range(int(count)):
        for messages in (one, other):
            message = next(messages)
            with auditspan.record("PACK", target_id=message.key.decode()):
                pass
    for messages in (one, other):
        messages.close(autocommit=False)
    with auditspan.record("AFTERWARDS"):
        pass


def serve():
    """Do what each line of the input says, and say when it is done; an exception is that line's alone."""
    for line in sys.stdin:
        todo, *arguments = line.split()
        try:
            globals()[todo](*arguments)
        except ValueError as error:
            print(f"raised {error!r}", flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
