"""Rows of what DuckDB reads: Parquet, CSV and NDJSON files, and tables and queries of DuckDB databases."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.batching import WINDOW
from fletcher_core.columns import check_text_type, choices
from fletcher_core.errors import SourceError
from fletcher_core.files.rows import ID, RowWindow, Selection
from fletcher_core.invalid_text import is_invalid_text
from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_core.sql import connect, first_line, identifier, literals
from fletcher_core.template import embeddable_sql

_TEXT = "fletcher_text"
_MEMORY = "2GB"
_READERS = {
    "csv": "read_csv({files}, union_by_name = true)",
    "json": "read_json({files}, format = 'auto', union_by_name = true)",
}


class _Table(Protocol):
    def attach(self, connection: duckdb.DuckDBPyConnection) -> str: ...

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None: ...

    def origin(self) -> str: ...


@dataclass(frozen=True)
class TextTable:
    """CSV files, or files of JSON objects (a line each, or an array of them), that together make one table.

    `patterns` are paths and globs as DuckDB reads them.
    """

    patterns: tuple[str, ...]
    form: Literal["csv", "json"]

    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        """The SQL relation. Raises SourceError when a pattern matches no file."""
        for pattern in self.patterns:
            if not connection.execute("SELECT 1 FROM glob(?) LIMIT 1", [pattern]).fetchall():
                raise SourceError(f"there is no file at {pattern!r}: check the path")
        return _READERS[self.form].format(files=literals(self.patterns))

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing to release."""

    def origin(self) -> str:
        """As error messages name it."""
        return f"the {'CSV' if self.form == 'csv' else 'JSON'} files {', '.join(self.patterns)}"


@contextmanager
def table_rows(table: DuckDBTable | ParquetTable | TextTable, selection: Selection) -> Iterator["TableRows"]:
    """The table's rows for the length of a `with` block, during which a DuckDB database is held open for reading.

    Raises:
        SourceError: a file or a column does not exist, or cannot be read.
    """
    with connect(memory_limit=_MEMORY) as connection:
        relation = table.attach(connection)
        try:
            yield TableRows(connection, table, relation, selection)
        finally:
            table.detach(connection)


class TableRows:
    """See `Rows`. Made by `table_rows`.

    `has_invalid_text`: a text of Parquet files is not UTF-8, so that DuckDB refuses to read it, and so do these rows.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, table: _Table, relation: str, selection: Selection
    ) -> None:
        self._connection = connection
        self._table = table
        self._origin = table.origin()
        self._selection = selection
        names = _checked_columns(connection, relation, self._origin, selection)
        self._id = selection.id_among(names)
        self.numbered = self._id is None
        # A query is run once. Anything else is counted first, and texts of Parquet files looked at: DuckDB refuses to
        # read those that are not UTF-8, and would do so in the middle. (Its readings that get over them, as in
        # `invalid_text`, do not keep the order of rows.)
        is_query = isinstance(table, DuckDBTable) and table.query is not None
        self.total = None if is_query else self._count(relation)
        self.has_invalid_text = self.total is None and isinstance(table, ParquetTable)
        if self.has_invalid_text:
            return
        self._select = self._selected(relation)
        try:
            empty = connection.sql(f"{self._select} LIMIT 0").to_arrow_table()
        except duckdb.Error as error:
            raise self._failed(error) from error
        shown = empty.schema.remove_metadata()
        self.schema = pa.schema([field for field in shown if field.name != _TEXT])
        if self._id is None:
            self.schema = self.schema.insert(0, pa.field(ID, pa.int64()))

    def windows(self) -> Iterator[RowWindow]:
        """In the source's order."""
        first = 0
        try:
            reader = self._connection.sql(self._select).to_arrow_reader(WINDOW)
            for batch in reader:
                for start in range(0, batch.num_rows, WINDOW):
                    window = self._window(pa.Table.from_batches([batch.slice(start, WINDOW)]), first)
                    first += window.columns.num_rows
                    yield window
        except (duckdb.Error, pa.ArrowException) as error:
            raise self._failed(error) from error

    def _window(self, rows: pa.Table, first: int) -> RowWindow:
        columns = rows.drop_columns([_TEXT])
        if self._id is None:
            numbers = pa.array(np.arange(first, first + rows.num_rows))
            columns = columns.add_column(0, ID, numbers)
        return RowWindow(columns.cast(self.schema), rows[_TEXT])

    def _count(self, relation: str) -> int | None:
        """Rows; None for Parquet files with texts that are not UTF-8."""
        read = ", ".join(f"sum(strlen(CAST({identifier(name)} AS VARCHAR)))" for name in self._selection.text_columns)
        counted = f"count(*), {read}" if isinstance(self._table, ParquetTable) else "count(*)"
        try:
            return int(self._connection.execute(f"SELECT {counted} FROM {relation}").fetchall()[0][0])
        except duckdb.Error as error:
            if isinstance(self._table, ParquetTable) and is_invalid_text(error):
                return None
            raise self._failed(error) from error

    def _selected(self, relation: str) -> str:
        """SQL: id, columns to keep, text (null for none, '' for a blank one)."""
        text = embeddable_sql(self._selection.text_columns, self._selection.template)
        chosen = [] if self._id is None else [f"{identifier(self._id)} AS {ID}"]
        chosen += [identifier(name) for name in self._selection.keep]
        return f"SELECT {', '.join([*chosen, f'{text} AS {_TEXT}'])} FROM {relation}"

    def _failed(self, error: Exception) -> SourceError:
        return _unreadable(self._origin, error)


def _unreadable(origin: str, error: Exception) -> SourceError:
    """The failure in terms of the source; DuckDB says below its first line that a text file has another encoding."""
    said, everything = first_line(error), str(error).lower()
    if "utf-8" in everything or "invalid unicode" in everything or "utf8" in everything:
        said += ": it has bytes that are not UTF-8. Write the file again in that encoding, as by iconv -t UTF-8"
    return SourceError(f"cannot read {origin}: {said}")


def _checked_columns(
    connection: duckdb.DuckDBPyConnection, relation: str, origin: str, selection: Selection
) -> list[str]:
    """Names of all columns. Raises SourceError for one that is wanted and not there, or no text."""
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    except duckdb.Error as error:
        raise _unreadable(origin, error) from error
    types = {str(row[0]).lower(): str(row[1]) for row in described}
    names = [str(row[0]) for row in described]
    for name in selection.wanted:
        if name.lower() not in types:
            raise SourceError(f"{origin} has no column {name!r}: {choices(name, names, 'columns')}")
    for name in selection.text_columns:
        check_text_type(name, types[name.lower()], origin)
    return names


def parquet_tables(paths: Sequence[str]) -> Iterator[pa.Table]:
    """Parquet files as they are, texts that are not UTF-8 among them, a window at a time.

    Raises:
        SourceError: a file cannot be read.
    """
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(WINDOW):
                    yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"the Parquet file {path!r} cannot be read: {error}. Write it again") from error
