"""The suite "backlog": what an hour without ClickHouse changes for the collector."""
