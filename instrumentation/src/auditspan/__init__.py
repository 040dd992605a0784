"""Audit attributes for services that OpenTelemetry instruments: who did what, in what role, with what outcome.

Started with ``opentelemetry-instrument``, a service needs none of these names. They say what no framework can know.
"""

from auditspan.api import audited, describe, record, set_actor

__all__ = ["audited", "describe", "record", "set_actor"]
