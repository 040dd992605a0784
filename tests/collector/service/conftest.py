"""Receivers that run for one test, or for as many as want the same ones."""

from __future__ import annotations

import pytest
from auditspan_collector.receiver import Config
from auditspan_collector.receiver.config import GrpcConfig, HttpConfig
from collector.service.otlp_peer import Kept, Receivers


@pytest.fixture(scope="module")
def threads_for_all():
    """Whether each gRPC call keeps a thread; a module that tests both ways has a fixture of its own."""
    return False


@pytest.fixture(scope="module")
def plain_receivers(threads_for_all):
    """Receivers with every setting at its default; for tests that leave them running."""
    running = Receivers(
        Config(grpc=GrpcConfig(listen="127.0.0.1:0"), http=HttpConfig(listen="127.0.0.1:0")),
        Kept(),
        threads_for_all=threads_for_all,
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def receivers(request, threads_for_all):
    """Give receivers in front of *kept*: the shared ones, or with ``own`` or any setting ones of the test's own."""
    running = []

    def start(kept=None, *, own=False, grpc_settings=None, http_settings=None, **settings):
        if not (own or grpc_settings or http_settings or settings):
            shared = request.getfixturevalue("plain_receivers")
            shared.kept = kept or Kept()
            shared.metrics.outcomes.clear()
            return shared
        config = Config(
            grpc=GrpcConfig(**{"listen": "127.0.0.1:0", **(grpc_settings or {})}),
            http=HttpConfig(**{"listen": "127.0.0.1:0", **(http_settings or {})}),
            **settings,
        )
        started = Receivers(config, kept or Kept(), threads_for_all=threads_for_all)
        running.append(started)
        started.start()
        return started

    yield start
    for each in running:
        each.stop()
