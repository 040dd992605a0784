"""pipeline.encode: the hot path, compiled and interpreted, says of every request what the readable path says."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from auditspan_collector.decode import wire
from auditspan_collector.processor.enrich import Limits
from collector.codec import both_paths
from collector.codec import otlp_strategies as otlp
from collector.codec import wire_format as wf
from fuzz.mutations import mutated
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

transcode_source = both_paths.interpreted()

PATHS = [both_paths.Paths(limits) for limits in both_paths.LIMITS]
GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "vectors").glob("*.bin"))
senders = st.sampled_from(both_paths.SENDERS)
paths = st.sampled_from(PATHS)
property_test = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_the_compiled_form_is_among_those_compared():
    """`make setup` compiles it; where no compiler is, this test says that nothing of it was tested."""
    assert set(both_paths.forms()) == {"interpreted", "compiled"}


@property_test
@given(request=otlp.requests, sender=senders, path=paths)
def test_they_agree_on_what_exporters_may_send(request, sender, path):
    assert not path.differ(request.SerializeToString(), sender)


@property_test
@given(request=otlp.requests, seed=st.integers(0, 1 << 32), sender=senders, path=paths)
def test_they_agree_on_any_valid_encoding(request, seed, sender, path):
    assert not path.differ(wf.scrambled(request, Random(seed)), sender)


@pytest.mark.parametrize("vector", GOLDEN, ids=[path.stem for path in GOLDEN])
@pytest.mark.parametrize("sender", both_paths.SENDERS, ids=["instrumented", "foreign"])
@pytest.mark.parametrize("path", PATHS, ids=["usual limits", "tight limits", "few of each"])
def test_they_agree_on_the_golden_vectors(vector, sender, path):
    assert not path.differ(vector.read_bytes(), sender)


EXPORTERS = sorted((Path(__file__).parents[2] / "golden" / "exporters").glob("*.bin"))
FOUND = sorted((Path(__file__).parents[2] / "golden" / "found").glob("*.bin"))


@pytest.mark.parametrize("recorded", EXPORTERS, ids=[path.stem for path in EXPORTERS])
@pytest.mark.parametrize("path", PATHS[:2], ids=["usual limits", "tight limits"])
def test_they_agree_on_what_exporters_sent(recorded, path):
    body = recorded.read_bytes()
    (selection,) = {repr(said) for said in path.verdicts(body).values()}
    assert "Selection(leaves=Leaves(" in selection


@pytest.mark.parametrize("recorded", FOUND, ids=[path.stem for path in FOUND])
@pytest.mark.parametrize("sender", both_paths.SENDERS, ids=["instrumented", "foreign"])
@pytest.mark.parametrize("path", PATHS, ids=["usual limits", "tight limits", "few of each"])
def test_they_agree_on_what_a_fuzz_once_found(recorded, sender, path):
    assert not path.differ(recorded.read_bytes(), sender)


@pytest.mark.parametrize("seed", range(8))
def test_they_agree_on_requests_changed_at_random(seed):
    random = Random(seed)
    bodies = [path.read_bytes() for path in (*GOLDEN, *EXPORTERS)]
    for _ in range(30):
        body = mutated(random.choice(bodies), random)
        assert not random.choice(PATHS).differ(body, random.choice(both_paths.SENDERS)), body.hex()


def test_they_agree_on_a_request_cut_at_any_byte():
    body = EXPORTERS[-1].read_bytes()
    for length in range(0, len(body), 7):
        assert not PATHS[0].differ(body[:length])


@pytest.mark.parametrize("module", both_paths.forms().values(), ids=both_paths.forms())
@pytest.mark.parametrize("recorded", EXPORTERS, ids=[path.stem for path in EXPORTERS])
def test_the_walk_takes_what_exporters_send_itself(recorded, module):
    """Else everything would agree, and nothing be gained."""
    taken = both_paths.taken(recorded.read_bytes(), module)
    # The first of the hand-made spans has an array of doubles.
    odd = [0] if recorded.stem in {"hand_made_spans-0", "light_package-0"} else []
    assert [before for before, _ in taken.odd] == odd
    assert taken.tagged == len(taken.leaves)


@pytest.mark.parametrize("module", both_paths.forms().values(), ids=both_paths.forms())
def test_one_odd_span_goes_the_readable_way_alone(module):
    odd = wf.length_delimited(9, wf.length_delimited(1, b"k") + wf.length_delimited(2, b"\x3a\x01x"))
    spans = [odd, b"", odd]
    body = b"".join(wf.request(span) for span in spans)
    taken = both_paths.taken(body, module)
    assert [before for before, _ in taken.odd] == [0, 1], "one before the leaf, one behind it"
    assert (len(taken.leaves), taken.tagged) == (1, 1)
    assert not PATHS[0].differ(body)


REFUSALS = {
    "a service of somebody else": (
        wf.request(resource=wf.length_delimited(1, wf.attribute(b"service.name", b"payroll"))),
        "PermissionDenied",
    ),
    "a malformed span behind it": (
        wf.request(resource=wf.length_delimited(1, wf.attribute(b"service.name", b"payroll")))
        + b"\x0a\x03\x12\x05",
        "InvalidRequest",
    ),
    "a span that is malformed inside behind a service of somebody else": (
        wf.request(resource=wf.length_delimited(1, wf.attribute(b"service.name", b"payroll")))
        + wf.request(wf.length_delimited(5, b"\xff")),
        "PermissionDenied",
    ),
    "a span that is malformed inside before a service of somebody else": (
        wf.request(
            wf.length_delimited(5, b"\xff"),
            resource=wf.length_delimited(1, wf.attribute(b"service.name", b"orders")),
        )
        + wf.request(resource=wf.length_delimited(1, wf.attribute(b"service.name", b"payroll"))),
        "InvalidRequest",
    ),
}


@pytest.mark.parametrize(("body", "error"), REFUSALS.values(), ids=REFUSALS)
def test_they_refuse_with_the_same_words(body, error):
    said = PATHS[0].verdicts(body, both_paths.FOREIGN)
    assert {str(one[0]) for one in said.values()} == {error}
    assert not PATHS[0].differ(body, both_paths.FOREIGN)


def test_they_refuse_a_request_whose_records_come_to_too_much():
    resource = wf.length_delimited(1, wf.attribute(b"padding", b"x" * 60_000))
    spans = b"".join(
        wf.length_delimited(2, wf.length_delimited(9, wf.attribute(b"audit.x")) + wf.ids()) for _ in range(18)
    )
    body = wf.length_delimited(1, wf.length_delimited(1, resource) + wf.length_delimited(2, spans))
    path = both_paths.Paths(Limits(request_bytes=1024 * 1024))
    assert {one[0] for one in path.verdicts(body).values()} == {"TooLarge"}
    assert not path.differ(body)


def test_the_walk_knows_the_fields_that_the_descriptors_know():
    """A newer opentelemetry-proto may know more: then the walk must learn it, since it skips what is unknown."""
    for message, base in (
        (Span, transcode_source._SPAN),
        (Span.Event, transcode_source._EVENT),
        (Span.Link, transcode_source._LINK),
        (Status, transcode_source._STATUS),
    ):
        shape = wire.shape_of(message.DESCRIPTOR)
        known = {
            number: transcode_source._SHAPES[base + number]
            for number in range(1, max(shape.fields) + 1)
            if transcode_source._SHAPES[base + number] != 7
        }
        assert known == {
            number: field.wire_type | 8 * field.utf8 | 16 * field.repeated
            for number, field in shape.fields.items()
        }
    for message, last in ((ResourceSpans, 3), (ScopeSpans, 3), (ExportTraceServiceRequest, 1)):
        assert max(wire.shape_of(message.DESCRIPTOR).fields) == last
