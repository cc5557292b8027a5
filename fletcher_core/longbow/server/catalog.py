"""What the embedded server keeps on disk: a DuckDB catalog, and one memory-mapped Arrow file a stored batch.

In: Arrow tables to append, rows to mark deleted. Out: the same after a restart. Vectors stay in Arrow files because
that costs a tenth of the CPU time of inserting them into a DuckDB table, and a search reads them without a copy.
"""

import fcntl
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from fletcher_core.errors import LongbowError

_TABLES = """
CREATE SEQUENCE IF NOT EXISTS numbers;
CREATE TABLE IF NOT EXISTS datasets (number BIGINT, name VARCHAR, schema BLOB);
CREATE TABLE IF NOT EXISTS batches (number BIGINT, dataset BIGINT, put BIGINT, rows BIGINT);
CREATE TABLE IF NOT EXISTS tombstones (batch BIGINT, row BIGINT);
"""
_TOMBSTONES_HELD = 1000


@dataclass(frozen=True)
class CatalogBatch:
    """A stored batch as read back: its number, its rows, and which of them were deleted before."""

    number: int
    table: pa.Table
    deleted: frozenset[int]


class Catalog:
    """One open folder. Safe to call from several threads; only one process at a time can have it open."""

    def __init__(self, folder: Path) -> None:
        self._batch_folder = folder / "batches"
        make_folder(self._batch_folder)
        self._owner = _lock(folder / "server.lock")
        self._lock = threading.Lock()
        self._tombstones: list[tuple[int, int]] = []
        try:
            self._connection = duckdb.connect(str(folder / "catalog.duckdb"), config={"threads": 1})
            self._connection.execute(_TABLES)
        except duckdb.Error as error:
            os.close(self._owner)
            raise LongbowError(
                f"{folder / 'catalog.duckdb'} cannot be opened ({error}): remove the folder {folder}; "
                "Fletcher delivers again what was in it"
            ) from error
        self._sweep()

    def datasets(self) -> dict[str, tuple[int, pa.Schema]]:
        """Name -> number and the union of the columns seen so far, in the order of creation."""
        rows = self._query("SELECT name, number, schema FROM datasets ORDER BY number")
        return {name: (number, pa.ipc.read_schema(pa.py_buffer(schema))) for name, number, schema in rows}

    def batches(self, dataset: int) -> list[CatalogBatch]:
        """The stored batches of a dataset in the order of their arrival, memory-mapped."""
        numbers = self._query("SELECT number FROM batches WHERE dataset = ? ORDER BY number", [dataset])
        deleted: dict[int, set[int]] = {}
        for number, row in self._query(
            "SELECT batch, row FROM tombstones JOIN batches ON batch = number WHERE dataset = ?", [dataset]
        ):
            deleted.setdefault(number, set()).add(row)
        return [CatalogBatch(n, self._map(n), frozenset(deleted.get(n, ()))) for (n,) in numbers]

    def create_dataset(self, name: str, schema: pa.Schema) -> int:
        """Note a dataset down and return its number."""
        with self._lock:
            number = self._next_number()
            self._execute("INSERT INTO datasets VALUES (?, ?, ?)", [number, name, schema.serialize().to_pybytes()])
            return number

    def widen_dataset(self, dataset: int, schema: pa.Schema) -> None:
        """Replace the dataset's schema by one with more columns."""
        self._query("UPDATE datasets SET schema = ? WHERE number = ?", [schema.serialize().to_pybytes(), dataset])

    def delete_dataset(self, dataset: int) -> None:
        """Forget a dataset, its batches and their files."""
        numbers = self._query("SELECT number FROM batches WHERE dataset = ?", [dataset])
        with self._lock:
            self._write_tombstones()
            self._execute("BEGIN")
            self._execute(
                "DELETE FROM tombstones WHERE batch IN (SELECT number FROM batches WHERE dataset = ?)",
                [dataset],
            )
            self._execute("DELETE FROM batches WHERE dataset = ?", [dataset])
            self._execute("DELETE FROM datasets WHERE number = ?", [dataset])
            self._execute("COMMIT")
        for (number,) in numbers:
            self._file(number).unlink(missing_ok=True)

    def next_put(self) -> int:
        """A number for one DoPut stream: its stored batches are lost together."""
        with self._lock:
            return self._next_number()

    def append(self, dataset: int, put: int, table: pa.Table) -> CatalogBatch:
        """Write one stored batch and return it memory-mapped. Safe on disk when this returns."""
        with self._lock:
            number = self._next_number()
        with self._file(number).open("wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        with self._lock:
            self._write_tombstones()
            self._execute("INSERT INTO batches VALUES (?, ?, ?, ?)", [number, dataset, put, table.num_rows])
        return CatalogBatch(number, self._map(number), frozenset())

    def mark_deleted(self, batch: int, row: int) -> None:
        """Remember that one row of a stored batch was deleted; on disk with the next put or when closing.

        A killed server thus forgets its latest deletes. Longbow forgets all of them.
        """
        with self._lock:
            self._tombstones.append((batch, row))
            if len(self._tombstones) >= _TOMBSTONES_HELD:
                self._write_tombstones()

    def forget_deletes(self) -> None:
        """Drop every tombstone: the deleted rows are back."""
        self._query("DELETE FROM tombstones")

    def forget_last_puts(self, count: int) -> None:
        """Drop the batches of the last `count` DoPut streams."""
        self._query(
            "DELETE FROM batches WHERE put IN (SELECT DISTINCT put FROM batches ORDER BY put DESC LIMIT ?)",
            [count],
        )
        self._sweep()

    def close(self) -> None:
        """Let another process open the folder."""
        with self._lock:
            self._write_tombstones()
            self._connection.close()
            os.close(self._owner)

    def _write_tombstones(self) -> None:
        if self._tombstones:
            batches, rows = zip(*self._tombstones, strict=True)
            marked = pa.table({"batch": batches, "row": rows})
            self._connection.register("marked", marked)
            self._execute("INSERT INTO tombstones SELECT * FROM marked")
            self._connection.unregister("marked")
            self._tombstones.clear()

    def _query(self, sql: str, parameters: list[object] | None = None) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._execute(sql, parameters)

    def _execute(self, sql: str, parameters: list[object] | None = None) -> list[tuple[Any, ...]]:
        """For those who hold the lock. Fetches all: DuckDB else takes the statement for unfinished."""
        return self._connection.execute(sql, parameters or []).fetchall()

    def _next_number(self) -> int:
        ((number,),) = self._execute("SELECT nextval('numbers')")
        return int(number)

    def _file(self, number: int) -> Path:
        return self._batch_folder / f"{number:010d}.arrow"

    def _map(self, number: int) -> pa.Table:
        with pa.memory_map(str(self._file(number))) as file:
            return pa.ipc.open_file(file).read_all()

    def _sweep(self) -> None:
        """Remove files that no batch names (a process died between file and catalog), and batches without a file."""
        named = {number for (number,) in self._query("SELECT number FROM batches")}
        found = {int(path.stem): path for path in self._batch_folder.glob("*.arrow")}
        for number in found.keys() - named:
            found[number].unlink()
        for number in named - found.keys():
            self._query("DELETE FROM batches WHERE number = ?", [number])


def make_folder(folder: Path) -> None:
    """Raises LongbowError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LongbowError(
            f"{folder} cannot be used as the folder of an embedded Longbow server ({error}): choose another"
        ) from error


def _lock(path: Path) -> int:
    """Hold the folder for this process; the lock ends with the process, however it ends. Signed with our pid.

    Tries for a moment: `owner` takes the same lock for an instant to look whether it is held.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + 0.5
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise LongbowError(
                    f"{path.parent} belongs to an embedded Longbow server that is running "
                    f"(process {owner(path.parent)}): stop that one or use another folder"
                ) from error
            time.sleep(0.01)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def owner(folder: Path) -> int | None:
    """The process that has the folder open, None when nobody has; 0 when it has not signed yet."""
    try:
        descriptor = os.open(folder / "server.lock", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        return int(os.pread(descriptor, 20, 0) or 0)
    finally:
        os.close(descriptor)
