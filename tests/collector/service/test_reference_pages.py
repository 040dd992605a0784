"""The pages under docs/ that are made from the code are current, and say something of everything."""

from __future__ import annotations

from pathlib import Path

import pytest
from auditspan_collector.cli import COMMANDS, reference

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["cli.md", "configuration.md", "metrics.md"])
def test_the_page_is_current(name):
    assert (DOCS / name).read_text() == reference.pages()[name], (
        "make it current with: python -m auditspan_collector.cli.reference docs"
    )


@pytest.mark.parametrize("command", [*COMMANDS, "config check", "config reference"])
def test_every_command_is_on_its_page(command):
    assert f"\n## auditspan {command}\n" in (DOCS / "cli.md").read_text()
