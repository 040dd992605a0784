"""The embedded store in a process of its own: folder and port as arguments; prints its address, ends with its stdin."""

from __future__ import annotations

import sys

from auditspan_collector.store import Config, EmbeddedStore


def main() -> None:
    store = EmbeddedStore(Config(path=sys.argv[1], listen=f"127.0.0.1:{sys.argv[2]}"))
    store.start()
    print(store.url, flush=True)
    sys.stdin.read()
    store.stop()


if __name__ == "__main__":
    main()
