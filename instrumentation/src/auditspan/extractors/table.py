"""Write the README's table of frameworks, which is what the extractors say of themselves.

``python -m auditspan.extractors.table README.md``

Each extractor of ours has ``FRAMEWORKS``: by framework, as its users call it, its page in docs/frameworks, the distribution
whose versions in ``TESTED`` it was tried with (empty where there is none), and the features that it gives, words of
``REQUESTS`` or of ``CHANGES``. Nothing at run time reads them. One that works inside others' frameworks has none: ``{}``. The
table stands between two marks in the page.
"""

from __future__ import annotations

import importlib.metadata
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BEGIN: Final = "<!-- frameworks: made by python -m auditspan.extractors.table README.md -->\n"
END: Final = "<!-- /frameworks -->\n"

# What a framework that work comes in by can give, in the table's order, and what each column means.
REQUESTS: Final = {
    "actor": "whom the framework, or an authentication library in it, has authenticated",
    "roles": "the roles, groups or scopes that it holds for them",
    "method": "how they authenticated",
    "session": "their session's id, hashed",
    "sign-in": "signing in, failing to and signing out, as LOGIN and LOGOUT",
    "streams": "a record of a response in pieces when the last one goes out, with how it ended",
    "WebSockets": "a record of each session",
    "upstream": "the actor of a signed audit-context that came with the request or message",
}
# What a library that changes data can give.
CHANGES: Final = {
    "transactions": "a record of each change when its transaction ends, saying how",
    "rows": "how many rows it changed",
    "keys": "their primary keys, where they can be known",
    "values": "values before and after, of the columns that a rule names",
}
_WIDTH: Final = 120  # characters of a line of text
_GROUP: Final = "auditspan_extractor"
_OURS: Final = "auditspan.extractors."


@dataclass(frozen=True)
class Row:
    """One framework: *versions* as text; *features* all of one table."""

    framework: str
    page: str
    versions: str
    features: frozenset[str]


def rows() -> list[Row]:
    """Of all extractors in this distribution, by framework."""
    found = [
        row
        for entry in importlib.metadata.entry_points(group=_GROUP)
        if entry.value.startswith(_OURS)
        for row in rows_of(entry.load())
    ]
    return sorted(found, key=lambda row: row.framework.casefold())


def rows_of(extractor: Any) -> list[Row]:
    """What *extractor* says. Raises ValueError when it says nothing, or something that no table has a column for."""
    name = extractor.__name__
    declared: Mapping[str, Mapping[str, str]] | None = getattr(extractor, "FRAMEWORKS", None)
    if declared is None:
        raise ValueError(f"{name} has no FRAMEWORKS; auditspan.extractors.table says what it is")
    found = []
    for framework, said in declared.items():
        features = frozenset(said["gives"].split())
        if not (features <= set(REQUESTS) or features <= set(CHANGES)):
            raise ValueError(
                f"{name}: {framework} gives {', '.join(sorted(features))}; either of "
                f"{', '.join(REQUESTS)}, or of {', '.join(CHANGES)}"
            )
        tested = getattr(extractor, "TESTED", {}).get(said["distribution"])
        found.append(Row(framework, said["page"], _versions(tested), features))
    return found


def markdown(found: Iterable[Row]) -> str:
    """Both tables, each with what its columns mean."""
    found = list(found)
    return "\n".join(
        [
            *_table("requests and messages of", REQUESTS, found),
            *_table("changes of data by", CHANGES, found),
        ]
    )


def put(page: str, table: str) -> str:
    """*page* with *table* between the marks. Raises ValueError where they are not."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no line {BEGIN.strip()} with a line {END.strip()} below")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _table(what: str, columns: Mapping[str, str], found: Iterable[Row]) -> list[str]:
    lines = [f"| {what} | tested with | {' | '.join(columns)} |", f"|---|---|{':-:|' * len(columns)}"]
    for row in found:
        if row.features <= set(columns):
            marks = " | ".join("✓" if feature in row.features else " " for feature in columns)
            link = f"[{row.framework}](docs/frameworks/{row.page}.md)"
            lines.append(f"| {link} | {row.versions} | {marks} |")
    meanings = "; ".join(f"**{feature}**: {meaning}" for feature, meaning in columns.items())
    return [*lines, "", *textwrap.wrap(f"{meanings}.", _WIDTH, break_on_hyphens=False), ""]


def _versions(tested: tuple[str, str] | None) -> str:
    """Of a range in TESTED: ``("3", "3")`` is any 3."""
    if tested is None:
        return ""
    oldest, newest = (version if "." in version else f"{version}.x" for version in tested)
    return oldest if oldest == newest else f"{oldest} to {newest}"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(put(readme.read_text(encoding="utf-8"), markdown(rows())), encoding="utf-8")
