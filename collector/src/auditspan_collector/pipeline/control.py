"""Let an operator on this machine look into a running collector's spool and tell it what to do.

The collector listens on a socket in the spool's folder, which only its own user may open. One connection is one command:
a line of JSON with ``command`` goes in, a line of JSON with ``ok`` or ``error`` comes back.

    list       what waits, what is in flight, why the drain stands still, what is set aside
    retry      go on after a permanent error
    quarantine set the range in flight aside, and what lies behind it as far as wanted, and go on
    restore    bring a file of the quarantine back

A collector that does not run is looked at by opening its spool: *overview* is the same for both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from auditspan_collector.errors import AuditspanError, CommandRefused, SpoolDamaged
from auditspan_collector.pipeline import quarantine
from auditspan_collector.record import IndexRange
from auditspan_collector.spool import SOCKET_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.pipeline.drain import Drain
    from auditspan_collector.spool import Spool, Waiting

log = logging.getLogger(__name__)

_MAX_LINE_BYTES: Final = 1 << 20
_READ_LIMIT_S: Final = 10.0
# An insert of a restored range may take as long as any.
_ANSWER_LIMIT_S: Final = 600.0
_BACKLOG: Final = 8
MAX_LISTED: Final = quarantine.MAX_COMMITS


def overview(spool: Spool, folder: Path, capacity_bytes: int, most: int) -> dict[str, Any]:
    """What *spool* holds, as JSON has it; of what waits the first *most* commits one by one."""
    backlog, in_flight = spool.backlog(), spool.in_flight()
    waiting: tuple[Waiting, ...] = ()
    damage = ""
    try:
        waiting = spool.waiting(min(most, MAX_LISTED))
    except SpoolDamaged as error:
        damage = str(error)
    return {
        "folder": str(folder),
        "stream": spool.stream,
        "released_index": spool.released_index,
        "next_index": spool.next_index,
        "records": backlog.records,
        "bytes": backlog.bytes,
        "capacity_bytes": capacity_bytes,
        "in_flight": in_flight
        and {
            "first": in_flight.range.first,
            "last": in_flight.range.last,
            "since_unix_ms": in_flight.started_unix_ns // 1_000_000,
        },
        "waiting": [
            {
                "first": each.range.first,
                "last": each.range.last,
                "bytes": each.bytes,
                "received_unix_ms": each.received_unix_ms,
            }
            for each in waiting
        ],
        "damage": damage,
        "quarantine": [
            {"file": each.name, "first": each.range.first, "last": each.range.last, "bytes": each.bytes}
            for each in quarantine.listed(folder)
        ],
    }


class Control:
    """The listener in *folder*. Start once, stop once."""

    def __init__(
        self, folder: Path, spool: Spool, drain: Drain, client: ClickHouseClient, *, capacity_bytes: int
    ) -> None:
        """For a spool in *folder* that this process owns."""
        self._folder = folder
        self._spool = spool
        self._drain = drain
        self._client = client
        self._capacity_bytes = capacity_bytes
        self._commands: dict[str, Callable[[dict[str, Any]], Any]] = {
            "list": self._list,
            "retry": self._retry,
            "quarantine": self._quarantine,
            "restore": self._restore,
        }
        self._listener: socket.socket | None = None
        self._stopping = False

    def start(self) -> None:
        """Listen. A folder that holds no sockets is a warning: the collector does its work without."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Left by a collector that was killed; the folder's lock is ours.
            (self._folder / SOCKET_FILE).unlink(missing_ok=True)
            with _address(self._folder) as address:
                listener.bind(address)
            # Nobody can connect before it listens, so nobody comes before it is closed to others.
            (self._folder / SOCKET_FILE).chmod(0o600)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            log.warning(
                "`auditspan spool` can't reach this collector: no socket in %s (%s)",
                self._folder,
                error.strerror,
            )
            return
        self._listener = listener
        threading.Thread(target=self._run, args=(listener,), name="auditspan-control", daemon=True).start()

    def stop(self) -> None:
        """Take no more commands."""
        self._stopping = True
        if self._listener is not None:
            # Closing alone would not wake the thread that accepts.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            (self._folder / SOCKET_FILE).unlink(missing_ok=True)

    def _run(self, listener: socket.socket) -> None:
        while not self._stopping:
            try:
                connection, _ = listener.accept()
            except OSError:
                if not self._stopping:
                    log.exception("no more commands of `auditspan spool` are taken")
                return
            with connection:
                try:
                    self._answer(connection)
                except OSError as error:
                    log.warning("a command of `auditspan spool` was not answered: %s", error)

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_READ_LIMIT_S)
        with connection.makefile("rb") as lines:
            line = lines.readline(_MAX_LINE_BYTES)
        try:
            asked = json.loads(line)
            answer = {"ok": self._commands[asked["command"]](asked)}
        except AuditspanError as error:
            answer = {"error": str(error)}
        except (ValueError, KeyError, TypeError):
            answer = {"error": "the running collector does not know this command; is it another version?"}
        except Exception as error:
            log.exception("a command of `auditspan spool` failed")
            answer = {"error": f"the collector failed ({type(error).__name__}); its log says why"}
        connection.sendall(json.dumps(answer).encode() + b"\n")

    def _list(self, asked: dict[str, Any]) -> dict[str, Any]:
        status = self._drain.status
        return overview(self._spool, self._folder, self._capacity_bytes, int(asked["most"])) | {
            "state": status.state,
            "error": str(status.error) if status.error else "",
        }

    def _retry(self, _asked: dict[str, Any]) -> str:
        log.info("an operator says: retry")
        return self._drain.retry()

    def _quarantine(self, asked: dict[str, Any]) -> list[str]:
        wanted = IndexRange(int(asked["first"]), int(asked["last"]))
        log.warning("an operator says: set range %d-%d aside", wanted.first, wanted.last)
        moved = self._drain.while_stopped(partial(_moved, self._spool, self._folder, wanted))
        return [each.name for each in moved]

    def _restore(self, asked: dict[str, Any]) -> int:
        log.info("an operator says: restore %r", asked["file"])
        return quarantine.restore(self._client, self._folder, str(asked["file"]))


def _moved(
    spool: Spool, folder: Path, wanted: IndexRange, why: BaseException
) -> tuple[quarantine.SetAside, ...]:
    if isinstance(why, SpoolDamaged):
        # Of an old copy, ClickHouse has other records under these indexes, and restoring would take them for these.
        raise CommandRefused(f"the spool is at fault, not ClickHouse; nothing was moved. {why}")
    return quarantine.set_aside(spool, folder, wanted, str(why))


def ask(folder: Path, command: str, **given: Any) -> Any:
    """What the collector that runs on the spool in *folder* answers.

    Raises ConnectionError when none listens there, and CommandRefused with what it says against the command.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_LIMIT_S)
        try:
            with _address(folder) as address:
                connection.connect(address)
        except OSError as error:
            if isinstance(error, PermissionError):
                raise CommandRefused(
                    f"{folder / SOCKET_FILE}: no permission; run this as the collector's user"
                ) from error
            raise ConnectionError(f"no collector listens in {folder}") from error
        connection.sendall(json.dumps({"command": command} | given).encode() + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline()
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise CommandRefused("the collector ended before it answered; its log may say why") from error
    if "error" in answer:
        raise CommandRefused(answer["error"])
    return answer["ok"]


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """A name for the socket in *folder* that is short enough: the system allows about a hundred bytes."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        here = Path(f"/proc/self/fd/{descriptor}")
        yield str((here if here.exists() else folder) / SOCKET_FILE)
    finally:
        os.close(descriptor)
