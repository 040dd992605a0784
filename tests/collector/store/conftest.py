"""Stores for the tests; see `running_store`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from collector.store.running_store import StoreProcess, launch, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreProcess]:
    """One store for all tests that leave it as it was, apart from tables of their own."""
    with running(
        tmp_path_factory.mktemp("store") / "data",
        users=[{"name": "default"}, {"name": "reader", "password": "of books", "readonly": True}],
        max_concurrent_requests=4,
        queue_wait_s=0.5,
        max_execution_time_s=20,
        idle_timeout_s=5,
    ) as started:
        yield started


@pytest.fixture
def table(store: StoreProcess, request: pytest.FixtureRequest) -> str:
    """An empty table ``(a UInt64, b String)`` that remembers insert tokens."""
    name = "t_" + "".join(c if c.isalnum() else "_" for c in request.node.name)[:80]
    store.sql(f"DROP TABLE IF EXISTS {name} SYNC")
    store.sql(
        f"CREATE TABLE {name} (a UInt64, b String) ENGINE = MergeTree ORDER BY a "
        "SETTINGS non_replicated_deduplication_window = 1000"
    )
    return name


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., StoreProcess]]:
    """Start further stores, by default on the test's folder; they are stopped at the end."""
    started: list[StoreProcess] = []

    def _start(path: Path | None = None, **config: Any) -> StoreProcess:
        process, said = launch({"path": str(path or tmp_path / "store"), **config})
        one = StoreProcess(process, said, path or tmp_path / "store")
        started.append(one)
        assert said.startswith("http://"), said
        return one

    yield _start
    for one in started:
        if one.process.poll() is None:
            one.stop()
        one._close()
