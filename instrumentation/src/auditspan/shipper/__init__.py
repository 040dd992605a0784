"""Send what the spool holds to the collector until the collector has acknowledged it."""

from auditspan.shipper.counts import DeliveryCounts
from auditspan.shipper.otlp import Target
from auditspan.shipper.worker import Shipper

__all__ = ["DeliveryCounts", "Shipper", "Target"]
