"""Serve ClickHouse's HTTP interface on one machine, from ClickHouse's own engine in this process.

`EmbeddedStore` owns a folder and a port: clickhouse-connect, Grafana's ClickHouse data source and curl work on it
unchanged. docs/embedded-store.md says what it serves and what it refuses. From the wire inwards:

    server      connections, limits, who may ask; one request at a time per connection
    exchange    one request: what it asks for, and where it is answered
    body, reply bytes in and bytes out: framing, compression, buffering
    statement   what kind of statement it is, and where an INSERT's data starts
    engine      the statement runs; confinement says what the engine may reach
"""

from auditspan_collector.store.config import Config, User
from auditspan_collector.store.embedded import EmbeddedStore

__all__ = ["Config", "EmbeddedStore", "User"]
