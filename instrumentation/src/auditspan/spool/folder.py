"""The folder that segments are in: made when needed, ours alone, or not used.

One folder belongs to one service, and is shared by all its processes and restarts: that is how they deliver what
a dead one left. Two services need two folders, because a process delivers with its own credential what it finds,
and the collector may allow that credential its own service only.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def place(folder: Path) -> Path:
    """Where segments go when *folder* is the configured one: itself, or a folder of this user's in or beside it.

    A volume is often made by somebody else (root, when a container's volume is mounted) and writable for many;
    beneath it ``uid-<number>`` is ours alone. Where *folder* itself is closed to us (the same service ran as another
    user on the same volume), it is ``<folder>.uid-<number>``. Reads the file system, changes nothing, never raises.
    """
    try:
        theirs = folder.stat().st_uid != os.geteuid()
    except OSError:
        return folder
    if not theirs:
        return folder
    ours = f"uid-{os.geteuid()}"
    return (
        folder / ours if os.access(folder, os.W_OK | os.X_OK) else folder.with_name(f"{folder.name}.{ours}")
    )


def prepare(folder: Path) -> Path:
    """Make ``place(folder)``, mode 0700, check it and return it. Raises OSError saying what is wrong.

    Another user's folder, or a link, could feed forged records into our credential.
    """
    used = place(folder)
    if not used.is_dir():
        used.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = used.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(20, "is a link or no folder; remove it", str(used))
    if status.st_uid != os.geteuid():
        raise PermissionError(
            13, f"belongs to user {status.st_uid}, not to this process's; remove it", str(used)
        )
    if status.st_mode & 0o077:
        used.chmod(0o700)
    if not os.access(used, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(13, "is not readable and writable for this process", str(used))
    return used
