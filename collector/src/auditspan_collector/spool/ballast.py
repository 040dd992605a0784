"""Keep a little of the disk back, so that a spool can empty itself when others have filled the disk.

Removing what was sent needs room first: LMDB copies the pages that it changes, and reuses what a transaction freed in
the second one after it. A spool without free pages on a full disk could therefore send nothing, and would wait for a
person. So a file of its own holds a few pages' room, and gives it up piece by piece when a removal finds none; what
is freed by then is room enough to go on. Once the disk has room again the file is made whole.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from auditspan_collector.spool.config import BALLAST_BYTES, BALLAST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE_BYTES: Final = BALLAST_BYTES // 4


class Ballast:
    """The file in *folder*. Not thread-safe: the environment's lock guards it."""

    def __init__(self, folder: Path) -> None:
        """Touch nothing yet."""
        self._path = folder / BALLAST_FILE
        self.whole = False

    def make(self) -> None:
        """Take what is missing of it from the disk; where that has not so much, it stays as it is."""
        with contextlib.suppress(OSError), self._opened(os.O_WRONLY | os.O_CREAT) as file:
            before = os.fstat(file).st_size
            try:
                # Not written: the room is what counts.
                os.posix_fallocate(file, 0, BALLAST_BYTES)
            except OSError:
                os.ftruncate(file, before)
            else:
                self.whole = True

    def give_up_a_piece(self) -> bool:
        """Give a piece of it to the disk; False when there is none."""
        self.whole = False
        with contextlib.suppress(OSError), self._opened(os.O_WRONLY) as file:
            if left := os.fstat(file).st_size:
                os.ftruncate(file, max(0, left - PIECE_BYTES))
                # A journaling file system gives the room free when its journal has it.
                os.fsync(file)
                return True
        return False

    @contextlib.contextmanager
    def _opened(self, how: int) -> Iterator[int]:
        descriptor = os.open(self._path, how | os.O_CLOEXEC, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
