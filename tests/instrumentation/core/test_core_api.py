from __future__ import annotations

import asyncio
import contextlib

import auditspan
import pytest
from auditspan import api


def by_action(running):
    return {record["action"]: record for record in running.sink.records}


def test_an_actor_has_all_that_was_said_and_its_session_hashed(running):
    with running.serve():
        auditspan.set_actor(
            7,
            type="service",
            roles=["b", "a", "a", None],
            session="secret",
            auth_method="mtls",
            delegate="carol",
        )
    (record,) = running.sink.records
    expected = {
        "actor.id": "7",
        "actor.type": "service",
        "actor.roles": ["a", "b"],
        "actor.origin": "authenticated",
        "actor.auth_method": "mtls",
        "actor.delegate": "carol",
    }
    assert {name: record[name] for name in expected} == expected
    assert "secret" not in str(record.span)
    assert len(record["actor.session_id"]) == 32


class Hostile:
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "bad", ["", None, object(), b"bytes", True, Hostile()], ids=repr if False else lambda v: type(v).__name__
)
def test_an_id_without_text_changes_nothing(running, bad):
    with running.serve():
        auditspan.set_actor("alice")
        auditspan.set_actor(bad)
        auditspan.describe(target_id=bad, reason=bad)
    assert running.sink.records[0]["actor.id"] == "alice"


def test_values_that_are_not_allowed_are_left_out_and_named(running, caplog):
    api._said.clear()
    with running.serve():
        auditspan.set_actor("alice", type="robot")
        auditspan.describe(outcome="splendid")
    (record,) = running.sink.records
    assert (record["actor.type"], record["outcome"]) == ("user", "success")
    assert "type='robot'" in caplog.text
    assert "'splendid' is left out; allowed is success, failure, denied, unknown" in caplog.text


def test_describing_a_read_makes_it_a_record(running):
    with running.serve("GET"):
        auditspan.describe(
            action="view", target_type="chart", target_id=3, outcome="unknown", reason="curious"
        )
    (record,) = running.sink.records
    expected = {
        "action": "VIEW",
        "target.type": "chart",
        "target.id": "3",
        "outcome": "unknown",
        "reason": "curious",
    }
    assert {name: record[name] for name in expected} == expected


def test_what_is_left_out_stays_as_it_was(running):
    with running.serve():
        auditspan.describe(target_id=3, reason="first")
        auditspan.describe(reason="second")
    (record,) = running.sink.records
    assert (record["action"], record["target.id"], record["reason"]) == ("CREATE", "3", "second")


def test_a_record_tells_what_its_block_found_out(running):
    with running.serve():
        auditspan.set_actor("alice")
        with auditspan.record("TRANSFER", target_type="account") as action:
            action.target(target_id="a-1")
            action.reason("rent")
            action.outcome("denied", "too poor")
            action.actor("broker", type="service", delegate="alice")
    record = by_action(running)["TRANSFER"]
    expected = {
        "actor.id": "broker",
        "actor.delegate": "alice",
        "target.type": "account",
        "target.id": "a-1",
        "outcome": "denied",
        "reason": "too poor",
    }
    assert {name: record[name] for name in expected} == expected
    assert record.span.name == "TRANSFER account"
    assert by_action(running)["CREATE"]["actor.id"] == "alice"


def test_a_record_needs_no_request(running):
    with auditspan.record("NIGHTLY"):
        auditspan.set_actor("cron", type="system")
        with auditspan.record("STEP"):
            pass
    records = by_action(running)
    assert records["NIGHTLY"]["actor.id"] == "cron"
    assert records["STEP"]["actor.id"] == "cron"
    assert records["STEP"]["parent.span_id"] == records["NIGHTLY"].span.span_id.hex()


class RefusedError(Exception):
    status_code = 403


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("x"), "failure"),
        (RefusedError("x"), "denied"),
        (PermissionError("x"), "denied"),
        (KeyboardInterrupt(), "failure"),
    ],
    ids=["failure", "like-403", "permission", "interrupted"],
)
def test_an_exception_ends_the_record_and_goes_on(running, error, outcome):
    with pytest.raises(type(error)), auditspan.record("TRY"):
        raise error
    (record,) = running.sink.records
    assert record["outcome"] == outcome
    assert record.span.events[0].name == "exception"
    assert record.span.status.code == 2


def test_a_record_of_a_coroutine(running):
    async def work():
        async with auditspan.record("AWAITED"):
            await asyncio.sleep(0)

    asyncio.run(work())
    assert by_action(running)["AWAITED"]["outcome"] == "success"


# -- the decorator


class Order:
    def __init__(self, number):
        self.id = number


@auditspan.audited("SYNC", target_type="order", target_id="order.id")
def plain(order, *, twice=False):
    return order.id * (2 if twice else 1)


@auditspan.audited("ASYNC", target_id="order.id")
async def coroutine(order):
    await asyncio.sleep(0)
    return order.id


@auditspan.audited("GENERATE", target_id=lambda order: order.id)
def generator(order):
    got = yield order.id
    yield got
    return "end"


@auditspan.audited("STREAM", target_id="order.id")
async def stream(order):
    yield order.id
    with auditspan.record("PART"):
        pass
    yield order.id + 1


def check_decorated_functions():
    async def collect():
        return [item async for item in stream(Order(7))]

    def consume():
        inner = generator(Order(7))
        assert next(inner) == 7
        assert inner.send("sent") == "sent"
        try:
            next(inner)
        except StopIteration as end:
            return end.value
        return None

    assert plain(Order(7), twice=True) == 14
    assert asyncio.run(coroutine(order=Order(7))) == 7
    assert consume() == "end"
    assert asyncio.run(collect()) == [7, 8]


def test_a_decorated_function_does_what_it_did_and_leaves_a_record(running):
    check_decorated_functions()
    records = by_action(running)
    assert set(records) == {"SYNC", "ASYNC", "GENERATE", "STREAM", "PART"}
    assert {records[a]["target.id"] for a in ("SYNC", "ASYNC", "GENERATE", "STREAM")} == {"7"}
    assert records["PART"]["parent.span_id"] == records["STREAM"].span.span_id.hex()


def test_a_decorated_function_does_what_it_did_where_auditspan_does_not_run():
    check_decorated_functions()


def test_a_generators_record_is_not_current_for_its_consumer(running):
    with running.serve():
        for _ in generator(Order(7)):
            with auditspan.record("CONSUMED"):
                pass
    records = [record for record in running.sink.records if record["action"] == "CONSUMED"]
    assert {record["parent.span_id"] for record in records} == {
        by_action(running)["CREATE"].span.span_id.hex()
    }


def test_a_generator_that_is_left_early_ends_its_record(running):
    inner = generator(Order(7))
    next(inner)
    inner.close()
    assert by_action(running)["GENERATE"]["outcome"] == "success"


def test_exceptions_thrown_into_a_generator_arrive(running):
    inner = generator(Order(7))
    next(inner)
    with contextlib.suppress(KeyError):
        inner.throw(KeyError("k"))
    assert by_action(running)["GENERATE"]["outcome"] == "failure"


def test_a_decorated_functions_exception_goes_on(running):
    with pytest.raises(AttributeError):
        plain(None)
    assert by_action(running)["SYNC"]["outcome"] == "failure"


def test_a_target_that_can_not_be_found_costs_the_target_only(running):
    @auditspan.audited("ODD", target_id=lambda: 1 / 0)
    def odd():
        return 1

    assert odd() == 1
    assert by_action(running)["ODD"]["target.id"] is None


def test_a_targets_property_that_raises_costs_the_target_only(running):
    class Detached:
        @property
        def id(self):
            raise RuntimeError("not bound to a session")

    @auditspan.audited("ODD", target_id="order.id")
    def odd(order):
        return 1

    assert odd(Detached()) == 1
    assert by_action(running)["ODD"]["target.id"] is None


class SpeechlessError(Exception):
    """An exception whose own code raises."""

    def __str__(self):
        raise RuntimeError("no text")

    @property
    def code(self):
        raise RuntimeError("no code")


def test_an_exception_that_can_not_be_told_still_leaves_its_record(running):
    with pytest.raises(SpeechlessError), auditspan.record("PURGE"):
        raise SpeechlessError
    assert by_action(running)["PURGE"]["outcome"] == "failure"


def test_an_async_generator_gets_what_is_sent_and_thrown_and_is_closed_when_it_is_closed(running):
    seen = []

    @auditspan.audited("STREAM")
    async def stream():
        try:
            while True:
                try:
                    seen.append((yield 1))
                except KeyError:
                    seen.append("thrown")
        finally:
            seen.append(asyncio.current_task().get_name())

    async def consume():
        inner = stream()
        await anext(inner)
        await inner.asend("sent")
        await inner.athrow(KeyError("k"))
        await inner.aclose()
        return list(seen), asyncio.current_task().get_name()

    at_close, task = asyncio.run(consume())
    assert at_close == ["sent", "thrown", task]
    assert by_action(running)["STREAM"]["outcome"] == "success"


def test_a_name_that_is_no_parameter_is_refused_when_the_function_is_defined():
    with pytest.raises(ValueError, match=r"has no parameter 'ordr'; it has order"):

        @auditspan.audited("X", target_id="ordr")
        def function(order): ...
