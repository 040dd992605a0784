"""The folder in which one machine's Auditspan keeps its things."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from auditspan_collector.errors import AuditspanError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_private_folder(path: Path) -> Path:
    """Create *path* (0700, parents as the umask says) when it is missing; return it.

    Raises ConfigError when it can't be made or used, or when somebody else owns it: what lies there decides
    which store is read and what is believed about it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data folder {path}: can't be created ({error.strerror}); choose another"
        ) from error
    if path.stat().st_uid != os.geteuid():
        raise ConfigError(f"data folder {path}: belongs to another user; choose a folder of your own")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"data folder {path}: no permission to read and write; choose another")
    return path


def write_private(path: Path, text: str) -> None:
    """Put *text* into *path*, which only this user may read; replaced in one step, so never seen half written.

    Raises ConfigError when it can't be written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror})") from error


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float, taken: str) -> Iterator[int]:
    """Hold the lock on *path*; gives its descriptor, and every process that inherits that holds it as well.

    The kernel frees it when the last holder has ended, however it ended. Raises AuditspanError(*taken*), completed
    with the holder's process id, when it is not free within *wait_s*.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                    raise AuditspanError(taken.format(process=holder or "unknown")) from None
                time.sleep(0.05)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
