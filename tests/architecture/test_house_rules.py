"""What the house promises about itself: where things live, what they may know, what they may be called."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("instrumentation/src/auditspan", "collector/src/auditspan_collector", "proto/src/auditspan_proto")
MODULES = sorted(
    path.relative_to(ROOT)
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "_pb2" not in path.name
)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_imports_follow_the_directions_of_the_house():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_is_a_drawer_for_everything(module):
    assert module.stem not in {"utils", "util", "helpers", "common", "manager", "base", "misc"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_opens_with_its_promise(module):
    assert re.match(r'(#.*\n)*r?"""\S', (ROOT / module).read_text())


# Compiled as one unit, so that the steps of the walk are called directly or not at all.
ONE_UNIT = {"collector/src/auditspan_collector/transcode.py": 1500}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_fits_in_one_reading(module):
    assert len((ROOT / module).read_text().splitlines()) <= ONE_UNIT.get(str(module), 520)


def test_the_light_package_starts_without_grpc_and_without_the_collectors_libraries():
    heavy = (
        "grpc",
        "lmdb",
        "clickhouse_connect",
        "chdb",
        "cryptography",
        "numpy",
        "starlette",
        "flask",
        "sqlalchemy",
    )
    loaded = run_python(f"import sys, auditspan; print([m for m in {heavy!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_the_collector_knows_of_the_light_package_only_its_attribute_names():
    imports = re.compile(r"^\s*(?:from|import) (auditspan(?:\.\w+)*)(?!\w)(?: import (\w+))?", re.MULTILINE)
    found = {
        match.groups()
        for path in (ROOT / "collector" / "src").rglob("*.py")
        for match in imports.finditer(path.read_text())
    }
    assert found <= {("auditspan.attributes", None), ("auditspan", "attributes")}


@pytest.mark.parametrize("tracked", ["constraints.txt", "pyproject.toml", "Makefile"])
def test_no_file_of_the_set_up_records_a_download_address(tracked):
    assert "://" not in (ROOT / tracked).read_text()


def test_every_dependency_is_pinned_exactly():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
