"""A SQLite database shared by threads and processes: reads, and write transactions that are on disk when they end.

It keeps a version; one that a newer Fletcher made is refused untouched. On a disk that cannot be written it is read.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fletcher_core.errors import StoreError
from fletcher_core.store.versions import check_version

_BUSY_SECONDS = 60
_DAMAGED = (
    "If it is damaged, end all runs and delete it with its -wal and -shm files: it is rebuilt from the segments, all "
    "but the record of deliveries"
)
_UNWRITABLE = "Allow writing in its folder; to read a store on a read-only disk, close it properly before"
_ADVICE = {
    sqlite3.SQLITE_FULL: "Make room on the disk; what was committed before is kept",
    sqlite3.SQLITE_IOERR: "Look whether the disk is full or failing; what was committed before is kept",
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: _UNWRITABLE,
    sqlite3.SQLITE_PERM: _UNWRITABLE,
    sqlite3.SQLITE_BUSY: "Another process keeps it locked: let it end, or end it, then try again",
    sqlite3.SQLITE_LOCKED: "Another process keeps it locked: let it end, or end it, then try again",
}


class Database:
    """The database file at `path`, created if need be, with the tables of `schema` (`;` between statements).

    Args:
        version: of the tables; kept as SQLite's `user_version`, where 0 is version 1.
        unwritable: why the disk cannot be written; the database is then only read, and `writing` raises this.

    Raises:
        StoreError: the file cannot be opened, is damaged, is of a newer version, or stays locked for a minute.
    """

    def __init__(self, path: Path, schema: str, *, version: int = 1, unwritable: StoreError | None = None) -> None:
        self._path = path
        self._version = version
        self._unwritable = unwritable
        self._lock = threading.RLock()
        self._process = os.getpid()
        if unwritable is not None:
            self._read_only_connection().close()
            return
        self._connection = self._connect()
        with self.writing() as connection:
            for statement in filter(str.strip, schema.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version:d}")

    def read(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                if self._unwritable is None:
                    return self._own().execute(query, values).fetchall()
                with closing(self._read_only_connection()) as connection:
                    return connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among all writers; undone when the block raises."""
        if self._unwritable is not None:
            raise StoreError(f"the store was opened for reading only: {self._unwritable}") from self._unwritable
        with self._lock:
            connection = self._own()
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # SQLite itself undoes it when the disk is full
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._unwritable is None:
                self._connection.close()

    def _own(self) -> sqlite3.Connection:
        if self._process != os.getpid():  # SQLite's connections do not survive a fork
            self._process, self._connection = os.getpid(), self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._check_version(connection)  # before anything is changed
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise
        return connection

    def _read_only_connection(self) -> sqlite3.Connection:
        """One for a single read: where no log can be made beside the file, SQLite takes the file for unchanging."""
        url = f"file:{quote(str(self._path))}?mode=ro"
        log = self._path.with_name(f"{self._path.name}-wal")
        error: sqlite3.Error | None = None
        for address in (url, f"{url}&immutable=1"):
            connection = None
            try:
                connection = sqlite3.connect(address, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
                self._check_version(connection)
                return connection
            except BaseException as failure:
                if connection is not None:
                    connection.close()
                if not isinstance(failure, sqlite3.Error):
                    raise
                error = failure
            if log.exists() and log.stat().st_size:  # it holds changes that an unchanging file would hide
                break
        assert error is not None
        raise self._failed(error) from error

    def _check_version(self, connection: sqlite3.Connection) -> None:
        ((found,),) = connection.execute("PRAGMA user_version").fetchall()
        check_version(self._path, found, self._version)

    def _failed(self, error: sqlite3.Error) -> StoreError:
        # Errors of the module itself, as of a closed database, have no code.
        advice = _ADVICE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, _DAMAGED)
        return StoreError(f"the manifest {str(self._path)!r} cannot be used: {error}. {advice}")
