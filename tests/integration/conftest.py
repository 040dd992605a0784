"""The whole line, in processes of its own."""

from __future__ import annotations

import pytest
from collector.service.otlp_peer import wait_until
from integration.whole_line import WholeLine


@pytest.fixture
def line(tmp_path):
    line = WholeLine(tmp_path)
    yield line
    line.stop()


@pytest.fixture(scope="module")
def running_line(tmp_path_factory):
    """One that runs and stays up, for tests that only send and ask."""
    line = WholeLine(tmp_path_factory.mktemp("line"))
    try:
        line.start_store()
        line.start_collector()
        wait_until(line.has_table, limit_s=30, what="the table")
        yield line
    finally:
        line.stop()
