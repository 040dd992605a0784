"""The suite "stages": where the microseconds of a span go inside the collector."""
