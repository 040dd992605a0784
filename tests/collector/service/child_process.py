"""``auditspan`` as a process of its own, for as long as a test needs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from collector.service.otlp_peer import wait_until

if TYPE_CHECKING:
    from pathlib import Path

STARTED = re.compile(r"collector started: OTLP/gRPC on 127\.0\.0\.1:(\d+), OTLP/HTTP on 127\.0\.0\.1:(\d+)")


class Auditspan:
    """A running ``auditspan`` command; its output goes to files, so that no pipe can fill up."""

    def __init__(self, folder: Path, *arguments, **environ):
        folder.mkdir(exist_ok=True)
        self._output = [folder / "stdout", folder / "stderr"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AUDITSPAN_")}
        with self._output[0].open("ab") as out, self._output[1].open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "auditspan_collector.cli", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**clean, "HOME": str(folder), "COLUMNS": "200", **environ},
                start_new_session=True,
            )

    @property
    def stdout(self):
        return self._output[0].read_text()

    @property
    def stderr(self):
        return self._output[1].read_text()

    def wait_for(self, pattern, *, where="stderr", limit_s=30):
        """The first match of *pattern* in what it wrote; fails when it ends before."""

        def look():
            found = re.search(pattern, getattr(self, where))
            assert found or self.process.poll() is None, (
                f"ended with {self.process.returncode}: {self.stderr}"
            )
            return found

        return wait_until(look, limit_s=limit_s, what=f"{pattern!r} in {where}")

    def ports(self):
        """Of gRPC and HTTP, once a collector is up."""
        return tuple(int(port) for port in self.wait_for(STARTED).groups())

    def end(self, number=signal.SIGTERM, *, limit_s=30):
        """Send a signal and give the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)


def run(folder: Path, *arguments, **environ):
    """Run a command to its end: (exit status, stdout, stderr)."""
    child = Auditspan(folder, *arguments, **environ)
    child.process.wait(60)
    return child.process.returncode, child.stdout, child.stderr
