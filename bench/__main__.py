"""`python -m bench`: run suites, show tables, keep results and the plot."""

from __future__ import annotations

import argparse
import importlib
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from bench import page, plot, results, table
from bench.settings import Settings

PLOT: Final = Path(__file__).parent.parent / "docs" / "bench.svg"
SUITES: Final = ("collector", "backlog", "stages", "store", "query", "instrumentation")


def main() -> int:
    """Exit status 0 when all suites ran and no record was lost."""
    given = _arguments()
    # So that whatever ends us, what we started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Tables are wide, and a log has no width of its own.
    console = Console() if sys.stdout.isatty() else Console(width=150)
    root = Path(__file__).parent.parent / ".bench"
    root.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=root))
    settings = Settings(
        seconds=given.seconds or (1.5 if given.quick else 2.5),
        repetitions=given.repetitions or (1 if given.quick else 3),
        rows=given.rows or (1_000_000 if given.quick else 10_000_000),
        # What an hour without ClickHouse leaves of 40,000 spans/s, of which 5% are tagged.
        records=given.records or 2_000 * (180 if given.quick else 3_600),
        quick=given.quick,
        peers=given.peers,
        tagged=tuple(given.tagged or (0, 5, 50, 100)),
        systems=tuple(given.systems or ()),
        folder=folder,
        say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )
    failed = 0
    measured: dict[str, list[results.Case]] = {}
    try:
        for name in given.suites or SUITES:
            settings.say(f"==> {name}")
            try:
                cases = importlib.import_module(f"bench.{name}.suite").run(settings)
            except Exception:  # noqa: BLE001 - the other suites have something to say all the same
                console.print_exception()
                failed += 1
                continue
            console.print(table.of(name, cases))
            measured[name] = cases
            if given.keep:
                _keep(name, cases)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        results.write(given.json, measured)
    return min(failed, 1)


def _keep(suite: str, cases: list[results.Case]) -> None:
    page.write(results.merge(suite, cases))
    if suite == "collector":
        PLOT.write_text(plot.draw(cases))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Auditspan beside its peers."
    )
    parser.add_argument(
        "suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all when none is named"
    )
    parser.add_argument("--quick", action="store_true", help="five minutes: one short repetition, fewer rows")
    parser.add_argument("--peers", action="store_true", help="install and measure rotel too")
    parser.add_argument("--seconds", type=float, help="of load a case")
    parser.add_argument("--repetitions", type=int, help="of each case")
    parser.add_argument(
        "--tagged", type=int, nargs="+", metavar="PCT", help="shares of tagged spans to measure"
    )
    parser.add_argument(
        "--keep", action="store_true", help="write bench/results.json, docs/performance.md and docs/bench.svg"
    )
    parser.add_argument(
        "--systems", nargs="+", metavar="NAME", help="that the collector suite measures, beside the floor"
    )
    parser.add_argument(
        "--rows", type=int, help="of the query suite; the store suite's blocks are at most a tenth"
    )
    parser.add_argument("--records", type=int, help="that wait in the backlog suite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the cases of this run to FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
