"""End this process at a named place, so that it can be looked at what a crash there leaves behind.

The promise that nothing acknowledged is lost is a promise about every moment, and a `kill -9` from outside hits the
interesting ones once in a thousand times. So the places where a crash matters have names, and

    AUDITSPAN_CRASH_AT=drain.begun      ends the process when it gets there,
    AUDITSPAN_CRASH_AT=drain.begun:5    when it gets there for the fifth time,

by the same SIGKILL that an impatient operator or the kernel would send: nothing is flushed, closed or answered. It can
do nothing else, and whoever may set a process's environment may kill it anyway. Without the variable `reach` does
nothing: 30 ns, a few times a request.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Final, Literal, get_args

from auditspan_collector.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE: Final = "AUDITSPAN_CRASH_AT"

# In the order in which a record gets there; a spool and a table are made before the first.
Point = Literal[
    "spool.locked",  # the folder is made and ours, and empty
    "spool.creating",  # in the transaction that makes a spool
    "spool.created",  # after it, before the names of the files are durable
    "migration.statement",  # after a statement of a step, before the step is recorded
    "migration.step",  # after a step is recorded
    "intake.request",  # before a request is encoded
    "intake.encoded",  # before its records are queued
    "commit.begin",  # before the transaction of a group
    "commit.written",  # in the transaction, all is written
    "commit.durable",  # after it, before anybody hears of it
    "intake.kept",  # in the request's thread, before the answer
    "drain.read",  # a range is read
    "drain.begin",  # in the transaction that remembers the range
    "drain.begun",  # the range is remembered, nothing is sent
    "drain.stored",  # ClickHouse has it
    "drain.release",  # in the transaction that releases it
    "drain.released",  # after that
]
POINTS: Final[tuple[Point, ...]] = get_args(Point)


def _do_nothing(_point: Point) -> None:
    """What `reach` is in earnest."""


def armed(setting: str | None) -> Callable[[Point], None]:
    """The `reach` that *setting* (a point's name, ``:`` and a count from 1, or neither) asks for.

    Raises ConfigError for a name that no point has: a test that never crashes would prove nothing.
    """
    if not setting:
        return _do_nothing
    name, colon, count = setting.partition(":")
    if name not in POINTS or (colon and not re.fullmatch("[1-9][0-9]{0,8}", count)):
        raise ConfigError(
            f"{VARIABLE}: {setting!r}; a point with or without a count, as in drain.begun:3; points: {', '.join(POINTS)}"
        )
    # next() on it is one step of the interpreter, so two threads never get the same number.
    times = itertools.count(1)
    last = int(count or "1")

    def reach(point: Point) -> None:
        if point == name and next(times) == last:
            sys.stderr.write(f"{VARIABLE}={setting}: ending this process\n")
            sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    return reach


reach: Final = armed(os.environ.get(VARIABLE))
