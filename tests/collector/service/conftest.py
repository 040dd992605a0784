"""Receivers that run for one test."""

from __future__ import annotations

import pytest
from auditspan_collector.receiver import Config
from auditspan_collector.receiver.config import GrpcConfig, HttpConfig
from collector.service.otlp_peer import Kept, Receivers


@pytest.fixture
def receivers():
    """Start receivers: ``receivers(kept, max_message_bytes=...)``."""
    running = []

    def start(kept=None, *, grpc_settings=None, http_settings=None, **settings):
        config = Config(
            grpc=GrpcConfig(**{"listen": "127.0.0.1:0", **(grpc_settings or {})}),
            http=HttpConfig(**{"listen": "127.0.0.1:0", **(http_settings or {})}),
            **settings,
        )
        started = Receivers(config, kept or Kept())
        running.append(started)
        started.start()
        return started

    yield start
    for each in running:
        each.stop()
