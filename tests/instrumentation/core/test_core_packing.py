"""packing: what is packed at once is byte for byte what cleaning and encoding, the readable way, make of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from auditspan import _packing, packing, told
from auditspan.packing import Packer
from auditspan.privacy import LEFT_OUT, LEFT_OUT_WITH_PREFIX, clean, kind_of
from auditspan.pseudonyms import ActorNames
from auditspan.rules import Keep
from auditspan.wire import SpanEncoder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation import set_span_in_context
from opentelemetry.trace.span import NonRecordingSpan

LIGHT = Path(__file__).parents[3] / "instrumentation"

surrogates = st.text(st.characters(), max_size=40)  # what JSON from outside may hold and UTF-8 can't
texts = st.one_of(st.text(max_size=200), surrogates, st.sampled_from(["/a?b#c", "/a#b?c", "?", "/a", ""]))
sensitive = st.sampled_from([*LEFT_OUT, *(f"{prefix}x" for prefix in LEFT_OUT_WITH_PREFIX)])
keys = st.one_of(st.text(min_size=1, max_size=40), sensitive, st.sampled_from(["http.route", "a" * 300]))
values = st.one_of(
    texts,
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 127, 128, 2**63 - 1, -(2**63), 2**63]),
    st.booleans(),
    st.floats(allow_nan=False),
    st.binary(max_size=20),
    st.lists(texts, max_size=3).map(tuple),
)
contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.integers(0, 3).map(TraceFlags),
    trace_state=st.sampled_from([TraceState(), TraceState([("a", "1")])]),
)


class Keeps(SpanProcessor):
    def __init__(self):
        self.ended = []

    def on_end(self, span):
        self.ended.append(span)


def ended(name="GET /", *, parent=None, kind=SpanKind.SERVER, start=1, end=2, resource=None, scope="scope"):
    keeps = Keeps()
    provider = TracerProvider(resource=Resource(resource or {}), sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(keeps)
    context = set_span_in_context(NonRecordingSpan(parent)) if parent else None
    tracer = provider.get_tracer(scope, "1", "https://schema/s")
    tracer.start_span(name, context=context, kind=kind, start_time=start).end(end)
    (span,) = keeps.ended
    return span


def readable(encoder, span, attributes, end, more):
    attributes = dict(attributes)
    clean(attributes, Keep(), ActorNames())
    return encoder.encode(span, attributes, end, more)


def packed(packer, span, attributes, end, more):
    """As a service would have it from the second time on: what is seen first goes the readable way."""
    first = packer.pack(span, attributes, end, more)
    second = packer.pack(span, attributes, end, more)
    assert first in (None, second)
    return second


def test_the_package_is_compiled_where_it_is_developed():
    assert packing.COMPILED


@given(
    attributes=st.dictionaries(keys, values, max_size=14),
    name=texts,
    parent=st.none() | contexts,
    kind=st.sampled_from(list(SpanKind)),
    times=st.tuples(st.integers(0, 2**63), st.integers(0, 2**64 - 1)),
    more=st.binary(max_size=300),
    resource=st.dictionaries(st.text(min_size=1, max_size=20), texts, max_size=3),
)
@settings(deadline=None, max_examples=300)
@example(
    {"http.url": "http://h/a?b", "n": 1, "http.user_agent": "x", "ok": True},
    "é",
    None,
    SpanKind.SERVER,
    (0, 0),
    b"",
    {},
)
def test_what_is_packed_is_what_the_readable_way_says(  # noqa: PLR0917 - hypothesis passes them by name
    attributes, name, parent, kind, times, more, resource
):
    span = ended(name, parent=parent, kind=kind, start=times[0], end=times[1], resource=resource)
    encoder = SpanEncoder()
    found = packed(Packer(encoder), span, attributes, times[1], more)
    assert found in (None, readable(encoder, span, attributes, times[1], more))


def is_plain(key, value):
    kind = kind_of(key)
    return (
        len(key) < 200
        and kind != LEFT_OUT["session.id"]
        and (kind != LEFT_OUT["url.full"] or isinstance(value, str))
    )


@given(
    attributes=st.dictionaries(
        keys,
        st.one_of(
            st.text(max_size=200),
            st.integers(-(2**63), 2**63 - 1),
            st.booleans(),
            st.lists(st.text(max_size=150), max_size=3).map(tuple),
        ),
        max_size=14,
    ),
    remote=st.none() | contexts,
)
@settings(deadline=None, max_examples=200)
def test_texts_integers_and_truths_are_packed_whatever_they_are(attributes, remote):
    attributes = {key: value for key, value in attributes.items() if is_plain(key, value)}
    span, encoder = ended(parent=remote), SpanEncoder()
    found = packed(Packer(encoder), span, attributes, 3, b"more")
    assert found == (None if span.context.trace_state else readable(encoder, span, attributes, 3, b"more"))


ORDINARY = {
    "http.method": "POST",
    "http.route": "/orders/{id}",
    "http.status_code": 200,
    "http.url": "http://h/orders/7?token=x",
}


def test_an_ordinary_span_is_packed_from_the_second_time_on():
    span, packer = ended(), Packer(SpanEncoder())
    assert packer.pack(span, ORDINARY, 3, b"") is None
    found = packer.pack(span, ORDINARY, 3, b"")
    assert found == readable(SpanEncoder(), span, ORDINARY, 3, b"")
    assert b"token" not in found


@pytest.mark.parametrize("size", [8_000, 8_192, 100_000])
def test_what_is_long_goes_the_readable_way_and_nothing_is_cut(size):
    span, encoder = ended(), SpanEncoder()
    packer = Packer(encoder)
    for room in range(size - 200, size + 1, 7):
        for long in ("x" * room, ("", "x" * room), ("x",) * (room // 5)):
            attributes = {**ORDINARY, "x": long}
            found = packed(packer, span, attributes, 3, b"")
            assert found in (None, readable(encoder, span, attributes, 3, b""))


def test_no_more_keys_are_kept_than_a_bound_and_the_rest_go_the_readable_way():
    span, packer = ended(), Packer(SpanEncoder())
    for number in range(5000):
        packer.pack(span, {f"key{number}": 1}, 3, b"")
    assert packer.pack(span, {"key0": 1}, 3, b"") is not None
    assert packer.pack(span, {"key4999": 1}, 3, b"") is None
    assert packer.pack(span, {"key4999": 1}, 3, b"") is None


def test_spans_of_other_scopes_and_resources_are_not_mixed_up():
    encoder = SpanEncoder()
    packer = Packer(encoder)
    for number in range(50):
        span = ended(resource={"service.name": str(number)}, scope=f"scope {number % 3}")
        assert packed(packer, span, ORDINARY, 3, b"") == readable(encoder, span, ORDINARY, 3, b"")


class Hostile(str):
    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other):
        raise ValueError("compared")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1,) * 9,
        ({}, (b"",) * 3, b"", b"", 0, 0, {}, b"", 0),
        ({}, (b"", "", b"", b""), b"", b"", 0, 0, {}, b"", 0),
        ({}, (b"",) * 4, b"", b"", -1, 0, {}, b"", 0),
        ({}, (b"",) * 4, b"", b"", 0, 2**64, {}, b"", 0),
        ({}, (b"",) * 4, b"", b"", 0, 0, {}, b"", 2**32),
        ({"a": b""}, (b"",) * 4, b"", b"", 0, 0, {"a": 1}, b"", 0),
        ({"a": "text"}, (b"",) * 4, b"", b"", 0, 0, {"a": 1}, b"", 0),
        ({"a": b"\0key"}, (b"",) * 4, b"", b"", 0, 0, {Hostile("a"): 1}, b"", 0),
        ({}, (b"",) * 4, b"x" * 9000, b"", 0, 0, {}, b"", 0),
    ],
    ids=["none", "of other types", "three parts", "a text among them", "a start below zero", "an end too large",
         "flags too large", "an empty key", "a key that is text", "a key that can't be compared", "too long"],
)  # fmt: skip
def test_whatever_it_is_given_it_answers_none_and_raises_nothing(arguments):
    assert _packing.pack(*arguments) is None


def test_a_span_with_something_rare_goes_the_readable_way():
    packer = Packer(SpanEncoder())
    packed(packer, ended(), ORDINARY, 3, b"")
    keeps = Keeps()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(keeps)
    for spoil in (
        lambda span: span.add_event("e"),
        lambda span: span.set_status(StatusCode.ERROR, "why"),
        lambda span: span.add_link(SpanContext(1, 1, is_remote=False)),
    ):
        span = provider.get_tracer("x").start_span("x")
        spoil(span)
        span.end()
    assert [packed(packer, span, ORDINARY, 3, b"") for span in keeps.ended] == [None] * 3


# -- record ids


@given(st.integers(0, 2**63), st.integers(0, 2**12 - 1), st.integers(0, 2**62 - 1))
@settings(deadline=None)
def test_a_record_id_is_a_uuid_of_version_7_with_its_time_and_all_its_random_bits(unix_ns, a, b):
    written = _packing.record_id(unix_ns, a, b).decode()
    found = uuid.UUID(written)
    assert str(found) == written
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert (found.int >> 80, found.int >> 64 & 0xFFF, found.int & (1 << 62) - 1) == (unix_ns // 10**6, a, b)


def test_record_ids_are_alike_with_and_without_a_compiler(monkeypatch):
    began = time.time_ns() // 10**6
    ids = [told.uuid7() for _ in range(500)]
    monkeypatch.setattr(told, "_record_id", None)
    ids += [told.uuid7() for _ in range(500)]
    assert len(set(ids)) == 1000
    for written in ids:
        found = uuid.UUID(written.decode())
        assert (str(found), found.version, found.variant) == (written.decode(), 7, uuid.RFC_4122)
        assert began <= found.int >> 80 <= time.time_ns() // 10**6


# -- building

AT_WORK = """
import json, sys
from pathlib import Path
from auditspan import packing
from auditspan.bootstrap import install
from auditspan.settings import Settings
from auditspan.spool import Spool, frames
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind
folder = Path(sys.argv[1])
provider = TracerProvider(shutdown_on_exit=False)
install(provider, Settings(), Spool(folder))
for _ in range(3):
    provider.get_tracer("t").start_span("POST /x", kind=SpanKind.SERVER, attributes={"http.method": "POST"}).end()
(path,) = folder.rglob("*.spool")
content, offset, found = path.read_bytes(), 0, 0
while isinstance(frame := frames.parse(content, offset), frames.Frame):
    found, offset = found + 1, frame.end
print(json.dumps([packing.__file__, packing.COMPILED, found]))
"""


@pytest.fixture
def build(tmp_path):
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    shutil.copytree(LIGHT, copy, ignore=ignored)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUDITSPAN_")}

    def build_(**environ):
        return subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build", "--build-base", tmp_path / "base", "--build-lib", tmp_path / "lib"],
            cwd=copy, env={**inherited, **environ}, check=False, capture_output=True, text=True, timeout=100,
        )  # fmt: skip

    return build_


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"], ids=["fails", "is not there"])
def test_without_a_compiler_that_works_the_package_builds_says_so_and_keeps_records(
    build, tmp_path, compiler
):
    built = build(CC=compiler)
    assert built.returncode == 0, built.stderr
    warnings = [line for line in built.stderr.splitlines() if "was not compiled" in line]
    for name, warning in zip(("_packing", "_gate"), warnings, strict=True):
        assert warning.startswith(f"warning: auditspan.{name} was not compiled")
        assert warning.endswith("A C compiler and Python's headers are needed.")
    ran = subprocess.run(
        [sys.executable, "-c", AT_WORK, tmp_path / "spool"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "lib")}, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [str(tmp_path / "lib" / "auditspan" / "packing.py"), False, 3]


def test_where_compiling_is_required_a_compiler_that_fails_fails_the_build(build):
    built = build(CC="false", AUDITSPAN_REQUIRE_COMPILED="1")
    assert built.returncode != 0
    assert "was not compiled" not in built.stderr


def test_a_compiled_build_serves_every_later_python(build, tmp_path):
    built = build(AUDITSPAN_REQUIRE_COMPILED="1")
    assert built.returncode == 0, built.stderr
    assert [path.name for path in (tmp_path / "lib").rglob("_packing*.so")] == ["_packing.abi3.so"]
