"""Write the measured figures into docs/performance.md, so that the page can't say other than the results do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.table import COLUMNS

if TYPE_CHECKING:
    from bench.results import Case

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
_NOT_ON_THE_PAGE: Final = frozenset({"from - to"})


def write(document: dict[str, Any]) -> None:
    """Replace what stands between the marks of each suite that *document* (results.json) has cases of."""
    text = PAGE.read_text()
    for suite in COLUMNS:
        cases = [case for case in document["cases"] if case["suite"] == suite]
        begin, end = f"<!-- {suite} -->\n", f"<!-- end of {suite} -->"
        if cases and begin in text:
            before, _, rest = text.partition(begin)
            _, _, after = rest.partition(end)
            text = before + begin + _figures(suite, cases, document["machines"][suite]) + end + after
    PAGE.write_text(text)


def _figures(suite: str, cases: list[Case], machine: dict[str, Any]) -> str:
    packages = machine["packages"]
    where = (
        f"Measured {machine['date']} on {machine['cores']} cores ({machine['processor']}), "
        f"Python {machine['python']}, grpcio {packages['grpcio']}, chDB {packages['chdb']}."
    )
    columns = [(name, show) for name, show in COLUMNS[suite] if name not in _NOT_ON_THE_PAGE]
    lines = [
        where,
        "",
        "| " + " | ".join(name for name, _ in columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(show(case) for _, show in columns) + " |" for case in cases),
    ]
    return "\n".join(lines) + "\n"
