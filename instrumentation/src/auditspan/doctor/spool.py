"""What waits in the service's spool, what is in its way, and what its processes counted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from auditspan.doctor.spool_folder import age_s, survey
from auditspan.shipper import notes

if TYPE_CHECKING:
    from pathlib import Path

    from auditspan.doctor.report import Report
    from auditspan.settings import Settings

_PART: Final = "spool"
_COUNTERS: Final = "counters"
_LATE_S: Final = 300.0  # a record that waits longer than a collector's restart takes
_NEARLY_FULL: Final = 0.8


def look(chosen: Settings, report: Report) -> None:
    """Add the parts ``spool`` and ``counters`` to *report*."""
    found = survey(chosen.spool_dir)
    oldest_s = round(age_s(found.oldest_unix_ns), 1)
    report.parts[_PART] = {
        "folder": str(found.folder),
        "exists": found.exists,
        "writable": found.writable,
        "records": found.records,
        "bytes": found.bytes,
        "oldest_s": oldest_s,
        "tallies": found.tallies,
        "counted": found.counted,
        "max_bytes": chosen.spool_max_bytes,
        "free_bytes": found.free_bytes,
        "left_over": [
            {
                "segment": one.name,
                "records": one.records,
                "bytes": one.bytes,
                "oldest_s": round(age_s(one.oldest_unix_ns), 1),
            }
            for one in found.left_over
        ],
        "set_aside_files": found.bad_files,
        "set_aside_bytes": found.bad_bytes,
    }
    for problem in found.problems:
        report.problem(_PART, problem)
    if found.folder != chosen.spool_dir:
        report.note(
            _PART,
            f"{chosen.spool_dir} is another user's, so for this one the spool is {found.folder}; if the service runs as "
            "somebody else, run the doctor as them",
        )
    if found.bytes > chosen.spool_max_bytes * _NEARLY_FULL:
        report.problem(
            _PART,
            f"{found.bytes} of {chosen.spool_max_bytes} bytes wait; when it is full, new records are dropped. Does the "
            "collector take them? More room: OTEL_AUDITSPAN_SPOOL_MAX_BYTES",
        )
    elif oldest_s > _LATE_S:
        report.problem(
            _PART,
            f"a record has waited for {oldest_s:.0f} s: does the collector take records, and does the service run?",
        )
    room = chosen.spool_max_bytes - found.bytes
    if 0 <= found.free_bytes < room:
        report.note(
            _PART,
            f"the disk has {found.free_bytes} bytes left, less than the spool may take: it fills up before the spool does",
        )
    if found.left_over:
        waiting = sum(one.records for one in found.left_over)
        report.note(
            _PART,
            f"{waiting} records of processes that ended wait for another one of this service; a running one takes them "
            "over within seconds",
        )
    if found.bad_files:
        report.note(
            _PART,
            f"{found.bad_files} .bad files hold what was damaged or refused; docs/delivery.md says how to send it again",
        )
    _count(found.folder, report)


def _count(folder: Path, report: Report) -> None:
    processes: list[dict[str, Any]] = []
    lost: dict[str, int] = {}
    for noted in notes.read(folder):
        counts = asdict(noted.counts)
        counts["last_error"] = counts["last_error"][:500]
        processes.append(
            {
                "stream": noted.stream_id,
                "pid": noted.pid,
                "running": noted.running,
                "written_s_ago": round(noted.age_s, 1),
                "counts": counts,
            }
        )
        for name in ("shed", "failed", "oversize", "rejected"):
            lost[name] = lost.get(name, 0) + counts[name]
    report.parts[_COUNTERS] = {"processes": processes}
    for name, number in lost.items():
        if number:
            report.problem(
                _COUNTERS,
                f"{number} records were lost, counted as {name}; docs/delivery.md says what that means",
            )
