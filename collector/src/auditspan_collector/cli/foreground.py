"""Run until somebody says stop: Ctrl-C or SIGTERM once for a clean end, a second time for an end at once."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType


_LOOK_S: Final = 0.5
# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


class StopSignal:
    """Set by the first SIGINT or SIGTERM; the second ends the process with 128 + its number, as shells count.

    Made in the main thread, and to be waited for there: only the main thread can be interrupted.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._asked.is_set():
            # What was acknowledged is on disk, so nothing is lost by not waiting.
            os._exit(128 + number)
        self._asked.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether a stop was asked for, within *timeout_s* when given."""
        if timeout_s is not None:
            return self._asked.wait(timeout_s)
        # The kernel may hand a signal to any thread, a library's own too, and that does not wake this one: without a
        # look now and then the handler, which runs here alone, would not be called before the next signal.
        while not self._asked.wait(_LOOK_S):
            pass
        return True

    def ask(self) -> None:
        """Stop as if the first signal had come; from any thread."""
        self._asked.set()


def raise_file_limit(wanted: int = 65_536) -> None:
    """Allow as many open connections as the system lets this user have; many systems start processes with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MiB for the next ones, at most 64 MiB of them; elsewhere do nothing.

    By default each larger block is a mapping of its own, which the kernel clears page by page whenever it is made anew:
    a fourth of what a record costs. Two arenas, so that what is kept is kept at most twice (mallopt(3)).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 32 << 20),
            (_M_TRIM_THRESHOLD, 64 << 20),
            (_M_ARENA_MAX, 2),
        ):
            libc.mallopt(parameter, value)
