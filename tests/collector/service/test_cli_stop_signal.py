"""One SIGTERM stops a command, whichever of its threads the kernel gives it to."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, signal, threading
from auditspan_collector.cli.foreground import StopSignal

stop = StopSignal()
# It comes while this thread waits, and can go to the other one only, which does not wake this one.
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print(stop.wait())
"""


def test_a_signal_that_another_thread_gets_is_noticed():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "True\n"
