"""Shift this process's wall clock by the seconds that stand in a file; on PYTHONPATH of a collector under test.

Python runs it before anything of the collector is imported. It replaces time.time_ns alone, which is all that the
collector reads the wall clock by (a test holds it to that): when a record is received, and since when a range is
tried. It does not reach the kernel's clock, nor libraries that ask for themselves: gRPC's Python half would else
live in another time than its C half, which no jump of a real clock does. Monotonic clocks don't jump on a real
machine either.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

_real_ns = time.time_ns
with Path(os.environ["SHIFTED_CLOCK_FILE"]).open("r+b") as _file:
    _shift = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)


def _time_ns() -> int:
    return _real_ns() + struct.unpack_from("<q", _shift)[0]


time.time_ns = _time_ns
