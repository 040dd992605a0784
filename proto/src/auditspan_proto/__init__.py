"""Auditspan's messages: what the collector stores in its spool and answers to clients."""
