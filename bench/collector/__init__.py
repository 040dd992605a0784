"""The suite "collector": real processes over loopback, from the client's bytes to the stored row."""
