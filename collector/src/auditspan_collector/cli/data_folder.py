"""The folder in which one machine's Auditspan keeps its things."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
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
