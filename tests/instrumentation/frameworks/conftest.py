"""One service for each framework, for all tests of this folder, and the cases that a framework can't have left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from instrumentation.frameworks.frameworks import FRAMEWORKS, Framework

if TYPE_CHECKING:
    from collections.abc import Iterator

    from instrumentation.frameworks.shops import Shop


@pytest.fixture(scope="module", params=FRAMEWORKS, ids=lambda framework: framework.name)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    started = request.param.start(tmp_path_factory.mktemp(request.param.name))
    yield started
    started.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a framework's row says it is *without*; a test's case is its own name, or its parameter's."""
    out = [item for item in items if _left_out(item)]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


def _left_out(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    framework = parameters.get("shop")
    case = getattr(parameters.get("case"), "id", None) or getattr(item.function, "case", None)
    return isinstance(framework, Framework) and case in framework.without
