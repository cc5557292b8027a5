"""A SQLite database shared by threads and processes: reads, and write transactions that are on disk when they end."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fletcher_core.errors import StoreError

_BUSY_SECONDS = 60


class Database:
    """The database file at `path`, created if need be, with the tables of `schema` (`;` between statements).

    Raises:
        StoreError: the file cannot be opened, is damaged, or stays locked for a minute.
    """

    def __init__(self, path: Path, schema: str) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._connection = self._connect()
        with self.writing() as connection:
            for statement in filter(str.strip, schema.split(";")):
                connection.execute(statement)

    def read(self, query: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            try:
                return self._own().execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise self._failed(error) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among all writers; undone when the block raises."""
        with self._lock:
            connection = self._own()
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def _own(self) -> sqlite3.Connection:
        if self._process != os.getpid():  # SQLite's connections do not survive a fork
            self._process, self._connection = os.getpid(), self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return connection

    def _failed(self, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"the manifest {str(self._path)!r} cannot be used: {error}. If it is damaged, end all runs and delete "
            "it with its -wal and -shm files: it is rebuilt from the segments, all but the record of deliveries"
        )
