"""Wait a moment for room in a full spool, without slowing a service down that gets none."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S: Final = 0.05  # for room and other threads together, at most
_IN_VAIN_S: Final = 1.0  # after a wait in vain, before the next one


class Room:
    """Thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """*clock* counts seconds and never goes back."""
        self._made = threading.Event()
        self._clock = clock
        self._not_before = 0.0

    def made(self) -> None:
        """There is more of it now."""
        self._made.set()

    def wait(self, is_full: Callable[[], bool]) -> float:
        """Wait until there is some, for at most WAIT_S and not at every call; how long it took, in seconds."""
        if self._clock() < self._not_before:
            return 0.0
        began = time.monotonic()
        while is_full():
            self._made.clear()
            left = began + WAIT_S - time.monotonic()
            if left <= 0 or not self._made.wait(left):
                self._not_before = self._clock() + _IN_VAIN_S
                break
        return time.monotonic() - began
