"""One service for each framework, for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from instrumentation.frameworks.frameworks import FRAMEWORKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from instrumentation.frameworks.frameworks import Shop


@pytest.fixture(scope="module", params=FRAMEWORKS, ids=lambda framework: framework.name)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    started = request.param.start(tmp_path_factory.mktemp(request.param.name))
    yield started
    started.service.stop()
