"""Every suite of the benchmark runs and finds what it should, in its shortest form; its figures say nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """Run suites; all cases that they give."""

    def run_(*suites, **options):
        chosen = [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]
        file = tmp_path / "cases.json"
        ran = subprocess.run(
            [sys.executable, "-m", "bench", "--quick", "--json", file, "--repetitions", "1", *chosen, "--", *suites],
            cwd=ROOT, check=False, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return json.loads(file.read_text())["cases"]

    return run_


def test_the_collector_and_the_floor_are_measured_and_every_acknowledged_record_is_stored(run):
    cases = run("collector", seconds=0.3, tagged=5, systems="auditspan")
    assert [(case["system"], case["workers"], case["sink"]) for case in cases] == [
        ("floor", 1, "counting"),
        ("auditspan", 1, "counting"),
        ("floor", 2, "counting"),
        ("auditspan", 2, "counting"),
        ("auditspan", 1, "embedded"),
    ]
    for case in cases:
        assert case["suite"] == "collector"
        assert case["tagged_pct"] == 5
        assert case["spans_per_s"] > 0
        assert case["rss_anon_mb"] > 0
        if case["system"] == "auditspan":
            assert case["acked_tagged"] == case["stored"] > 0


@pytest.mark.long
def test_a_backlog_is_made_measured_and_stored(run):
    start, backlog = run("backlog", seconds=0.5, records=30_000)
    assert (start["when"], backlog["when"]) == ("start", "backlog")
    assert start["backlog_records"] == 0
    assert backlog["backlog_records"] >= 30_000
    for case in (start, backlog):
        for figure in ("cpu_us_per_span", "send_cpu_us_per_record", "rss_anon_mb", "backlog_mb"):
            assert case[figure] > 0, figure


def test_the_stages_are_measured(run):
    (stages,) = run("stages", tagged=5)
    assert (stages["tagged_pct"], stages["cpu_us_per_span"] > 0) == (5, True)


@pytest.mark.long
def test_store_and_questions_are_measured(run):
    cases = run("store", "query", rows=100_000)
    blocks = [case for case in cases if case["suite"] == "store"]
    assert [(case["block_rows"], case["format"]) for case in blocks] == [
        (1_000, "Native"), (1_000, "RowBinary"), (10_000, "Native"), (10_000, "RowBinary"),
    ]  # fmt: skip
    assert all(case["rows_per_s"] > 0 for case in blocks)
    questions = [case for case in cases if case["suite"] == "query"]
    assert len(questions) == 6
    assert all(case["answer_rows"] for case in questions)


def test_what_a_service_pays_is_measured_and_every_audited_answer_has_its_record(tmp_path):
    def cases(module, *arguments):
        ran = subprocess.run(
            [sys.executable, "-m", f"bench.instrumentation.{module}", *arguments],
            cwd=ROOT, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return [json.loads(line) for line in ran.stdout.splitlines()]

    requests = cases("request_path", tmp_path, "1")
    assert [(case["on"], case["case"]) for case in requests] == [
        (on, case)
        for on in ("spans", "FastAPI", "Flask")
        for case in ("audited", "not_audited", "audited_not_sampled", "not_sampled")
    ]
    for case in requests:
        assert case["records"] == (case["requests"] if case["case"].startswith("audited") else 0)
    hops = cases("hops")
    assert {case["case"] for case in hops} == {
        *("propagation_sign", "propagation_verify", "propagation_verify_cached", "propagation_hop")
    }
    assert all(case["added_us"] > 0 for case in hops)
