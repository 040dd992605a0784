"""How long a run of the benchmarks takes, and what it may use; chosen on the command line, passed to each suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """*seconds* of load a case and *repetitions* of it; *rows* of the query suite; *folder* is on a real disk.

    *tagged* are the shares of tagged spans that the collector suite measures, in percent, and *systems* the names of what
    it measures, all when there are none. *records* are those that wait in the backlog suite.

    *peers* installs the peers from the package index; *say* tells whoever waits what happens.
    """

    seconds: float
    repetitions: int
    rows: int
    records: int
    quick: bool
    peers: bool
    tagged: tuple[int, ...]
    systems: tuple[str, ...]
    folder: Path
    say: Callable[[str], None]
