"""The command ``auditspan-doctor``: exit status 0 healthy, 1 problems, 2 wrong use.

Run it where the service runs: as its user, in its environment, with its variables.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from auditspan import settings
from auditspan.doctor.report import Report, WrongUse
from auditspan.doctor.text import render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from auditspan.settings import Settings

HEALTHY: Final = 0
PROBLEMS: Final = 1
WRONG_USE: Final = 2

_SECRET: Final = re.compile(r"HEADERS|TOKEN|SECRET|PASSWORD|KEY(?!.*_FILE)")
_EPILOG: Final = """\
examples:
  auditspan-doctor                             is everything in place, does the collector answer?
  auditspan-doctor shop.main:app               and which routes of this application are audited?
  auditspan-doctor shop.main:make --factory    ... which a function makes
  auditspan-doctor shop.server:register --factory      ... a gRPC server's: register(server)
  auditspan-doctor shop_pb2:DESCRIPTOR         ... or those of a .proto file

exit status: 0 healthy, 1 problems, 2 wrong use. Nothing is served or changed, and no secret is shown.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = _parser().parse_args(arguments)
    report = Report()
    try:
        chosen = _examine(given, report)
    except WrongUse as problem:
        sys.stderr.write(f"auditspan-doctor: {problem}\n")
        return WRONG_USE
    _deliver(chosen, given, report)
    sys.stdout.write(json.dumps(report.as_json(), indent=2) + "\n" if given.json else render(report))
    return HEALTHY if report.healthy else PROBLEMS


def run() -> NoReturn:
    """The console script. Ends the process at once: the application may have started threads, or have said what to do at exit."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="auditspan-doctor",
        description="Is this service audited, what of it is not and why, and do its records get away?",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "application", nargs="?", metavar="MODULE:ATTRIBUTE", help="the application to look at"
    )
    parser.add_argument("--app", metavar="MODULE:ATTRIBUTE", help="the same, as an option")
    parser.add_argument("--factory", action="store_true", help="it is a function that makes the application")
    parser.add_argument(
        "--app-dir", metavar="FOLDER", default=".", help="where its module is (default: here)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs (docs/doctor.md)")
    parser.add_argument("--offline", action="store_true", help="don't ask the collector")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=5.0,
        help="for the collector's answer (default: 5)",
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("auditspan"))
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError("more than 0 and less than 3600")
    return value


def _examine(given: argparse.Namespace, report: Report) -> Settings:
    """What this process would be under opentelemetry-instrument, and the application in it."""
    if given.application and given.app:
        raise WrongUse("name the application once")
    name = given.application or given.app
    if given.factory and not name:
        raise WrongUse("--factory needs an application")
    try:
        from auditspan.doctor.start import start, started  # noqa: PLC0415 - what it imports may be what is broken
    except Exception as problem:  # noqa: BLE001 - OpenTelemetry's own modules, which read variables
        report.problem("opentelemetry", f"OpenTelemetry can't start: {type(problem).__name__}: {problem}")
        return settings.read(os.environ)
    chosen, processor = start(report)
    report.parts["settings"] = {"variables": _variables(), "problems": list(chosen.problems)}
    for text in chosen.problems:
        report.problem("settings", text)
    running = started()
    if name:
        _application(name, given, report, running, processor.decisions)
    _frameworks(report, running)
    return chosen


def _application(
    name: str, given: argparse.Namespace, report: Report, running: frozenset[str], decisions: Any
) -> None:
    from auditspan.doctor import routes  # noqa: PLC0415 - only with an application
    from auditspan.doctor.application import Serves, load  # noqa: PLC0415 - as above
    from auditspan.doctor.start import listening  # noqa: PLC0415 - as above

    try:
        with listening(report, "application"):
            found = load(name, factory=given.factory, folder=str(Path(given.app_dir).resolve()))
            routes.look(name, found, decisions, running, report)
    except WrongUse:
        raise
    except Serves as problem:
        report.problem("application", f"{name} can't be looked at: {problem}")
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - the application's own code
        report.problem(
            "application",
            f"{name} can't be imported: {type(problem).__name__}: {problem}{_where(problem, given.app_dir)}. Run the "
            "doctor where the service runs, with its variables",
        )


def _where(problem: BaseException, folder: str) -> str:
    """The last line of the application's own that *problem* came through."""
    own = str(Path(folder).resolve())
    frames = [each for each in traceback.extract_tb(problem.__traceback__) if each.filename.startswith(own)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _frameworks(report: Report, running: frozenset[str]) -> None:
    from auditspan.bootstrap import installed_extractors  # noqa: PLC0415 - needs OpenTelemetry to start
    from auditspan.doctor import frameworks  # noqa: PLC0415 - as above

    rows = frameworks.look(installed_extractors(), running)
    report.parts["instrumentation"] = rows
    for row in rows:
        if not row["active"] and not report.parts["opentelemetry"]["disabled"]:
            report.note(
                "instrumentation",
                f"{row['framework']} {row['version']} is installed and not instrumented: "
                f"{row['why_not'] or 'it did not start'}",
            )


def _deliver(chosen: Settings, given: argparse.Namespace, report: Report) -> None:
    from auditspan.doctor import collector, spool  # noqa: PLC0415 - the shipper's modules

    if given.offline:
        collector.leave(chosen, report)
    else:
        collector.ask(chosen, given.timeout, report)
    spool.look(chosen, report)


def _variables() -> dict[str, str]:
    """Ours that are set; of what may be a secret only that it is."""
    found = {}
    for name, value in sorted(os.environ.items()):
        if name.startswith(settings.PREFIX):
            hidden = _SECRET.search(name) is not None or "@" in value
            found[name] = "***" if hidden and value else value
    return found
