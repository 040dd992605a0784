"""Hold sealed batches on disk until ClickHouse has them.

The spool is the collector's durability line: what it has committed survives kill -9, power loss and any outage of
ClickHouse. One process writes to it; the folder's lock file sees to that.
"""

from auditspan_collector.spool.config import Config, check
from auditspan_collector.spool.queue import Backlog, Committed, Spool
from auditspan_collector.spool.values import InFlight
from auditspan_collector.spool.verdict import Verdict

__all__ = ["Backlog", "Committed", "Config", "InFlight", "Spool", "Verdict", "check"]
