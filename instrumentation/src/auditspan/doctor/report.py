"""What the doctor found, part by part, as plain values: each part is a dict that JSON can write.

A *finding* is something for somebody to look at. ``problem``: records are missing or don't get away; the exit status
is then 1. ``note``: as it should be for some, so look whether it is for you.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


class WrongUse(Exception):  # noqa: N818 - what the user did, not what failed
    """The command line names nothing that can be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """*part* is the report's key that it belongs to; *text* a sentence that says what, and what to do."""

    level: Literal["problem", "note"]
    part: str
    text: str


@dataclass(slots=True)
class Report:
    """Grows while the doctor looks."""

    parts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def problem(self, part: str, text: str) -> None:
        """Add a problem."""
        self.findings.append(Finding("problem", part, text))

    def note(self, part: str, text: str) -> None:
        """Add a note."""
        self.findings.append(Finding("note", part, text))

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return all(finding.level != "problem" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The whole report."""
        return {
            "version": 1,
            "healthy": self.healthy,
            "findings": [
                {"level": finding.level, "part": finding.part, "text": finding.text}
                for finding in self.findings
            ],
            **self.parts,
        }
