"""Write the measured figures into docs/performance.md, so that the page can't say other than the results do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.table import APART, COLUMNS, COLUMNS_APART

if TYPE_CHECKING:
    from bench.results import Case

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
_NOT_ON_THE_PAGE: Final = frozenset({"from - to"})


def write(document: dict[str, Any]) -> None:
    """Replace what stands between the marks of each table that *document* (results.json) has cases of."""
    PAGE.write_text(filled(PAGE.read_text(), document))


def filled(text: str, document: dict[str, Any]) -> str:
    """The page *text* with the tables of *document*; one without cases stays as it is."""
    for name, (suite, belongs) in {**{suite: (suite, _in_no_other) for suite in COLUMNS}, **APART}.items():
        cases = [case for case in document["cases"] if case["suite"] == suite and belongs(case)]
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if cases and begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            text = before + begin + _figures(name, cases, document["machines"][suite]) + end + after
    return text


def _in_no_other(case: Case) -> bool:
    return not any(case["suite"] == suite and belongs(case) for suite, belongs in APART.values())


def _figures(table: str, cases: list[Case], machine: dict[str, Any]) -> str:
    packages = machine["packages"]
    where = (
        f"Measured {machine['date']} on {machine['cores']} cores ({machine['processor']}), "
        f"Python {machine['python']}, grpcio {packages['grpcio']}, chDB {packages['chdb']}."
    )
    columns = [
        (name, show) for name, show in (COLUMNS | COLUMNS_APART)[table] if name not in _NOT_ON_THE_PAGE
    ]
    lines = [
        where,
        "",
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(show(case) for _, show in columns) + " |" for case in cases),
    ]
    return "\n".join(lines) + "\n"
