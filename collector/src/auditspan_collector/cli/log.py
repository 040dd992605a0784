"""One line an entry on stderr: time, level, where from, what; whatever the message holds."""

from __future__ import annotations

import logging
import time
from typing import Final

# Libraries that log each odd request of a stranger; what matters of it is in the metrics.
_QUIET: Final = ("uvicorn", "asyncio", "urllib3", "clickhouse_connect")


class LineFormatter(logging.Formatter):
    r"""``2026-01-02T03:04:05.678Z WARNING pipeline.drain records stay in the spool, next try in 0.2 s``.

    Line breaks, also those of a stack, become ``\n``: an entry can't be forged by what somebody sends.
    """

    def __init__(self, process: str = "") -> None:
        """*process*, when given, is said in each line: several processes may write to one place."""
        super().__init__()
        self._process = f"{process}." if process else ""

    def format(self, record: logging.LogRecord) -> str:
        """The line of *record*."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        where = record.name.removeprefix("auditspan_collector.")
        text = record.getMessage()
        if record.exc_info:
            text = f"{text} {self.formatException(record.exc_info)}"
        escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._process}{where} {escaped}"


def log_to_stderr(level: str, *, process: str = "") -> None:
    """Send entries of *level* and above to stderr, for the whole process, which is called *process* in them."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
