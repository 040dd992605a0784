"""A line that faults are done to, and the table of what came of them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import report
from faults.fault_line import FaultLine
from integration.whole_line import WholeLine


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    """A store that nothing happens to; each line has a database of its own in it."""
    line = WholeLine(tmp_path_factory.mktemp("store"))
    line.start_store()
    yield line.store_port
    line.stop()


@contextmanager
def making_lines(parent):
    made = []

    def make(store_port=None, **settings):
        folder = parent / str(len(made))
        folder.mkdir()
        made.append(FaultLine(folder, store_port, **settings))
        return made[-1]

    yield make
    for line in made:
        line.stop()


@pytest.fixture
def make_line(tmp_path):
    """Make a line: ``make_line(store_port, **settings)``; without a port it has a store of its own."""
    with making_lines(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def make_line_once(tmp_path_factory):
    """Make a line that all tests of a module look at."""
    with making_lines(tmp_path_factory.mktemp("lines")) as make:
        yield make


@pytest.fixture
def line(make_line, shared_store):
    """Proxy and settings, nothing started; the store is up."""
    return make_line(shared_store)


@pytest.fixture
def own_line(make_line):
    """One whose store may be ended."""
    return make_line()


@pytest.fixture
def judged(record_property):
    """Enter a verdict into the table and hold it to be good: ``judged(fault, verdict, note)``."""

    def enter(fault, verdict, note=""):
        record_property(report.PROPERTY, report.row(fault, verdict, note))
        assert verdict.ok, f"{fault}: {'; '.join(verdict.faults)}"
        assert verdict.acknowledged, f"{fault}: nothing was acknowledged, so nothing was tested"

    return enter


def pytest_terminal_summary(terminalreporter):
    reports = [*terminalreporter.stats.get("passed", []), *terminalreporter.stats.get("failed", [])]
    for kind, title, write in (
        (report.PROPERTY, "faults", report.write),
        (report.SERVICES, "faults of services", report.write_services),
    ):
        # As the tests stand in their files, whichever process ran them.
        rows = [
            value
            for each in sorted(reports, key=lambda each: each.location[:2])
            for name, value in each.user_properties
            if name == kind and each.when == "call"
        ]
        if not rows:
            continue
        terminalreporter.section(title)
        for text in report.table(rows):
            terminalreporter.write_line(text)
        if folder := os.environ.get("AUDITSPAN_FAULTS_REPORT"):
            write(Path(folder), rows)
