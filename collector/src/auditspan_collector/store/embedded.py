"""Start and stop the embedded store: its folder, its engine, its port."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from auditspan_collector.errors import ConfigError, StoreUnavailable
from auditspan_collector.store import confinement
from auditspan_collector.store.config import split_address
from auditspan_collector.store.lock import FolderLock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from auditspan_collector.store.config import Config
    from auditspan_collector.store.engine import Engine
    from auditspan_collector.store.server import Server

ADDRESS_FILE = "store.address"
_UNUSABLE = "?&%#"  # chDB reads the folder from an address with parameters


def _folder(path: str) -> Path:
    """*path* as an absolute folder that is there and can be written to. Raises ConfigError, StoreUnavailable."""
    if not path:
        raise ConfigError("store.path: empty; name a folder for the data")
    folder = Path(path).absolute()
    if any(character in _UNUSABLE for character in str(folder)):
        raise ConfigError(
            f"store.path: {folder} has one of {' '.join(_UNUSABLE)} in it, which the engine can't open"
        )
    with _disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / "store.probe"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    return folder


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreUnavailable(
                f"store.path: no space left for {folder}; free some, or choose another disk"
            ) from None
        raise ConfigError(f"store.path: {folder} can't be used: {error.strerror or error}") from None


class EmbeddedStore:
    """ClickHouse's HTTP interface on *config*'s folder and address, served from this process.

    A process can hold one at a time. Not safe to call from several threads at once.
    """

    def __init__(self, config: Config) -> None:
        """Nothing happens before `start`."""
        self._config = config
        self._folder: Path | None = None
        self._lock: FolderLock | None = None
        self._engine: Engine | None = None
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open the folder and serve; on return requests are answered, and ``<path>/store.address`` says where.

        Raises ConfigError (folder or address unusable, chDB not installed), StoreInUse, StoreUnavailable (disk
        full) and StoreRejected (the engine can't open the data; its own words are in the message).
        """
        engine_type, server_type = _engine_and_server()
        folder = self._folder = _folder(self._config.path)
        with _disk_errors(folder):
            self._lock = FolderLock(folder)
        try:
            with _disk_errors(folder):
                data, configuration = confinement.prepare(folder, self._config)
            self._engine = engine_type(data, configuration)
            self._server = self._listen(server_type, self._engine, folder)
            self._thread = threading.Thread(
                target=self._server.serve_forever,
                kwargs={"poll_interval": 0.1},
                name="store-accept",
                daemon=True,
            )
            self._thread.start()
            with _disk_errors(folder):
                self._write_address(folder)
        except BaseException:
            self.stop(0)
            raise

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the store is not running")
        return int(self._server.server_port)

    @property
    def url(self) -> str:
        """Where clients reach it, for instance ``http://127.0.0.1:8123``."""
        host, _ = split_address(self._config.listen)
        if host in ("0.0.0.0", "::"):  # noqa: S104 - every address; clients need one
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def stop(self, timeout_s: float = 10.0) -> None:
        """Take no more requests, let those that run finish within *timeout_s*, stop the rest, and let the folder go.

        What was answered is on disk in any case. Safe to call again, and after a start that failed.
        """
        if self._folder is not None:
            (self._folder / ADDRESS_FILE).unlink(missing_ok=True)
        if self._server is not None:
            self._stop_serving(self._server, timeout_s)
            self._server = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _stop_serving(self, server: Server, timeout_s: float) -> None:
        server.serving = False
        server.running.close()
        if self._thread is not None:
            server.shutdown()
            self._thread.join()
            self._thread = None
        server.server_close()
        if not server.running.wait(timeout_s):
            # A stopped statement ends at the engine's next look; one that is just being set up is missed, so again.
            deadline = time.monotonic() + max(5.0, timeout_s)
            while time.monotonic() < deadline:
                server.running.stop_all()
                if server.running.wait(0.2):
                    break
            server.hang_up()
            server.running.wait(1.0)
        server.hang_up()

    def _listen(self, server_type: type[Server], engine: Engine, folder: Path) -> Server:
        spill = folder / "results"
        with _disk_errors(folder):
            spill.mkdir(mode=0o700, exist_ok=True)
        try:
            return server_type(self._config, engine, spill)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                problem = "is in use by another process; choose another port (0 picks a free one)"
            else:
                problem = f"can't be listened on: {error.strerror or error}"
            raise ConfigError(f"store.listen: {self._config.listen} {problem}") from None

    def _write_address(self, folder: Path) -> None:
        host_and_port = self.url.removeprefix("http://")
        fresh = folder / f"{ADDRESS_FILE}.new"
        fresh.write_text(f"{host_and_port}\n", encoding="ascii")
        fresh.replace(folder / ADDRESS_FILE)


def _engine_and_server() -> tuple[type[Engine], type[Server]]:
    """The classes that need the ``embedded`` extra. Raises ConfigError when it is not installed."""
    try:
        from auditspan_collector.store.engine import Engine  # noqa: PLC0415 - half a gigabyte; an extra
        from auditspan_collector.store.server import Server  # noqa: PLC0415 - needs the extra's compressors
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] not in ("chdb", "lz4", "zstandard"):
            raise
        raise ConfigError(
            f"the embedded store needs {error.name}, which is not installed; "
            "run: pip install 'auditspan-collector[embedded]'"
        ) from None
    return Engine, Server
