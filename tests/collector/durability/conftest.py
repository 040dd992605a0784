from __future__ import annotations

import pytest
from auditspan_collector.spool import Config, Spool


@pytest.fixture
def spool_config(tmp_path):
    return Config(
        path=str(tmp_path / "spool"),
        max_bytes=64 << 20,
        dedup_window_records=10_000,
        allow_memory_filesystem=True,
    )


@pytest.fixture
def open_spool(spool_config):
    """Open the spool under test; all that were opened are closed at the end."""
    opened = []

    def open_(config=spool_config, **given):
        spool = Spool.open(config, "test", "collector", **given)
        opened.append(spool)
        return spool

    yield open_
    for spool in opened:
        spool.close()


@pytest.fixture
def spool(open_spool):
    return open_spool()
