"""Hold sealed batches on disk until ClickHouse has them.

The spool is the collector's durability line: what it has committed survives kill -9, power loss and any outage of
ClickHouse. One process writes to it; the folder's lock file sees to that.
"""

from auditspan_collector.spool.config import (
    DATA_FILE,
    QUARANTINE_FOLDER,
    SOCKET_FILE,
    WORKERS_LOCK_FILE,
    Config,
    check,
    check_shares,
    left_over,
    share,
)
from auditspan_collector.spool.folder import make_durable, prepare_folder
from auditspan_collector.spool.queue import Backlog, Committed, Spool, Waiting
from auditspan_collector.spool.values import InFlight
from auditspan_collector.spool.verdict import Verdict

__all__ = [
    "DATA_FILE",
    "QUARANTINE_FOLDER",
    "SOCKET_FILE",
    "WORKERS_LOCK_FILE",
    "Backlog",
    "Committed",
    "Config",
    "InFlight",
    "Spool",
    "Verdict",
    "Waiting",
    "check",
    "check_shares",
    "left_over",
    "make_durable",
    "prepare_folder",
    "share",
]
