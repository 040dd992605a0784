"""Run the reading commands as users do: in a pipe, in a terminal of some width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.cli import auditspan as command_line
from click.testing import CliRunner

if TYPE_CHECKING:
    from collector.query.shelf import Shelf

# A test runner's own settings, and the size that it gives a terminal, are no user's.
_NOT_INHERITED = ("AUDITSPAN_", "COLUMNS", "LINES")


@dataclass(frozen=True)
class Ended:
    """How a command ended; *output* is what a terminal got, both streams together."""

    status: int
    output: str = ""
    stdout: str = ""
    stderr: str = ""


class Commands:
    """Run ``auditspan`` on a shelf."""

    def __init__(self, shelf: Shelf) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)},
            "AUDITSPAN_CLICKHOUSE_URL": shelf.url,
            "AUDITSPAN_CLICKHOUSE_DATABASE": shelf.database,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TZ": "Europe/Berlin",
        }

    def __call__(self, *arguments: str, text: str | None = None) -> Ended:
        """In this process, which is quicker; output as in a pipe, *text* on standard input."""
        environment = {**dict.fromkeys(_NOT_INHERITED), **self.environment}
        done = CliRunner().invoke(
            command_line, arguments, input=text, env=environment, catch_exceptions=False
        )
        return Ended(done.exit_code, stdout=done.stdout, stderr=done.stderr)

    def as_program(self, *arguments: str, text: str = "") -> Ended:
        """As a program of its own, with pipes."""
        done = subprocess.run(
            ["auditspan", *arguments],
            input=text.encode(),
            capture_output=True,
            env=self.environment,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, stdout=done.stdout.decode(), stderr=done.stderr.decode())

    def in_terminal(self, *arguments: str, width: int = 80, **environment: str) -> Ended:
        """In a terminal *width* columns wide; line ends as a program writes them."""
        with self.started_in_terminal(*arguments, width=width, **environment) as (process, terminal):
            output = b""
            with contextlib.suppress(OSError):  # how Linux says that the other end is closed
                while chunk := os.read(terminal, 65536):
                    output += chunk
            status = process.wait(timeout=60)
        return Ended(status, output=output.decode().replace("\r\n", "\n"))

    @contextmanager
    def started_in_terminal(self, *arguments: str, width: int = 80, **environment: str):
        """The running process, and the file descriptor of the terminal that it writes to."""
        terminal, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
        environment = {**self.environment, "TERM": "xterm-256color", **environment}
        process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        try:
            yield process, terminal
        finally:
            process.kill()
            process.wait()
            os.close(terminal)
