"""The suite "query": how long questions take on a store of many records."""
