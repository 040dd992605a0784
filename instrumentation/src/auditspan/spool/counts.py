"""What happened to records in the spool, and which losses the audit trail has not told of yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

Loss = Literal["shed", "failed", "oversize"]
_WHY: dict[Loss, str] = {
    "shed": "the spool was full or the disk hung",
    "failed": "the disk or the folder refused",
    "oversize": "too large",
}


@dataclass(slots=True)
class SpoolCounts:
    """What happened to records since the process began, or since it was forked.

    *shed*: not taken because the spool is full or the disk hangs; *failed*: the disk or the folder refused;
    *oversize*: larger than MAX_PAYLOAD_BYTES; *deferred*: of the appended ones, those that waited in memory for
    the thread that was writing; *torn*: damaged places skipped while reading; *unsynced*: written, but the wait
    for the disk took too long.
    """

    appended: int = 0
    shed: int = 0
    failed: int = 0
    oversize: int = 0
    deferred: int = 0
    torn: int = 0
    unsynced: int = 0

    def lost(self) -> int:
        """Records that were not kept."""
        return self.shed + self.failed + self.oversize


@dataclass(frozen=True, slots=True)
class Untold:
    """*lost* records of which nothing was said yet, why, and since when (ns of Unix time)."""

    lost: int
    reason: str
    since_ns: int
    counts: SpoolCounts


@dataclass(slots=True)
class Losses:
    """Counts losses in *counts* and remembers which were told."""

    counts: SpoolCounts
    _told: SpoolCounts = field(default_factory=SpoolCounts)
    _since_ns: int = 0

    def count(self, why: Loss) -> None:
        """One more that was not kept."""
        setattr(self.counts, why, getattr(self.counts, why) + 1)
        self._since_ns = self._since_ns or time.time_ns()

    def untold(self) -> Untold:
        """What is still to be told."""
        now, told = replace(self.counts), self._told
        more = {text: getattr(now, why) - getattr(told, why) for why, text in _WHY.items()}
        reason = ", ".join(f"{count} not kept: {text}" for text, count in more.items() if count)
        return Untold(now.lost() - told.lost(), reason, self._since_ns, now)

    def tell(self, told: Untold) -> None:
        """The audit trail has *told*."""
        self._told, self._since_ns = told.counts, 0
