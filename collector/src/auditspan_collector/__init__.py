"""Auditspan's collector: keep audit-tagged spans, seal them in a ledger, store them in ClickHouse."""
