"""One process per folder: a lock that the system lets go when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from auditspan_collector.errors import StoreInUse

if TYPE_CHECKING:
    from pathlib import Path


class FolderLock:
    """Hold *folder* for this process. The file names the holder's pid; the lock itself is what counts."""

    def __init__(self, folder: Path) -> None:
        """Take the lock at once. Raises StoreInUse when another process, or this one, has it."""
        self._path = folder / "store.lock"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StoreInUse(
                f"store.path: {folder} is in use by {who}; stop it, or choose another folder"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: removing it could take the lock of a process that has just opened it."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
