"""Own a folder: one process at a time, unreadable to others, its files there after power loss."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.errors import ConfigError, SpoolInUse
from auditspan_collector.spool.config import LOCK_FILE, check

if TYPE_CHECKING:
    from auditspan_collector.spool.config import Config

log = logging.getLogger(__name__)


def prepare_folder(config: Config) -> Path:
    """The folder of *config*, checked and made. Raises ConfigError."""
    check(config)
    folder = Path(config.path)
    prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    """Make *folder* with mode 0700, or close an existing one to others. Raises ConfigError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"spool.path: {folder} can't be made: {error.strerror}; choose another") from error
    if folder.stat().st_mode & 0o077:
        try:
            folder.chmod(0o700)
        except PermissionError:
            # A mounted volume often belongs to root; the files in it are 0600 all the same.
            log.warning(
                "spool folder %s is open to others and belongs to another user; its files are not", folder
            )


def take(folder: Path) -> int:
    """Lock *folder* for this process; returns the descriptor that holds the lock until it is closed.

    LMDB itself would let a second process write. The kernel frees the lock when its holder dies, however it dies.
    Raises SpoolInUse, ConfigError.
    """
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(
            f"spool.path: {path} can't be opened ({error.strerror}); the files in the folder must belong to user id "
            f"{os.geteuid()}, on a disk that is not read-only"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise SpoolInUse(
            f"spool.path: {folder} is in use by process {owner}; stop that one, or give this one a folder of its own"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def make_durable(folder: Path) -> None:
    """Have the names of the files in *folder*, and its own, survive power loss."""
    for directory in (folder, folder.parent):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
