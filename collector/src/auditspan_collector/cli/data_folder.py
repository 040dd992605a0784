"""Where one machine's Auditspan keeps its things, when nobody says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


def default_data_folder(environ: Mapping[str, str]) -> Path:
    """``$AUDITSPAN_DATA``, else ``$XDG_DATA_HOME/auditspan``, else ``~/.local/share/auditspan``; not created.

    A relative XDG_DATA_HOME is ignored, as the XDG Base Directory Specification asks.
    """
    if named := environ.get("AUDITSPAN_DATA"):
        return Path(named).absolute()
    xdg = environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or "/") / ".local" / "share"
    return base / "auditspan"


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
