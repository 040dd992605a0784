"""Each process's counters in a file of the spool folder, so that ``auditspan-doctor`` sees them from outside.

``<stream>.counters`` is one line of JSON, replaced atomically, written when a counter changed and once a minute
otherwise; of a process that ended it stays for an hour. A file that can't be written is none: counters are told here,
not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from auditspan.shipper.counts import DeliveryCounts

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".counters"
REFRESH_S: Final = 60.0
_SILENT_S: Final = 150.0  # a process that wrote nothing for so long has ended
_KEPT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Noted:
    """What the process *pid* with the emitter *stream_id* counted, *age_s* seconds ago. *running*: it may go on."""

    stream_id: str
    pid: int
    age_s: float
    running: bool
    counts: DeliveryCounts


def write(folder: Path, stream_id: str, counts: DeliveryCounts) -> None:
    """Replace the process's file in *folder*, mode 0600. Raises OSError, also where there is no folder yet."""
    new = folder / f"{stream_id}{SUFFIX}-new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(new, flags, 0o600)
    try:
        os.write(fd, json.dumps({"pid": os.getpid(), **asdict(counts)}).encode() + b"\n")
    finally:
        os.close(fd)
    new.rename(folder / f"{stream_id}{SUFFIX}")


def read(folder: Path) -> list[Noted]:
    """What the processes that share *folder* wrote last; the latest first. Skips what is no such file."""
    found = []
    known = {name: type(value) for name, value in asdict(DeliveryCounts()).items()}
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            written = json.loads(path.read_bytes())
            age_s = max(0.0, time.time() - path.stat().st_mtime)
            counts = DeliveryCounts(**{n: kind(written[n]) for n, kind in known.items() if n in written})
            found.append(Noted(path.stem, int(written["pid"]), age_s, age_s < _SILENT_S, counts))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda noted: noted.age_s)


def sweep(folder: Path) -> None:
    """Remove what ended processes left more than an hour ago."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _KEPT_S:
                    path.unlink()
