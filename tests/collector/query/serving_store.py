"""Serve an embedded store on the folder in the first argument, at the port in the second (0: any), until standard input
ends; prints its address.

A process of its own, because a process can hold one engine only.
"""

import sys

from auditspan_collector.store import Config, EmbeddedStore, User

users = (User(name="default"), User(name="reader", readonly=True))
store = EmbeddedStore(Config(path=sys.argv[1], listen=f"127.0.0.1:{sys.argv[2]}", users=users))
store.start()
print(store.url, flush=True)
sys.stdin.read()
store.stop()
