"""One engine for all tests of the collector; each test module works in a database of its own."""

from __future__ import annotations

import pytest
from collector.clickhouse_engine import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """ClickHouse's engine in a process of its own, as `Engine`."""
    engine = Engine(tmp_path_factory.mktemp("clickhouse"))
    yield engine
    engine.close()
