"""Every suite of the benchmark runs and finds what it should, in its shortest form; its figures say nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import page

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


def cases(module, *arguments):
    """What a module of the suite of a service finds."""
    ran = subprocess.run(
        [sys.executable, "-m", f"bench.instrumentation.{module}", *arguments],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_what_a_service_pays_is_measured_and_every_audited_answer_has_its_record(tmp_path):
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


def test_each_extractor_is_measured_beside_the_same_service_without_it(tmp_path):
    found = cases("extractors", tmp_path, "1", "1")
    measured = {case["extractor"] for case in found}
    folder = ROOT / "instrumentation" / "src" / "auditspan" / "extractors"
    all_ours = {path.stem for path in folder.glob("*.py") if "FRAMEWORKS: Final" in path.read_text()}
    assert measured == all_ours
    for case in found:
        assert case["base_us"] > 0
        assert case["us"] == pytest.approx(case["base_us"] + case["added_us"], abs=0.2)
    calls = {(case["on"], case["case"]): case["added_calls"] for case in found}
    assert calls["Celery, publishing", "extractor"] == 0
    for on in ("Starlette", "Flask", "Django", "WSGI", "aiohttp", "PyJWT in Flask"):
        assert 0 < calls[on, "extractor"] < 100, on
    assert 0 < calls["sqlite3", "extractor_with_record"] < 300


def test_the_page_has_a_table_of_the_extractors_where_they_were_measured():
    text = page.PAGE.read_text()
    service = {"suite": "instrumentation", "case": "audited", "on": "Flask", "base_us": 400, "added_us": 99.5}
    extractor = {
        "suite": "instrumentation",
        "case": "extractor",
        "on": "Tea",
        "extractor": "tea",
        "base_us": 1_234,
        "added_us": 12.34,
        "added_calls": 20.0,
    }
    machine = {"date": "2026-01-02", "cores": 2, "processor": "a processor", "python": "3"}
    machines = {"instrumentation": machine | {"packages": {"grpcio": "1", "chdb": "2"}}}
    without = page.filled(text, {"cases": [service], "machines": machines})
    part = _between(text, "extractors")
    assert _between(without, "extractors") == part
    assert "| audited | Flask | 400 | 99.5 |" in _between(without, "instrumentation")
    both = page.filled(text, {"cases": [service, extractor], "machines": machines})
    assert "| Tea | tea |  | 1,234 | 12.3 | 20 |" in _between(both, "extractors")
    assert "Tea" not in _between(both, "instrumentation")
    assert page.filled(both, {"cases": [], "machines": {}}) == both


def _between(text, name):
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0]
