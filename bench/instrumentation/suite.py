"""What Auditspan adds to a service: to a request, to a hop, to its start and to what it serves a second; and each extractor.

Everything is measured beside the same with OpenTelemetry's SDK alone, in the same run. ``audited`` and ``not_audited``
are requests whose span is recorded anyway; ``audited_not_sampled`` and ``not_sampled`` those whose span sampling drops,
so that there the price of recording it is ours. An ``extractor`` is measured beside the same service with Auditspan and
without it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from bench.instrumentation import servers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.results import Case
    from bench.settings import Settings

QUIET: Final = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_SERVICE_NAME": "bench",
}


def run(settings: Settings) -> list[Case]:
    """The cases, each with `case`, what it was measured `on`, `added_us` and `ratio`."""
    rounds = "12" if settings.quick else "40"
    spool = settings.folder / "instrumentation"
    cases = _lines("request_path", str(spool), rounds)
    _say(settings, cases)
    _say(
        settings,
        extractors := _lines("extractors", str(spool), *(("15", "1") if settings.quick else ("40", "3"))),
    )
    cases += extractors
    cases += _lines("hops")
    cases.append(_start_up(settings))
    cases += servers.cases(settings)
    _say(settings, cases[-7:])
    return cases


def _start_up(settings: Settings) -> Case:
    """The fastest of several starts, since what disturbs one only adds."""
    environ = {
        **QUIET,
        "OTEL_AUDITSPAN_SPOOL_DIR": str(settings.folder / "start-up"),
        # Installed packages are compiled ahead; so is this tree, after the first start.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(settings.folder / "bytecode"),
    }
    starts = [_lines("start_up", environ=environ)[0] for _ in range(3 if settings.quick else 7)]
    fastest = min(starts[1:], key=lambda start: start["wall_ms"])
    return {
        "case": "start_up",
        "on": "opentelemetry-instrument",
        "base_us": round((fastest["all_ms"] - fastest["wall_ms"]) * 1e3),
        "us": round(fastest["all_ms"] * 1e3),
        "added_us": round(fastest["wall_ms"] * 1e3),
        "ratio": round(fastest["all_ms"] / (fastest["all_ms"] - fastest["wall_ms"]), 3),
        "modules": fastest["modules"],
        "heavy_modules": fastest["heavy"],
        "added_memory_mb": round(fastest["memory_mb"], 1),
    }


def _lines(module: str, *arguments: str, environ: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """What a module of this suite found, run as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.instrumentation.{module}", *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **(environ or {})},
        check=True,
        text=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _say(settings: Settings, cases: list[Case]) -> None:
    for case in cases:
        settings.say(f"  {case['case']:26s} {case['on']:25s} {case['added_us']:10,.1f} us added")
