"""Set a range aside that ClickHouse refuses for good, so that what lies behind it can go on; and bring it back.

    set_aside   the range in flight, and what lies behind it as far as wanted, goes to files of a range each; each
                leaves the spool once its file is durable
    restore     a file's records go to ClickHouse, as if the drain had sent them, and the file is removed

A file is ``<spool>/quarantine/<epoch>-<first>-<last>.batch``: one line of JSON that says what it is, why it is there
and what its SHA-256 is, then the range as auditspan.v1.SealedBatch. The records keep their indexes: until they
are restored, the table has a hole that the file explains.

Crash argument. Before the file has its name: the range is in the spool, and a draft is overwritten by the next try.
Between the name and the release: it is in both, the drain tries it again, and restoring stores what is missing only.
After a restore's insert and before the file is removed: restoring again finds nothing missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from array import array
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from auditspan_proto.v1 import record_pb2

from auditspan_collector.errors import CommandRefused, SpoolDamaged
from auditspan_collector.pipeline.insert import insert_missing
from auditspan_collector.record import IndexRange, SealedBatch
from auditspan_collector.schema import INSERT_COLUMNS
from auditspan_collector.spool import QUARANTINE_FOLDER, make_durable

if TYPE_CHECKING:
    from pathlib import Path

    from auditspan_collector.clickhouse import ClickHouseClient
    from auditspan_collector.spool import Spool

log = logging.getLogger(__name__)

FORMAT: Final = "auditspan quarantine 2"
_NAME: Final = re.compile(r"[0-9a-f]{16}-(\d{1,20})-(\d{1,20})\.batch")
_MAX_HEADER_BYTES: Final = 1 << 16
# Of a file, as of an insert: restoring it is one. A single commit may be larger.
FILE_RECORDS: Final = 10_000
FILE_BYTES: Final = 16 << 20
# How far an end is looked for: what `auditspan spool list` shows at most.
MAX_COMMITS: Final = 1000


@dataclass(frozen=True, slots=True)
class SetAside:
    """A file in the quarantine: the range that it holds, and its size."""

    name: str
    range: IndexRange
    bytes: int

    @property
    def records(self) -> int:
        """How many it holds."""
        return self.range.last - self.range.first + 1


def listed(spool_folder: Path) -> list[SetAside]:
    """What is set aside, by the names of the files; nothing is read."""
    found = []
    for path in sorted((spool_folder / QUARANTINE_FOLDER).glob("*.batch")):
        if match := _NAME.fullmatch(path.name):
            first, last = map(int, match.groups())
            found.append(SetAside(path.name, IndexRange(first, last), path.stat().st_size))
    return found


def set_aside(spool: Spool, spool_folder: Path, wanted: IndexRange, reason: str) -> tuple[SetAside, ...]:
    """Move *wanted* to files: the range in flight, and whole commits behind it; on return all survives power loss.

    A file holds no more than an insert. Only while nobody else reads the spool. Raises CommandRefused and SpoolDamaged
    with nothing moved; what fails later, SpoolFull too, leaves what was not moved yet in the spool.
    """
    _refuse_unless_whole(spool, wanted)
    moved: list[SetAside] = []
    while (left := wanted.last + 1 - spool.released_index) > 0:
        try:
            moved.append(_set_next_aside(spool, spool_folder, min(left, FILE_RECORDS), reason))
        except CommandRefused as error:
            if not moved:
                raise
            raise CommandRefused(
                f"{error}, but {', '.join(each.name for each in moved)} before it"
            ) from error
    return tuple(moved)


def _refuse_unless_whole(spool: Spool, wanted: IndexRange) -> None:
    """Raise CommandRefused unless *wanted* is the range in flight, or begins with it and ends where a commit does."""
    in_flight = spool.in_flight()
    if in_flight is not None and in_flight.range == wanted:
        return
    given = f"range {wanted.first}-{wanted.last}"
    there = f"{in_flight.range.first}-{in_flight.range.last}" if in_flight else "none"
    if in_flight is None or wanted.first != in_flight.range.first or wanted.last < in_flight.range.last:
        raise CommandRefused(
            f"{given} does not begin with the range in flight ({there} is); `auditspan spool list` shows it"
        )
    # A few commits are enough to find the end of a short range.
    for most in (10, 100, MAX_COMMITS):
        ends = [commit.range.last for commit in spool.waiting(most)]
        if wanted.last in ends:
            return
        if ends[-1] > wanted.last or len(ends) < most:
            raise CommandRefused(
                f"{given} does not end where a commit does; `auditspan spool list --limit {MAX_COMMITS}` shows them"
            )
    raise CommandRefused(f"{given} is more than {MAX_COMMITS} commits; {wanted.first}-{ends[-1]} at a time")


def _set_next_aside(spool: Spool, spool_folder: Path, records: int, reason: str) -> SetAside:
    """Move the range in flight, or else so many *records* at most."""
    batch = spool.read(records, FILE_BYTES)
    assert batch is not None  # noqa: S101 - for the type checker: so many are there
    folder = spool_folder / QUARANTINE_FOLDER
    name = f"{batch.stream.rpartition('/')[2]}-{batch.first_index}-{batch.last_index}.batch"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _write(folder / name, batch, reason)
        make_durable(folder)
    except OSError as error:
        raise CommandRefused(
            f"{folder / name} can't be written ({error.strerror}); nothing was moved"
        ) from error
    spool.release(batch.last_index)
    log.error(
        "QUARANTINED range %d-%d of stream %s: %d records are not in ClickHouse but in %s; bring them back with "
        "`auditspan spool restore %s`",
        batch.first_index,
        batch.last_index,
        batch.stream,
        batch.count,
        folder / name,
        name,
    )
    return SetAside(name, IndexRange(batch.first_index, batch.last_index), (folder / name).stat().st_size)


def _write(path: Path, batch: SealedBatch, reason: str) -> None:
    content = record_pb2.SealedBatch(
        stream=batch.stream,
        first_index=batch.first_index,
        count=batch.count,
        rows=batch.rows,
        root=batch.root,
        row_bytes=batch.row_bytes,
    ).SerializeToString()
    header = {
        "format": FORMAT,
        "stream": batch.stream,
        "first": batch.first_index,
        "last": batch.last_index,
        "sha256": hashlib.sha256(content).hexdigest(),
        "columns": INSERT_COLUMNS,
        "set_aside": datetime.fromtimestamp(time.time_ns() // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": reason[:1024],
    }
    draft = path.with_suffix(".draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n" + content)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def read(path: Path) -> tuple[SealedBatch, tuple[str, ...]]:
    """The range in the file at *path*, and the columns of its rows. Raises CommandRefused, SpoolDamaged."""
    try:
        with path.open("rb") as file:
            line, content = file.readline(_MAX_HEADER_BYTES), file.read()
    except OSError as error:
        raise CommandRefused(f"{path}: can't be read ({error.strerror})") from error
    try:
        header: dict[str, Any] = json.loads(line)
        known, digest = header["format"] == FORMAT, header["sha256"]
        columns = tuple(map(str, header["columns"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CommandRefused(f"{path}: not a file of the quarantine") from error
    if not known:
        raise CommandRefused(f"{path}: its format is {header['format']!r}, this version reads {FORMAT!r}")
    if hashlib.sha256(content).hexdigest() != digest:
        raise SpoolDamaged(f"{path}: its checksum does not match; check the disk, and look for a copy of it")
    found = record_pb2.SealedBatch.FromString(content)  # whole, as its checksum says
    batch = SealedBatch(
        found.stream, found.first_index, found.count, found.rows, found.root, array("I", found.row_bytes)
    )
    return batch, columns


def restore(client: ClickHouseClient, spool_folder: Path, name: str) -> int:
    """Store what ClickHouse lacks of the file *name*, then remove the file; returns how many records were lacking.

    Raises CommandRefused, SpoolDamaged, StoreUnavailable or StoreRejected, and then the file stays.
    """
    if not _NAME.fullmatch(name):
        raise CommandRefused(f"{name!r}: not a file of the quarantine; `auditspan spool list` names them")
    path = spool_folder / QUARANTINE_FOLDER / name
    batch, columns = read(path)
    missing = insert_missing(client, batch, columns)
    path.unlink()
    make_durable(path.parent)
    log.warning(
        "restored range %d-%d of stream %s from the quarantine: ClickHouse lacked %d of %d records",
        batch.first_index,
        batch.last_index,
        batch.stream,
        missing,
        batch.count,
    )
    return missing
