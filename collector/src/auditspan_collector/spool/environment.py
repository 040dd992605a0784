"""One LMDB environment for one process: whole transactions or nothing, and errors in the collector's words.

LMDB writes copies of the pages that a transaction changes, syncs them, and then writes and syncs one meta page that
points to them. So a crash at any moment leaves the last committed state, and opening needs no recovery.

- Sync is on for data and for the meta page. Without the latter, a commit that was acknowledged could be undone.
- A read transaction is closed before its caller goes on. One held open keeps every page freed since from reuse.
- Pages that a transaction frees can be reused by the second one after it. Deleting copies pages as well; so
  a full map could neither delete nor, after deleting, take new data. *write* finds the way out of both.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lmdb

from auditspan_collector.errors import ConfigError, ShuttingDown, SpoolDamaged, SpoolFull
from auditspan_collector.spool.ballast import Ballast
from auditspan_collector.spool.config import BALLAST_BYTES, DATA_FILE, MIB, STRETCH_BYTES
from auditspan_collector.spool.values import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from auditspan_collector.errors import AuditspanError

log = logging.getLogger(__name__)
T = TypeVar("T")

# LMDB may leave a few pages at the file's end unwritten; a file that lacks more than that has been cut.
_UNWRITTEN_PAGES = 256
_PAGE_HEADER_BYTES = 16
_NODE_BYTES = 16  # a header of 8 bytes and a key of 8
# Mapped pages count as the process's memory once they were touched, until they are unmapped.
_REMAP_BYTES = 16 * MIB
RETRY_AFTER_S = 5.0

_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# A write that the disk takes in part only is reported by LMDB as EIO (mdb.c, mdb_page_flush).
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NOT_NOW = {*_NO_ROOM, errno.ENOMEM, *_FORBIDDEN}
_DAMAGE = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class Environment:
    """The LMDB files in *folder*, never larger than *max_bytes*, or little more than they are; thread-safe.

    *batches*, *meta*, *seen*, *sequences* and *digests* are its sub-databases, valid inside *read* and *write* only;
    *page_bytes* is the size of a page.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Open, creating what is missing. Raises ConfigError, SpoolDamaged, SpoolFull."""
        self._folder = folder
        self._data_file = str(folder / DATA_FILE)
        self._map_bytes = max_bytes - STRETCH_BYTES - BALLAST_BYTES
        self._ballast = Ballast(folder)
        # Taken in this order. The map is moved with both held: no transaction may be open then.
        self._writing = threading.Lock()
        self._mapping = threading.Lock()
        self._touched_bytes = 0
        self._env: lmdb.Environment | None = None
        try:
            self._open()
        except lmdb.Error as error:
            if _code(error) in _FORBIDDEN:
                raise ConfigError(
                    f"spool.path: {folder} can't be written ({os.strerror(_code(error))}); the files in it must belong "
                    f"to user id {os.geteuid()}, on a disk that is not read-only"
                ) from error
            raise translate(error, folder) from error
        self._ballast.make()

    def _open(self) -> None:
        self._env = lmdb.open(
            str(self._folder),
            map_size=self._map_bytes,
            max_dbs=5,
            max_readers=4,
            mode=0o600,
            sync=True,
            metasync=True,
        )
        self._inode = self._data_inode()
        self.page_bytes: int = self._env.stat()["psize"]
        self._refuse_a_cut_file(self._env)
        self.batches = self._env.open_db(b"batches")
        self.meta = self._env.open_db(b"meta")
        self.seen = self._env.open_db(b"seen")
        self.sequences = self._env.open_db(b"sequences")
        self.digests = self._env.open_db(b"digests")

    def _data_inode(self) -> tuple[int, int]:
        status = os.stat(self._data_file)  # noqa: PTH116 - before each commit; pathlib would double its cost
        return status.st_dev, status.st_ino

    def _refuse_a_cut_file(self, env: lmdb.Environment) -> None:
        """Reading a mapped page behind the file's end would kill the process (SIGBUS)."""
        size = Path(self._data_file).stat().st_size
        if size < (env.info()["last_pgno"] + 1 - _UNWRITTEN_PAGES) * self.page_bytes:
            raise damaged(self._data_file, "the file is shorter than its content")

    def read(self, look: Callable[[lmdb.Transaction[bytes]], T]) -> T:
        """What *look* returns from one consistent state.

        Raises SpoolDamaged, ShuttingDown when closed.
        """
        with self._mapping, self._translating(), self._opened().begin() as transaction:
            return look(transaction)

    def read_in_place(self, look: Callable[[lmdb.Transaction[memoryview]], T]) -> T:
        """As *read*, but keys and values are the map's own memory: *look* must copy what it keeps."""
        with self._mapping, self._translating(), self._opened().begin(buffers=True) as transaction:
            return look(transaction)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise translate(error, self._folder) from error

    def write(self, change: Callable[[lmdb.Transaction[memoryview]], T], *, frees: bool = False) -> T:
        """Do *change* in one transaction; on return it survives power loss.

        *change* may run more than once and must have no effect but on the transaction. *frees* says that it
        makes room, and must succeed when there is none. Raises SpoolFull with nothing changed; after an input or
        output error, nothing or all. Raises SpoolDamaged, ShuttingDown when closed.
        """
        with self._writing:
            self._refuse_a_lost_folder()
            done = self._write(change, frees=frees)
            if frees and not self._ballast.whole:
                self._ballast.make()
            return done

    def _write(self, change: Callable[[lmdb.Transaction[memoryview]], T], *, frees: bool) -> T:
        try:
            return self._attempt(change)
        except lmdb.MapFullError:
            return self._attempt_when_full(change, frees=frees)
        except lmdb.PanicError:
            # LMDB refuses all further work after it failed to write a meta page; the files are sound.
            log.warning("spool %s: reopening after a failed write", self._folder)
            self._reopen()
            return self._translated(change)
        except lmdb.Error as error:
            if _code(error) not in _NO_ROOM:
                raise translate(error, self._folder) from error
            if frees:
                return self._attempt_without_ballast(change, error)
            # The disk gives no more, but what the last release freed may be room enough.
            self._turn()
            return self._translated(change)

    def _turn(self) -> None:
        """Commit next to nothing, so that what the last transaction freed can be reused."""
        self._translated(lambda txn: txn.put(b"turn", os.urandom(8), db=self.meta))

    def _attempt(self, change: Callable[[lmdb.Transaction[memoryview]], T]) -> T:
        with self._opened().begin(write=True, buffers=True) as transaction:
            return change(transaction)

    def _translated(self, change: Callable[[lmdb.Transaction[memoryview]], T]) -> T:
        try:
            return self._attempt(change)
        except lmdb.Error as error:
            raise translate(error, self._folder) from error

    def _attempt_when_full(self, change: Callable[[lmdb.Transaction[memoryview]], T], *, frees: bool) -> T:
        # A spool that was filled under a larger limit uses more than its map; emptying it needs room all the same.
        used = self._used_bytes() if frees else 0
        self._remap(max(self._map_bytes, used) + STRETCH_BYTES)
        try:
            if frees:
                try:
                    return self._attempt(change)
                except lmdb.Error as error:
                    return self._attempt_without_ballast(change, error)
            self._turn()
        finally:
            self._remap(self._map_bytes)
        return self._translated(change)

    def _attempt_without_ballast(
        self, change: Callable[[lmdb.Transaction[memoryview]], T], error: lmdb.Error
    ) -> T:
        """After *error*: on a full disk with what is kept back for that."""
        while _code(error) in _NO_ROOM and self._ballast.give_up_a_piece():
            try:
                return self._attempt(change)
            except lmdb.Error as again:
                error = again
        raise translate(error, self._folder) from error

    def _used_bytes(self) -> int:
        with self._mapping:
            return int((self._opened().info()["last_pgno"] + 1) * self.page_bytes)

    def _remap(self, size: int) -> None:
        # LMDB keeps the map as large as its used pages, however little is asked for.
        with self._mapping:
            self._opened().set_mapsize(size)

    def disk_bytes(self, value_bytes: int) -> int:
        """Disk that a value under an index takes when it is written in order.

        LMDB (mdb.c, NODESIZE, me_nodemax) keeps small ones together in a page and gives a large one its own pages.
        """
        node = _NODE_BYTES + value_bytes
        usable = self.page_bytes - _PAGE_HEADER_BYTES
        if node > usable // 2 - 2:
            return -(-(value_bytes + _PAGE_HEADER_BYTES) // self.page_bytes) * self.page_bytes
        return self.page_bytes // (usable // (node + 2))

    def touched(self, mapped_bytes: int) -> None:
        """Count bytes that were touched through the map, and now and then unmap what was.

        A backlog of gigabytes would else stand as the process's memory until the kernel wants it back.
        """
        self._touched_bytes += mapped_bytes
        if self._touched_bytes >= _REMAP_BYTES:
            self._touched_bytes = 0
            with self._writing:
                self._remap(self._map_bytes)

    def _refuse_a_lost_folder(self) -> None:
        """A commit to files that nobody can open again would be acknowledged and lost."""
        try:
            found = self._data_inode()
        except FileNotFoundError:
            found = None
        if found != self._inode:
            raise SpoolDamaged(
                f"spool: {self._folder} was removed or replaced while in use; restart the collector, which starts "
                "an empty spool and a new stream"
            )

    def _reopen(self) -> None:
        with self._mapping:
            self._opened().close()
            self._open()

    def _opened(self) -> lmdb.Environment:
        if self._env is None:
            raise ShuttingDown("the spool is closed")
        return self._env

    def close(self) -> None:
        """Close the files once running transactions are done; may be called again."""
        with self._writing, self._mapping:
            if self._env is not None:
                self._env.close()
                self._env = None


def translate(error: lmdb.Error, folder: Path) -> AuditspanError:
    """*error* as the collector's own, saying what to do."""
    if isinstance(error, lmdb.MapFullError):
        return SpoolFull(
            f"spool {folder} is full; it empties when ClickHouse takes records again, or raise spool.max_bytes",
            retry_after_s=RETRY_AFTER_S,
        )
    if isinstance(error, _DAMAGE):
        return damaged(str(folder), f"LMDB can't read it ({error})")
    if _code(error) in _NOT_NOW or isinstance(error, (lmdb.DiskError, lmdb.MemoryError, lmdb.PanicError)):
        return SpoolFull(
            f"spool {folder} can't be written: {error}; free disk space or check the disk",
            retry_after_s=RETRY_AFTER_S,
        )
    return damaged(str(folder), f"LMDB failed ({error})")


def _code(error: lmdb.Error) -> int:
    """The operating system's number for *error*, or one of LMDB's own, which are negative."""
    return int(getattr(error, "code", 0))
