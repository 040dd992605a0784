"""Records in memory, for an application's own tests: what they see is what production would send.

    with capture(app) as records:
        TestClient(app).post("/orders", auth=("alice", "secret"))
    records.expect(action="CREATE", actor="alice", outcome="success")

Needs no collector, no ``opentelemetry-instrument`` and no pytest; a fixture is in ``auditspan.testing.fixtures``. Each
record has been through the extractor, the processor and the encoder that run in production, and is read back from the
bytes that the collector would get.
"""

from auditspan.testing.applications import instrumented
from auditspan.testing.capture import capture
from auditspan.testing.records import Record, Records

__all__ = ["Record", "Records", "capture", "instrumented"]
