"""The generated messages are what the sources say, and each has a user."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "proto" / "src" / "auditspan_proto" / "v1"


def messages() -> list[str]:
    lines = [line for source in (ROOT / "proto").rglob("*.proto") for line in source.read_text().splitlines()]
    return [line.split()[1] for line in lines if line.startswith("message ")]


def test_the_checked_in_modules_are_generated_from_the_sources(tmp_path):
    runpy.run_path(str(ROOT / "proto" / "generate.py"))["generate"](tmp_path)
    fresh = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in GENERATED.iterdir() if "_pb2" in path.name}
    assert fresh == kept


@pytest.mark.parametrize("message", messages())
def test_each_message_has_a_user_in_the_code(message):
    code = [path.read_text() for path in (ROOT / "collector" / "src").rglob("*.py")]
    assert any(re.search(rf"_pb2\.{message}\b", text) for text in code)
