"""What an operator decides about the spool, and which decisions can't work."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import msgspec

from auditspan_collector.errors import ConfigError

MIB = 1 << 20
MIN_BYTES = 64 * MIB
# LMDB maps the file at its largest size. A process on x86-64 or arm64 has 128 TiB of addresses for all that it maps.
MAX_BYTES = 16 << 40

# Disk that one remembered record costs at most: a commit of a single record makes an entry of 54 bytes, and LMDB's
# pages are filled in order.
SEEN_BYTES_PER_RECORD = 56
# Disk that a sequence's mark costs at most, with every chunk that it may have, in pages that are half empty.
SEQUENCE_BYTES = 800
# A chunk of a sequence's contents takes half of a page, or all of it after the page was split.
CHUNK_BYTES = 4096

# How far a full spool is stretched while something is deleted; the file grows only by what copying needs.
STRETCH_BYTES = 4 * MIB
# What is kept back of the disk for that: a range's removal changes some 50 pages, and two follow before freed ones serve.
BALLAST_BYTES = 2 * MIB

DATA_FILE = "data.mdb"
BALLAST_FILE = "ballast"
LOCK_FILE = "owner.lock"
SOCKET_FILE = "control.sock"
QUARANTINE_FOLDER = "quarantine"
WORKERS_LOCK_FILE = "workers.lock"
# What a spool's folder may hold, beside numbered folders; lost+found is what a freshly made volume brings along.
OWN_FILES = frozenset(
    {
        DATA_FILE,
        "lock.mdb",
        BALLAST_FILE,
        LOCK_FILE,
        WORKERS_LOCK_FILE,
        SOCKET_FILE,
        QUARANTINE_FOLDER,
        "lost+found",
    }
)

# The first worker's spool is the folder itself, so that going from one worker to several moves nothing.
_WORKER = re.compile(r"[2-9]|[1-9][0-9]{1,3}")
_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_PSEUDO = {
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "hugetlbfs",
    "mqueue", "nsfs", "proc", "pstore", "securityfs", "selinuxfs", "sysfs", "tracefs",
}  # fmt: skip
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "ceph", "fuse.glusterfs"}


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``spool`` section.

    Attributes:
        path: The folder; made with mode 0700 when it is missing. It must be on a local disk. The second worker's
            spool is the folder ``2`` in it, and so on.
        max_bytes: Size that the folder never exceeds; workers have equal shares of it. It bounds how long ClickHouse
            may be away: when it is used up, senders are asked to come back later. Disk is taken as it is needed,
            and kept for reuse.
        dedup_window_records: How many of the latest records are remembered to recognise a sender's retry; workers
            have equal shares. A retry from before is stored again, which the reading views hide. Costs up to 132
            bytes of memory a record. Records with a sequence number (those of instrumented services) don't count:
            see below.
        dedup_sequences: How many sequences are remembered, one for each process of an instrumented service; workers have
            equal shares, and a sequence counts with each worker that it reached since its process connected anew.
            Of each, a retry is recognised however much others sent since, within its latest 4,800 numbers; all
            together take at most a thirty-second of *max_bytes*. The sequence that was quiet for longest gives way.
            Costs up to 2 KB of memory each; 0 has all records share *dedup_window_records*.
        allow_memory_filesystem: For tests: let *path* be on tmpfs, where a reboot loses what was acknowledged.

    """

    path: str = "/var/lib/auditspan/spool"
    max_bytes: int = 8 << 30
    dedup_window_records: int = 250_000
    dedup_sequences: int = 10_000
    allow_memory_filesystem: bool = False

    @property
    def reserve_bytes(self) -> int:
        """Part of *max_bytes* that no batch may take.

        The memory of seen records lives there, and LMDB's copies of pages: deleting needs room too, and a spool
        that could not delete would never recover from being full.
        """
        copies = max(8 * MIB, self.max_bytes // 16)
        sequences = self.dedup_sequences * SEQUENCE_BYTES + self.sequence_chunks * CHUNK_BYTES
        return (
            self.dedup_window_records * SEEN_BYTES_PER_RECORD
            + sequences
            + copies
            + STRETCH_BYTES
            + BALLAST_BYTES
        )

    @property
    def sequence_chunks(self) -> int:
        """Chunks that all sequences together may have."""
        return self.max_bytes // 32 // CHUNK_BYTES if self.dedup_sequences else 0

    @property
    def capacity_bytes(self) -> int:
        """Disk that batches may take."""
        return self.max_bytes - self.reserve_bytes


def share(config: Config, number: int, workers: int) -> Config:
    """The spool of worker *number*, from 1, of *workers*: its folder, and its part of what *config* gives to all."""
    return msgspec.structs.replace(
        config,
        path=str(worker_folder(config, number)),
        max_bytes=config.max_bytes // workers,
        dedup_window_records=-(-config.dedup_window_records // workers),
        dedup_sequences=-(-config.dedup_sequences // workers),
    )


def worker_folder(config: Config, number: int) -> Path:
    """Where worker *number*, from 1, has its spool."""
    return Path(config.path) if number == 1 else Path(config.path) / str(number)


def check_shares(config: Config, workers: int) -> None:
    """Whether the sizes of *config* suffice for so many workers. Raises ConfigError."""
    if config.max_bytes // workers < MIN_BYTES:
        raise ConfigError(
            f"spool.max_bytes: {config.max_bytes} is too small for {workers} workers; at least {MIN_BYTES * workers} "
            "(64 MiB each), or fewer workers"
        )
    _check_sizes(config, workers)


def left_over(config: Config, workers: int) -> tuple[int, ...]:
    """The numbers of the spools that more than *workers* workers have left in the folder, ascending."""
    try:
        names = [entry.name for entry in Path(config.path).iterdir() if _WORKER.fullmatch(entry.name)]
    except FileNotFoundError:
        return ()
    numbers = sorted(int(name) for name in names)
    return tuple(
        number
        for number in numbers
        if number > workers and (worker_folder(config, number) / DATA_FILE).exists()
    )


def check(config: Config) -> tuple[str, ...]:
    """Find out, without changing anything, whether a spool can live as *config* says.

    Returns warnings, one line each. Raises ConfigError for what can't work: "path: value; what is allowed".
    """
    _check_sizes(config)
    folder = Path(config.path)
    if not folder.is_absolute():
        raise ConfigError(f"spool.path: {config.path!r} is relative; give an absolute path")
    existing = _nearest_existing(folder)
    _check_folder(folder, existing)
    return _check_file_system(config, existing)


def _check_sizes(config: Config, workers: int = 1) -> None:
    for setting in ("dedup_window_records", "dedup_sequences"):
        if getattr(config, setting) < 0:
            raise ConfigError(f"spool.{setting}: {getattr(config, setting)}; 0 (off) or more")
    if config.max_bytes < MIN_BYTES:
        raise ConfigError(f"spool.max_bytes: {config.max_bytes} is too small; at least {MIN_BYTES} (64 MiB)")
    if config.max_bytes > MAX_BYTES:
        raise ConfigError(f"spool.max_bytes: {config.max_bytes} is too large; at most {MAX_BYTES} (16 TiB)")
    _check_room(config, workers, "dedup_sequences", SEQUENCE_BYTES)
    _check_room(config, workers, "dedup_window_records", SEEN_BYTES_PER_RECORD)


def _check_room(config: Config, workers: int, setting: str, each_bytes: int) -> None:
    """Raise ConfigError when *setting*, or with it what was checked before, leaves too little for batches."""
    own = share(config, 1, workers)
    lacking = own.max_bytes // 3 - own.capacity_bytes
    if lacking <= 0:
        return
    most = getattr(own, setting) - -(-lacking // each_bytes)
    if most < 0 and setting == "dedup_sequences":
        # The window is what is too large then.
        return
    raise ConfigError(
        f"spool.{setting}: {getattr(config, setting)} leaves too little of spool.max_bytes "
        f"({config.max_bytes}) for records{f' of {workers} workers' if workers > 1 else ''}; at most "
        f"{max(0, most) * workers}, or a larger spool.max_bytes"
    )


def _nearest_existing(folder: Path) -> Path:
    for candidate in (folder, *folder.parents):
        try:
            if candidate.exists():
                return candidate
        except PermissionError as error:
            raise ConfigError(
                f"spool.path: {folder} can't be reached: no permission at {candidate}"
            ) from error
    return Path("/")


def _check_folder(folder: Path, existing: Path) -> None:
    if not existing.is_dir():
        raise ConfigError(
            f"spool.path: {existing} is not a folder; give the path of a folder or of one to be made"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(
            f"spool.path: {existing} is not writable for user id {os.geteuid()}; choose another or chown it"
        )
    if existing != folder:
        return
    if not os.access(folder, os.R_OK):
        raise ConfigError(
            f"spool.path: {folder} is not readable for user id {os.geteuid()}; choose another or chown it"
        )
    foreign = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.name not in OWN_FILES and not _WORKER.fullmatch(entry.name)
    )
    if foreign:
        raise ConfigError(f"spool.path: {folder} holds other files ({foreign[0]}); give a folder of its own")


def _check_file_system(config: Config, existing: Path) -> tuple[str, ...]:
    kind = file_system(existing)
    if kind in _MEMORY and not config.allow_memory_filesystem:
        raise ConfigError(
            f"spool.path: {config.path} is memory ({kind}); a reboot would lose records. Choose a disk, "
            "or set spool.allow_memory_filesystem: true for tests"
        )
    if kind in _PSEUDO:
        raise ConfigError(
            f"spool.path: {config.path} is on {kind}, which keeps no files. Choose a folder on a local disk"
        )
    if kind in _REMOTE:
        raise ConfigError(
            f"spool.path: {config.path} is on a network file system ({kind}), where LMDB's files are not safe. "
            "Choose a local disk"
        )
    try:
        already = (Path(config.path) / DATA_FILE).stat().st_size
    except FileNotFoundError:
        already = 0
    free = shutil.disk_usage(existing).free
    if free + already < config.max_bytes:
        warning = (
            f"spool.max_bytes: {config.max_bytes}, but the disk of {config.path} has only {free} bytes free; "
            "senders will be refused when that is used up"
        )
        return (warning,)
    return ()


def file_system(path: Path) -> str:
    """The type of the file system that *path* is on, as /proc/mounts names it; "" when that can't be told."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    resolved = path.resolve()
    deepest, kind = -1, ""
    for line in mounts:
        fields = line.split(" ")
        point = Path(_unescape(fields[1]))
        # Of two mounts at one point the later hides the earlier.
        if resolved.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), fields[2]
    return kind


def _unescape(field: str) -> str:
    """Undo proc(5)'s octal escapes of white space and backslash."""
    for code, text in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, text)
    return field
