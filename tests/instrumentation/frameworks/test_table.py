"""The README's table of frameworks is what the extractors say of themselves."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
from auditspan.extractors import table

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
OURS = [e for e in metadata.entry_points(group="auditspan_extractor") if e.value.startswith("auditspan.")]


def test_the_table_is_current():
    assert table.put(README, table.markdown(table.rows())) == README, (
        "make it current with: python -m auditspan.extractors.table README.md"
    )


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_every_extractor_has_its_rows_and_each_leads_to_a_page(entry):
    for row in table.rows_of(entry.load()):
        assert row.features
        page = ROOT / f"docs/frameworks/{row.page}.md"
        assert page.exists()
        assert f"[{row.framework}](docs/frameworks/{row.page}.md)" in README


def test_the_pages_agree_on_who_has_websockets_and_who_tells_of_signing_in():
    sockets = (ROOT / "docs/frameworks/websockets.md").read_text().partition("```")[0]
    for row in table.rows():
        page = (ROOT / f"docs/frameworks/{row.page}.md").read_text()
        if row.features <= set(table.REQUESTS):
            assert (row.framework.removesuffix("'s server") in sockets) is ("WebSockets" in row.features)
        if "sign-in" in row.features:
            assert "| LOGIN, LOGOUT |" in page
        if "session" in row.features:
            assert re.search(r"[Ss]ession", page)


def test_the_command_writes_the_table_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}yesterday's\n{table.END}after\n")
    subprocess.run([sys.executable, "-m", "auditspan.extractors.table", page], check=True)
    written = page.read_text()
    assert written.startswith(f"before\n{table.BEGIN}")
    assert written.endswith(f"{table.END}after\n")
    assert "yesterday" not in written
    assert table.markdown(table.rows()) in written


def extractor(gives: str, **tested: tuple[str, str]) -> types.SimpleNamespace:
    said = {"page": "frame", "distribution": "frame", "gives": gives}
    return types.SimpleNamespace(__name__="frame", FRAMEWORKS={"Frame": said}, TESTED=tested)


@pytest.mark.parametrize(
    ("tested", "shown"),
    [({}, ""), ({"frame": ("3", "3")}, "3.x"), ({"frame": ("4.2", "5.2")}, "4.2 to 5.2")],
    ids=["nobody-knows", "any-of-a-major-version", "a-range"],
)
def test_the_versions_are_those_that_were_tested(tested, shown):
    (row,) = table.rows_of(extractor("actor", **tested))
    assert row.versions == shown


@pytest.mark.parametrize("gives", ["telepathy", "actor rows"], ids=["unknown", "of-two-tables"])
def test_what_has_no_column_is_an_error(gives):
    with pytest.raises(ValueError, match="Frame gives"):
        table.rows_of(extractor(gives))


def test_an_extractor_of_ours_that_says_nothing_is_an_error():
    with pytest.raises(ValueError, match="silent has no FRAMEWORKS"):
        table.rows_of(types.SimpleNamespace(__name__="silent"))
    assert table.rows_of(types.SimpleNamespace(__name__="inside", FRAMEWORKS={})) == []


def test_a_page_without_the_marks_is_an_error():
    with pytest.raises(ValueError, match="no line"):
        table.put("nothing here", "table")
