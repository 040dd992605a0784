"""The pytest fixture ``audit_records``; in a conftest: ``from auditspan.testing.fixtures import audit_records``.

No plugin that pytest finds by itself: that would import OpenTelemetry into every test run beside which Auditspan is
installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from auditspan.testing.capture import capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan.testing.records import Records


@pytest.fixture
def audit_records() -> Iterator[Records]:
    """The records of one test; ``audit_records.watch(app)`` audits an application until its end."""
    with capture() as records:
        yield records
