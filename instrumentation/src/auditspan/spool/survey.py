"""Look into the folder: what is there, how much it is, which counts are over, and what is only litter."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from auditspan.spool import segment as files
from auditspan.spool import tally
from auditspan.spool.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LITTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Survey:
    """*names* of our files, oldest first; *used_bytes* of what is to be delivered, *bad_bytes* of what was set aside."""

    names: tuple[str, ...]
    used_bytes: int
    bad_bytes: int


def survey(folder: Path) -> Survey | None:
    """What is in *folder*, after removing litter; None when it can't be read. Never raises."""
    used = bad = 0
    found: list[tuple[float, str]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(files.SUFFIXES):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if entry.name.endswith(files.BAD_SUFFIX):
                            bad += status.st_size
                        else:
                            used += status.st_size
                        found.append((status.st_mtime, entry.name))
    except OSError:
        return None
    _sweep(folder, found)
    return Survey(tuple(name for _, name in sorted(found)), used, bad)


def take_counts(folder: Path, names: tuple[str, ...], append: Callable[[bytes], bool]) -> None:
    """Turn counts that nobody holds any more into records. Never raises."""
    for name in names:
        if name.endswith(tally.SUFFIX):
            with contextlib.suppress(OSError):
                taken = Tally.take(folder / name)
                if taken is not None and not _write_count(taken, append):
                    return


def _write_count(taken: Tally, append: Callable[[bytes], bool]) -> bool:
    """False when there is no room for it, and it stays."""
    try:
        payload = taken.payload()
        if payload and not append(payload):
            return False
        taken.delete()
    except tally.Damaged:
        taken.set_aside()
    finally:
        taken.close()
    return True


def _sweep(folder: Path, found: list[tuple[float, str]]) -> None:
    """Remove what a process that died in mid-step left: unnamed segments, acknowledgements of nothing."""
    names = {name for _, name in found}
    for modified, name in found:
        path = folder / name
        orphan = path.suffix == files.ACK_SUFFIX and path.with_suffix(files.SUFFIX).name not in names
        unnamed = path.suffix in {files.NEW_SUFFIX, files.ACK_NEW_SUFFIX}
        if (orphan or unnamed) and time.time() - modified > _LITTER_S:
            with contextlib.suppress(OSError):
                path.unlink()
