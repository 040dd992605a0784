"""Install a peer for the comparison, into an environment of its own beside nothing of ours.

Peers are no dependency: they are in no constraints file, and a run without them says so and goes on.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# The newest that its package has; a release would change the figures, so it is named.
ROTEL: Final = "rotel==0.0.1a15"
_LIMIT_S: Final = 180.0


def rotel(folder: Path, say: Callable[[str], None]) -> str:
    """Path of rotel's program, installed below *folder*; empty when it can't be had here, which is said."""
    home = folder / "peers"
    program = home / "bin" / "rotel-agent"
    try:
        if not program.exists():
            say(f"installing {ROTEL} for the comparison")
            _run(sys.executable, "-m", "venv", str(home))
            _run(
                str(home / "bin" / "python"),
                *("-m", "pip", "install", "--quiet", "--disable-pip-version-check", ROTEL),
            )
            found = next(home.glob("lib/python3*/site-packages/rotel/rotel-agent"))
            found.chmod(0o755)
            program.symlink_to(found)
        _run(str(program), "--version")
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        say(f"rotel is left out: it can't be installed or run here ({str(reason).strip().splitlines()[-1]})")
        return ""
    return str(program)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S)
