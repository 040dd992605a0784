"""What Auditspan adds before the application runs: time, modules and memory of its hook in ``opentelemetry-instrument``.

    python -m bench.instrumentation.start_up

Starts the SDK and all instrumentations as ``opentelemetry-instrument`` does, and looks at our hook alone, which runs
between the two. A line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Final

from opentelemetry.instrumentation import auto_instrumentation

HEAVY: Final = (
    "grpc",
    "google.protobuf",
    "h2",
    "http.client",
    "cryptography",
    "yaml",
    "wrapt",
)


def _anonymous_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Start up, and print what our hook took."""
    original = EntryPoint.load
    found: dict[str, Any] = {}

    def load(self: EntryPoint) -> Any:
        if self.group != "opentelemetry_pre_instrument" or not self.value.startswith("auditspan."):
            return original(self)

        def hook() -> None:
            modules, memory = set(sys.modules), _anonymous_mb()
            wall, cpu = time.perf_counter(), time.thread_time()
            original(self)()
            found["wall_ms"] = (time.perf_counter() - wall) * 1e3
            found["cpu_ms"] = (time.thread_time() - cpu) * 1e3
            found["memory_mb"] = _anonymous_mb() - memory
            new = set(sys.modules) - modules
            found["modules"] = len(new)
            found["heavy"] = [name for name in HEAVY if name in new]

        return hook

    EntryPoint.load = load  # type: ignore[method-assign]
    started = time.perf_counter()
    auto_instrumentation.initialize()
    found["all_ms"] = (time.perf_counter() - started) * 1e3
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
