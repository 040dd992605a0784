"""The suite "store": how fast the embedded store takes rows."""
