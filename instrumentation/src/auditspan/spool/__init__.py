"""Keep each record on this host's disk, from the moment its span ends until the collector has it.

What ``Spool.append`` took survives the process's death: ``kill -9``, ``os._exit``, a crash. It survives power
loss too when ``sync`` is on. The process that wrote it delivers it, or the next one of the same service.
"""

from auditspan.spool.counts import SpoolCounts
from auditspan.spool.folder import place, prepare
from auditspan.spool.frames import MAX_PAYLOAD_BYTES
from auditspan.spool.segment import Batch, Segment
from auditspan.spool.writer import Spool

__all__ = ["MAX_PAYLOAD_BYTES", "Batch", "Segment", "Spool", "SpoolCounts", "place", "prepare"]
