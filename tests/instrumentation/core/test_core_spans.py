"""The short ways through the SDK's spans do what the public ones do, and give way where they could not."""

from __future__ import annotations

import pytest
from auditspan.spans import PlainKeys, attributes_of, copy_attributes, has_more, put
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

OURS = {"audit.action": "CREATE", "audit.actor.roles": ("a", "b"), "audit.sequence.number": 7}


def started(limits: SpanLimits | None = None, **attributes):
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    return provider.get_tracer("t").start_span("s", attributes=attributes)


@pytest.mark.parametrize(
    ("limits", "before"),
    [
        (None, {"a": 1}),
        (None, {}),
        (None, {"audit.action": "was here", "a": 1}),
        (SpanLimits(max_span_attribute_length=3), {"a": "abc"}),
        (SpanLimits(max_span_attributes=4), {"a": 1}),
        (SpanLimits(max_span_attributes=4), {"a": 1, "b": 2, "c": 3}),
        (SpanLimits(max_span_attributes=2), {"a": 1, "b": 2}),
        (SpanLimits(max_span_attributes=0), {}),
    ],
    ids=[
        "no-limit",
        "an-empty-span",
        "a-name-is-there",
        "values-are-cut",
        "just-enough-room",
        "old-ones-are-evicted",
        "not-even-ours-fit",
        "no-room-at-all",
    ],
)
def test_putting_attributes_leaves_a_span_as_setting_them_does(limits, before):
    short, public = started(limits, **before), started(limits, **before)
    put(short, OURS)
    public.set_attributes(OURS)
    assert list(short.attributes.items()) == list(public.attributes.items())
    assert short.dropped_attributes == public.dropped_attributes


def test_an_ended_span_stays_as_it_is():
    span = started(a=1)
    span.end()
    put(span, OURS)
    assert dict(span.attributes) == {"a": 1}


def test_attributes_are_seen_as_they_become_and_copied_as_they_are():
    span = started(a=1)
    seen, copied = attributes_of(span), copy_attributes(span)
    span.set_attribute("b", 2)
    assert (dict(seen), copied) == ({"a": 1, "b": 2}, {"a": 1})


def test_a_span_that_is_not_the_sdk_s_own_is_read_the_public_way():
    span = ReadableSpan("s", SpanContext(1, 2, is_remote=False), attributes={"a": 1})
    assert dict(attributes_of(span)) == copy_attributes(span) == {"a": 1}
    assert has_more(span)


@pytest.mark.parametrize(
    "change",
    [
        lambda span: span.add_event("e"),
        lambda span: span.add_link(SpanContext(1, 2, is_remote=True)),
        lambda span: span.set_status(Status(StatusCode.OK)),
        lambda span: span.set_status(Status(StatusCode.ERROR, "why")),
        lambda span: span.set_attributes({str(number): number for number in range(200)}),
    ],
    ids=["event", "link", "ok", "error", "dropped"],
)
def test_what_a_span_has_besides_attributes_is_noticed(change):
    span = started()
    assert not has_more(span)
    change(span)
    assert has_more(span)
    assert has_more(span._readable_span())


def test_a_link_from_the_start_is_noticed():
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    assert has_more(tracer.start_span("s", links=[Link(SpanContext(1, 2, is_remote=True))]))


def test_keys_of_ours_are_told_from_others_however_often_they_come():
    plain = PlainKeys()
    for _ in range(2):
        assert plain({"a": 1, "auditor": 2})
        assert not plain({"a": 1, "audit.action": "X"})
        assert plain({})
    many = {f"k{number}": 1 for number in range(10_000)}  # more than are remembered
    assert plain(many)
    assert not plain(many | {"audit.x": 1})
