"""A Celery worker with forked processes, under opentelemetry-instrument: what each run of a task leaves in the spool."""

from __future__ import annotations

import importlib.util
import signal
from contextlib import contextmanager

import pytest
from file_broker import IMPORTABLE


@contextmanager
def started(folder, harness):
    command = [str(harness.BIN / "celery"), "--app", "celery_shop", "worker", "--concurrency", "2"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning"]
    settings = {"CELERY_FOLDER": str(folder / "broker"), "OTEL_TRACES_SAMPLER": "always_off"} | IMPORTABLE
    service = harness.start(folder, command, settings)
    spec = importlib.util.spec_from_file_location("celery_shop", harness.HERE / "apps" / "celery_shop.py")
    shop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shop)
    service.app = shop.make(folder / "broker")
    try:
        yield service
    finally:
        service.app.close()
        service.stop()


@pytest.fixture(scope="module")
def worker(tmp_path_factory, harness):
    with started(tmp_path_factory.mktemp("celery"), harness) as service:
        yield service


@pytest.fixture(scope="module")
def losing_worker(tmp_path_factory, harness):
    """One whose processes are ended: one that ends while it answers takes the lock of the pool's answers with it."""
    with started(tmp_path_factory.mktemp("celery"), harness) as service:
        yield service
        service.process.send_signal(signal.SIGQUIT)  # at SIGTERM it waits for that lock


def run(worker, task, *, wait=True):
    """The id of a task, once its result is there."""
    result = worker.app.send_task(f"orders.{task}", ("o7",))
    if wait:
        result.get(timeout=60, interval=0.02, propagate=False)
    return result.id


def records(worker, harness, task_id, count=1):
    def enough():
        found = [
            record
            for record in harness.spooled(worker.spool)
            if task_id in (record["target.id"], record.attributes.get("messaging.message.id"))
        ]
        return found if len(found) >= count else []

    return harness.wait_for(enough, f"{count} records of task {task_id}")


@pytest.mark.parametrize(
    ("task", "outcome", "reason"),
    [
        ("ship", "success", None),
        ("crash", "failure", None),
        ("forbidden", "denied", "managers only"),
    ],
)
def test_a_run_whose_result_can_be_read_has_one_record(worker, harness, task, outcome, reason):
    has_one_record(worker, harness, task, outcome, reason)


@pytest.mark.parametrize(("task", "reason"), [("killed", "WorkerLostError"), ("slow", "TimeLimitExceeded")])
def test_a_run_whose_process_is_ended_has_one_record(losing_worker, harness, task, reason):
    has_one_record(losing_worker, harness, task, "failure", reason)


def has_one_record(worker, harness, task, outcome, reason):
    task_id = run(worker, task)
    (record,) = records(worker, harness, task_id)
    expected = {
        "action": "EXECUTE",
        "target.type": f"orders.{task}",
        "target.id": task_id,
        "outcome": outcome,
        "reason": reason,
        "actor.id": "unknown",
    }
    assert {name: record[name] for name in expected} == expected
    assert record.span.name == f"run/orders.{task}"
    assert record.span.kind == 5  # CONSUMER


def test_the_record_has_what_the_instrumentation_says_of_the_run(worker, harness):
    (record,) = records(worker, harness, run(worker, "ship"))
    expected = {"celery.action": "run", "celery.task_name": "orders.ship"}
    assert {name: record.attributes[name] for name in expected} == expected
    assert record.attributes["messaging.message.id"] == record["target.id"]


@pytest.mark.parametrize(("task", "reason"), [("ignored", "ignored"), ("rejected", "rejected")])
def test_a_run_without_a_result_has_a_record_too(worker, harness, task, reason):
    task_id = run(worker, task, wait=False)
    (record,) = records(worker, harness, task_id)
    assert (record["outcome"], record["reason"]) == ("failure", reason)


def test_each_try_is_a_run(worker, harness):
    task_id = run(worker, "later")
    first, second = records(worker, harness, task_id, 2)
    outcomes = {(record["outcome"], record["reason"]) for record in (first, second)}
    assert outcomes == {("failure", "to be tried again"), ("success", None)}


def test_the_application_says_more(worker, harness):
    task_id = run(worker, "said")
    (record,) = [record for record in records(worker, harness, task_id) if record["action"] == "SHIP"]
    expected = {"actor.id": "alice", "target.type": "order", "target.id": "o7", "reason": "paid"}
    assert {name: record[name] for name in expected} == expected
    (inner,) = [r for r in worker.records(record.trace_id, 2) if r["action"] == "LABEL"]
    assert inner["parent.span_id"] == record.span.span_id.hex()


def test_the_worker_says_nothing_unusual_of_us(worker):
    run(worker, "ship")
    assert "Auditspan" not in worker.log
