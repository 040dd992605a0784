"""The table of faults, for a terminal, for docs/faults.md and for machines."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.verdict import Verdict

PROPERTY = "fault"
SERVICES = "fault-of-a-service"
COLUMNS = ("fault", "acknowledged", "stored", "twice", "gaps", "missing", "verdict", "seen on the way")

INTRODUCTION = """# What was broken, and what came of it

This page is made by `make test-faults`; its figures are of one run of it. Four senders number their records, two over
OTLP/gRPC and two over OTLP/HTTP, with and without `audit.sequence.*`, and go on while the fault happens; each sends the
same request again until it is acknowledged. Then the store (ClickHouse's engine) is asked in SQL:

- **acknowledged**: records of requests that were answered with OK. **stored**: rows. There may be more of them: a request
  whose answer was lost is stored, and was never acknowledged.
- **missing**: acknowledged and not stored. **twice**: rows more than records; of several workers, without the copies that
  *seen on the way* counts, of a record that was sent again to another worker since no answer had come. **gaps**:
  indexes of a stream that no row has, or more than one.
- **ok** means that these three are 0, that no record is there that nobody sent, that each lies under the index that its
  receipt names, that each leaf was computed anew in SQL from the stored columns, and that the ledger's root over those
  leaves is the one that the collector had sealed. Where part of that can't be, *seen on the way* says so.

"""

SERVICES_INTRODUCTION = """# What was done to services, and what came of it

This page is made by `make test-faults-services`; its figures are of one run of it. Each server runs under
`opentelemetry-instrument` with every trace unsampled, three clients order from it without a pause and note each response
that they have read to its end (of a Celery task: its result), and its processes are ended twice while the collector
is up, twice while it is down, and twice while it is killed and started again and again. What ends is started again at
once, as by a service manager, and what hangs for 40 s as well. Where work is done by child processes, every second
SIGKILL hits one of them, the others all processes at once. In the end, when nothing waits on the services' disks, the store is asked in SQL:

- **acknowledged**: responses that a client saw. **stored**: rows. There may be more of them: an action whose response was
  lost is recorded too.
- **missing**: responses without a record. **twice**: rows more than requests.
- **gaps**: sequence numbers that no row has. Where a process is killed in mid-request, one may be of a request that was
  never answered.

"""

SERVICES_OUTRO = """
The code is in `tests/faults/test_faults_of_services.py`; a short form of it is part of `make test`.
"""

OUTRO = """
The code is in `tests/faults/`. `AUDITSPAN_CRASH_AT=<point>` ends a collector at a named point, also one of yours, on a
machine where you may lose it: `collector/src/auditspan_collector/crashpoint.py` has the names.
"""


def row(fault: str, verdict: Verdict, note: str) -> dict:
    """One line of the table, as JSON has it."""
    return {
        "fault": fault,
        "acknowledged": verdict.acknowledged,
        "stored": verdict.stored,
        "twice": verdict.twice,
        "gaps": verdict.gaps,
        "missing": len(verdict.missing),
        "verdict": "; ".join(verdict.faults) or _good(verdict),
        "seen on the way": note,
    }


def _good(verdict: Verdict) -> str:
    return f"{verdict.kept_aside} kept aside" if verdict.kept_aside else "ok"


def table(rows: list[dict]) -> list[str]:
    """Lines in columns."""
    cells = [COLUMNS, *([f"{each[name]}" for name in COLUMNS] for each in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(COLUMNS))]
    numbers = {1, 2, 3, 4, 5}
    return [
        "  ".join(
            cell.rjust(width) if n in numbers else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def write(folder: Path, rows: list[dict]) -> None:
    """faults.md into *folder*, and faults.json where AUDITSPAN_FAULTS_JSON names a file."""
    machine, today = _write(folder / "faults.md", INTRODUCTION, rows, OUTRO)
    if file := os.environ.get("AUDITSPAN_FAULTS_JSON"):
        content = {"date": today, "machine": machine, "faults": rows}
        Path(file).write_text(json.dumps(content, indent=1) + "\n")


def write_services(folder: Path, rows: list[dict]) -> None:
    """faults-of-services.md into *folder*."""
    _write(folder / "faults-of-services.md", SERVICES_INTRODUCTION, rows, SERVICES_OUTRO)


def _write(page: Path, introduction: str, rows: list[dict], outro: str) -> tuple[str, str]:
    machine = (
        f"{os.cpu_count()} cores ({platform.machine()}), {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}"
    )
    today = dt.datetime.now(dt.UTC).date().isoformat()
    lines = [f"Run of {today}: {machine}.", "", f"| {' | '.join(COLUMNS)} |"]
    lines += [f"|{'|'.join('---:' if n in {1, 2, 3, 4, 5} else '---' for n in range(len(COLUMNS)))}|"]
    lines += [f"| {' | '.join(str(each[name]) for name in COLUMNS)} |" for each in rows]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(introduction + "\n".join(lines) + "\n" + outro)
    return machine, today
