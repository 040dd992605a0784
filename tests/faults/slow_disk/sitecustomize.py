"""A slow disk where there is no C compiler for slow_sync.c: each of the spool's transactions takes longer, just before
its end; on PYTHONPATH of a collector under test.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from auditspan_collector import crashpoint

_file = Path(os.environ["SLOW_DISK_FILE"])
_reach = crashpoint.reach


def _reach_slowly(point):
    if point in {"commit.written", "drain.begin", "drain.release"}:
        time.sleep(float(_file.read_text()))
    _reach(point)


crashpoint.reach = _reach_slowly
