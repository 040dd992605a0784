"""The keys file, read again when it changes: keys rotate without a restart, and no request waits for a disk.

A thread of its own reads the file every few seconds. What it can't use changes nothing: the keys from before stay in
use, and the log says once what is wrong. So the way to take a key away is to write a file without it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
import weakref
from typing import TYPE_CHECKING, Final

from auditspan.propagation.keys import KeyRing, KeysError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
_MAX_FILE_BYTES: Final = 64 * 1024
_VARIABLE: Final = "OTEL_AUDITSPAN_CONTEXT_KEYS_FILE"


class KeyFile:
    """The keys in the file at *path*."""

    def __init__(self, path: Path, changed: Callable[[KeyRing], None]) -> None:
        """*changed* is called with the new keys, by the thread that read them; the first time by ``look``."""
        self._path = path
        self._changed = changed
        self._digest = b""
        self._trouble = ""
        self._exposed = False
        self._stopped = threading.Event()
        self._look_s = LOOK_S

    def look(self) -> None:
        """Read the file now, and use it when it has changed. Never raises."""
        try:
            content, exposed = _read(self._path)
            if exposed and not self._exposed:
                _log.warning(
                    "auditspan: every user of this host can read the keys in %s: chmod o-rwx", self._path
                )
            self._exposed = exposed
            digest = hashlib.sha256(content).digest()
            if digest != self._digest:
                self._use(_parsed(content))
                self._digest = digest
            self._trouble = ""
        except KeysError as problem:
            self._complain(str(problem))
        except Exception as problem:  # noqa: BLE001 - the thread goes on looking, whatever it met
            self._complain(f"{type(problem).__name__}: {problem}")

    def watch(self, look_s: float = LOOK_S) -> None:
        """Look again every *look_s* seconds until ``close``, also in forked children."""
        self._look_s = look_s
        self._start()
        if hasattr(os, "register_at_fork"):
            again = weakref.WeakMethod(self._after_fork)

            def after_in_child() -> None:
                method = again()
                if method is not None:
                    method()

            os.register_at_fork(after_in_child=after_in_child)

    def close(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _start(self) -> None:
        stopped = self._stopped
        threading.Thread(target=self._go_on, args=(stopped,), name="auditspan-keys", daemon=True).start()

    def _go_on(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._look_s):
            self.look()

    def _after_fork(self) -> None:
        if not self._stopped.is_set():
            self._stopped = threading.Event()  # another thread may have held its lock
            self._start()

    def _use(self, ring: KeyRing) -> None:
        self._changed(ring)
        if self._digest or self._trouble:
            _log.info(
                "auditspan: the keys in %s have changed: %s, of which %s signs",
                self._path,
                ", ".join(ring.keys),
                ring.signing_id or "none",
            )

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            what = (
                "the keys from before stay in use"
                if self._digest
                else "audit-context is off until it is mended"
            )
            _log.warning("auditspan: %s: %s: %s. %s", _VARIABLE, self._path, trouble, what)


def _read(path: Path) -> tuple[bytes, bool]:
    """Content, and whether every user of this host can read it. Raises KeysError."""
    try:
        # Not blocking: opening a pipe would wait for its writer, and the service with it.
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            mode = os.fstat(opened).st_mode
            if not stat.S_ISREG(mode):
                raise KeysError("is no regular file")
            content = os.read(opened, _MAX_FILE_BYTES + 1)
        finally:
            os.close(opened)
    except OSError as problem:
        raise KeysError(problem.strerror or str(problem)) from problem
    if len(content) > _MAX_FILE_BYTES:
        raise KeysError(f"is larger than {_MAX_FILE_BYTES} bytes")
    return content, bool(mode & stat.S_IROTH)


def _parsed(content: bytes) -> KeyRing:
    try:
        return KeyRing.from_text(content.decode())
    except UnicodeDecodeError as problem:
        raise KeysError("is not UTF-8 text") from problem
