"""Carry records over the durability line: intake before it, drain after it."""
