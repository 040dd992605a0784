"""pipeline.encode: the hot path, compiled and interpreted, says of every request what the readable path says."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from collector.codec import both_paths
from collector.codec import otlp_strategies as otlp
from collector.codec import wire_format as wf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

PATHS = [both_paths.Paths(limits) for limits in both_paths.LIMITS]
GOLDEN = sorted((Path(__file__).parents[2] / "golden" / "vectors").glob("*.bin"))
senders = st.sampled_from(both_paths.SENDERS)
paths = st.sampled_from(PATHS)
property_test = settings(
    max_examples=100,
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
@pytest.mark.parametrize("path", PATHS, ids=["usual limits", "tight limits"])
def test_they_agree_on_the_golden_vectors(vector, sender, path):
    assert not path.differ(vector.read_bytes(), sender)
