"""Decide which spans become records, and what a record says: pure functions, no I/O."""
