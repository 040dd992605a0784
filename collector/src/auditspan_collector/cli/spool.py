"""``auditspan spool``: what waits in a collector's spool, and the operator's hand on it."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec.structs import replace

from auditspan_collector import config as configuration
from auditspan_collector.cli.options import config_option, data_option
from auditspan_collector.cli.render import duration
from auditspan_collector.errors import AuditspanError, CommandRefused, ConfigError, SpoolInUse
from auditspan_collector.pipeline.control import MAX_LISTED, ask, overview
from auditspan_collector.pipeline.quarantine import listed, set_aside
from auditspan_collector.record import IndexRange
from auditspan_collector.spool import DATA_FILE, Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan_collector.config import Config

_RANGE: Final = re.compile(r"(\d{1,20})-(\d{1,20})")
_NOT_RUNNING: Final = "not running"


@click.group(
    epilog="""\b
Examples:
  auditspan spool list                            what waits, and why
  auditspan spool retry                           ClickHouse is mended: go on
  auditspan spool quarantine 4096-8191            ClickHouse refuses these records for good: set them aside
  auditspan spool restore 0123456789abcdef-4096-8191.batch"""
)
def command() -> None:
    """See what waits in a collector's spool, and help when ClickHouse refuses it.

    Run these on the collector's machine as its user, with the same --config and --data. They reach a running collector
    through a socket in its spool's folder. The second worker's spool is the folder 2 in that of the first, and so on.
    """


def _folder_options(function: Callable[..., Any]) -> Callable[..., Any]:
    option = click.option(
        "--spool",
        "folder",
        metavar="DIR",
        type=click.Path(readable=False, path_type=Path),
        help="The spool's folder.  [default: spool.path of the configuration, and those of workers in it]",
    )
    return config_option(data_option(option(function)))


@command.command(
    "list",
    epilog="""\b
Examples:
  auditspan spool list
  auditspan spool list --format json""",
)
@_folder_options
@click.option(
    "--limit",
    type=click.IntRange(0, MAX_LISTED),
    default=10,
    show_default=True,
    metavar="N",
    help="Show the oldest N commits.",
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_(config_file: Path | None, data: Path | None, folder: Path | None, limit: int, form: str) -> None:
    """Show what waits: ranges, records, bytes and age, the range in flight, and what stopped it.

    Works while the collector runs and while it doesn't, and changes nothing.
    """
    configs = _configs(config_file, data, folder)
    found = [_found(config, limit) for config in configs]
    if form == "json":
        click.echo(json.dumps(found, indent=2))
        return
    for number, each in enumerate(found):
        if number:
            click.echo()
        for line in _lines(each, time.time_ns() // 1_000_000):
            click.echo(line)


def _found(config: Config, limit: int) -> dict[str, Any]:
    path = Path(config.spool.path)
    try:
        found: dict[str, Any] = ask(path, "list", most=limit)
    except ConnectionError:
        with _opened(config) as spool:
            found = overview(spool, path, config.spool.capacity_bytes, limit)
            found |= {"state": _NOT_RUNNING, "error": ""}
    return found


@command.command(
    epilog="""\b
Examples:
  auditspan spool retry"""
)
@_folder_options
def retry(config_file: Path | None, data: Path | None, folder: Path | None) -> None:
    """Tell the running collector to send again, now: what stopped it is mended.

    After an error that lasts it goes on from where it stood, after one that passes without waiting for the next try.
    """
    configs = _configs(config_file, data, folder)
    absent: list[ConnectionError] = []
    for config in configs:
        try:
            state = ask(Path(config.spool.path), "retry")
        except ConnectionError as error:
            # The spool of a worker that is no more: once it is empty nobody holds it.
            absent.append(error)
            continue
        click.echo(
            f"{config.spool.path}: "
            + (
                "it was sending already"
                if state == "running"
                else "sending again; `auditspan spool list` shows how"
            )
        )
    if len(absent) == len(configs):
        raise CommandRefused(f"{absent[0]}; one that starts tries at once, by itself")


@command.command(
    epilog="""\b
Examples:
  auditspan spool list                    names the range in flight, and the commits behind it
  auditspan spool quarantine 4096-8191"""
)
@click.argument("indexes", metavar="FIRST-LAST")
@_folder_options
def quarantine(indexes: str, config_file: Path | None, data: Path | None, folder: Path | None) -> None:
    """Set the range in flight aside, which ClickHouse refuses for good, and go on with what lies behind it.

    FIRST-LAST is the range in flight as `auditspan spool list` shows it; LAST may also be the end of a later commit in
    that list, when those behind would be refused too.

    Its records go to files in the spool's folder `quarantine`, whole and on disk before they leave the spool. They are
    not in ClickHouse until `auditspan spool restore`, and keep their indexes: the ledger has a hole there that the
    files explain.
    """
    configs = _configs(config_file, data, folder)
    if len(configs) > 1:
        raise CommandRefused("there are several spools here; name the range's own with --spool DIR")
    config = configs[0]
    match = _RANGE.fullmatch(indexes)
    if match is None:
        raise click.BadParameter("give the range in flight as FIRST-LAST, for instance 4096-8191")
    wanted = IndexRange(*map(int, match.groups()))
    path = Path(config.spool.path)
    try:
        names = ask(path, "quarantine", first=wanted.first, last=wanted.last)
    except ConnectionError:
        with _opened(config) as spool:
            moved = set_aside(spool, path, wanted, "set aside while the collector did not run")
            names = [each.name for each in moved]
    click.echo(
        f"{wanted.last - wanted.first + 1} records are NOT in ClickHouse but in {path / 'quarantine'}. "
        "Bring them back with:"
    )
    for name in names:
        click.echo(f"  auditspan spool restore {name}")


@command.command(
    epilog="""\b
Examples:
  auditspan spool restore 0123456789abcdef-4096-8191.batch"""
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_folder_options
def restore(files: tuple[str, ...], config_file: Path | None, data: Path | None, folder: Path | None) -> None:
    """Bring each FILE of the quarantine to ClickHouse after all, through the running collector.

    Stores the records that ClickHouse lacks, under their own indexes, then removes the file. It may run again after
    any failure. `auditspan spool list` names the files.
    """
    folders = [Path(config.spool.path) for config in _configs(config_file, data, folder)]
    for file in files:
        holder = next((each for each in folders if file in {one.name for one in listed(each)}), folders[0])
        try:
            missing = ask(holder, "restore", file=file)
        except ConnectionError as error:
            raise CommandRefused(f"{error}; start it, it knows the way to ClickHouse") from error
        click.echo(f"{file}: {missing} records restored; the file is removed.")


def _configs(config_file: Path | None, data: Path | None, folder: Path | None) -> list[Config]:
    """The settings for each spool: the folder's own, and those of further workers in numbered folders in it."""
    config = configuration.load(config_file, data=data)
    path = (folder or Path(config.spool.path)).absolute()
    inner = sorted(
        (each for each in path.glob("[0-9]*") if each.name.isdecimal()), key=lambda each: int(each.name)
    )
    found = [each for each in (path, *inner) if (each / DATA_FILE).exists()]
    if not found:
        raise ConfigError(
            f"spool.path: no spool is in {path}; name the right one with --config, --data or --spool"
        )
    return [replace(config, spool=replace(config.spool, path=str(each))) for each in found]


@contextmanager
def _opened(config: Config) -> Iterator[Spool]:
    """The spool of a collector that does not run; none can start meanwhile."""
    # What it logs is for the log of a collector; what matters here is printed.
    logging.getLogger("auditspan_collector").addHandler(logging.NullHandler())
    try:
        spool = Spool.open(config.spool, config.collector.deployment, config.collector.name)
    except SpoolInUse as error:
        raise AuditspanError(f"{error}; it does not answer yet, or no longer: try again") from error
    try:
        yield spool
    finally:
        spool.close()


def _lines(found: dict[str, Any], now_ms: int) -> Iterator[str]:
    yield f"stream      {found['stream']}"
    yield f"folder      {found['folder']}"
    yield f"collector   {found['state']}" + (f": {found['error']}" if found["error"] else "")
    share = f"{found['bytes'] / found['capacity_bytes']:.0%}"
    yield f"waiting     {found['records']} records, {_size(found['bytes'])} on disk, {share} of its capacity"
    if flying := found["in_flight"]:
        since = _ago(now_ms - flying["since_unix_ms"])
        yield f"in flight   {flying['first']}-{flying['last']}, first tried {since}"
    if found["damage"]:
        yield f"DAMAGED     {found['damage']}"
    if found["waiting"]:
        yield ""
        yield f"{'commit':>24} {'records':>9} {'rows':>10}  received"
    for each in found["waiting"]:
        bounds, count = f"{each['first']}-{each['last']}", each["last"] - each["first"] + 1
        received = _ago(now_ms - each["received_unix_ms"])
        yield f"{bounds:>24} {count:>9} {_size(each['bytes']):>10}  {received}"
    shown = found["waiting"][-1]["last"] + 1 if found["waiting"] else found["released_index"]
    if shown < found["next_index"] and not found["damage"]:
        bounds, count = f"{shown}-{found['next_index'] - 1}", found["next_index"] - shown
        yield f"{bounds:>24} {count:>9}             behind these"
    if found["quarantine"]:
        yield ""
        yield "set aside, NOT in ClickHouse (`auditspan spool restore FILE` brings it back):"
    for each in found["quarantine"]:
        yield f"  {each['file']}  {each['last'] - each['first'] + 1} records, {_size(each['bytes'])}"


def _ago(milliseconds: int) -> str:
    return f"{duration(milliseconds * 1_000_000)} ago" if milliseconds >= 1000 else "just now"


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} GiB"
