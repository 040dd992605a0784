"""Run an embedded store until standard input ends: the tests' stand-in for `auditspan store`.

Argument: the Config as JSON. Prints the URL when it serves, or the error's type and text.
"""

from __future__ import annotations

import os
import sys

import msgspec
from auditspan_collector.errors import AuditspanError
from auditspan_collector.store import Config, EmbeddedStore


def main() -> int:
    store = EmbeddedStore(msgspec.json.decode(sys.argv[1], type=Config))
    try:
        store.start()
    except AuditspanError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return 1
    print(store.url, flush=True)
    while os.read(0, 1 << 16):
        pass
    store.stop(float(os.environ.get("STOP_S", "10")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
