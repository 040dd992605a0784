"""Send what the spool holds to the collector until the collector has acknowledged it."""

from auditspan.shipper.otlp import Target
from auditspan.shipper.worker import DeliveryCounts, Shipper

__all__ = ["DeliveryCounts", "Shipper", "Target"]
