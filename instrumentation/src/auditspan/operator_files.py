"""Read a small file that an environment variable names: whatever it turns out to be, the service starts."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_small(path: Path, max_bytes: int) -> tuple[str, bool]:
    """The text of *path*, and whether every user of this host can read it. Raises ValueError that says what is wrong."""
    try:
        # Not blocking: opening a pipe would wait for its writer, and the service with it.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"{path}: is no regular file")
            content = file.read(max_bytes + 1)
    except OSError as problem:
        raise ValueError(f"{path}: {problem.strerror or problem}") from None
    if len(content) > max_bytes:
        raise ValueError(f"{path}: is larger than {max_bytes} bytes")
    try:
        return content.decode(), bool(mode & stat.S_IROTH)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text") from None
