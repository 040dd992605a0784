"""Keep the measured cases, merged by suite, in one file for machines.

    {"machines": {"collector": {...}, ...}, "cases": [{"suite": "collector", "system": "auditspan", ...}, ...]}

A suite that is measured again replaces its own cases and leaves the others. The machine's facts stand beside each
suite as well, since suites may have been measured on different machines. Neither names a host or a path.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

Case = dict[str, Any]

FILE: Final = Path(__file__).parent / "results.json"
_PACKAGES: Final = (
    "auditspan-collector",
    "chdb",
    "clickhouse-connect",
    "grpcio",
    "lmdb",
    "opentelemetry-sdk",
    "opentelemetry-proto",
    "protobuf",
)


def load() -> dict[str, Any]:
    """What the file holds, or an empty document."""
    if FILE.exists():
        document: dict[str, Any] = json.loads(FILE.read_text())
        return document
    return {"machines": {}, "cases": []}


def merge(suite: str, cases: list[Case]) -> dict[str, Any]:
    """Replace the cases of *suite* by *cases*, with the machine they were measured on; the document as it is then."""
    document = load()
    kept = [case for case in document["cases"] if case["suite"] != suite]
    document["machines"][suite] = machine()
    document["cases"] = kept + [{"suite": suite, **case} for case in cases]
    FILE.write_text(json.dumps(document, indent=1) + "\n")
    return document


def write(file: Path, measured: dict[str, list[Case]]) -> None:
    """The cases of one run, by suite, to a *file* of its own."""
    document = {
        "machines": dict.fromkeys(measured, machine()),
        "cases": [{"suite": suite, **case} for suite, cases in measured.items() for case in cases],
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
