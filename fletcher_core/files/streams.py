"""Rows of bytes that come one after another, from files or standard input: lines of text, lines of JSON, Arrow IPC."""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import duckdb
import numpy as np
import pyarrow as pa

from fletcher_core.batching import WINDOW
from fletcher_core.columns import choices
from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.files.rows import DEFAULT_TEXT, ID, RowWindow, Selection
from fletcher_core.sql import connect, first_line
from fletcher_core.template import embeddable_sql

_WINDOW_BYTES = 32 * 2**20  # of text in one window
_COUNTED_BYTES = 2**20
_ARROW_STREAM = b"\xff\xff\xff\xff"
STANDARD_INPUT = "standard input"


class LineRows:
    """A text a line, of several files after each other; ids are line numbers from 0 over all of them. See `Rows`.

    The one column that may be kept is `text`. Bytes that are not UTF-8 concern their own line. `total` is as `Rows`
    has it.
    """

    numbered = True

    def __init__(
        self,
        opened: Sequence[tuple[str, Callable[[], IO[bytes]]]],
        selection: Selection,
        total: int | None = None,
    ) -> None:
        self.total = total
        if selection.id_column is not None or selection.template is not None:
            raise ConfigError("lines of text have no columns: leave out the id column and the template")
        for name in (*selection.text_columns, *selection.keep):
            if name != DEFAULT_TEXT:
                raise ConfigError(f"lines of text have the column {DEFAULT_TEXT!r} alone, not {name!r}")
        self._opened = opened
        self._keeps = bool(selection.keep)
        self.schema = pa.schema([pa.field(ID, pa.int64()), *([pa.field(DEFAULT_TEXT, pa.string())] * self._keeps)])

    def windows(self) -> Iterator[RowWindow]:
        """In order of the files, and of the lines in each."""
        first = 0
        for name, open_file in self._opened:
            try:
                with open_file() as file:
                    for lines in _windows_of_lines(file):
                        yield self._window(lines, first)
                        first += len(lines)
            except (OSError, EOFError) as error:
                raise SourceError(f"{name} cannot be read: {error}. Check the path and the file") from error

    def _window(self, lines: list[bytes], first: int) -> RowWindow:
        columns = {ID: pa.array(np.arange(first, first + len(lines)))}
        if self._keeps:
            columns[DEFAULT_TEXT] = pa.array([line.decode(errors="replace") for line in lines])
        return RowWindow(pa.table(columns), pa.array(lines, pa.binary()))


class RecordRows:
    """Tables with named columns, one after another, all of one schema. See `Rows`."""

    total: int | None = None

    def __init__(self, tables: Iterator[pa.Table], origin: str, selection: Selection) -> None:
        self._origin = origin
        self._selection = selection
        first = next(tables, None)
        names = list(selection.wanted) if first is None else first.column_names
        for name in selection.wanted:
            if name not in names:
                raise SourceError(f"{origin} has no column {name!r}: {choices(name, names, 'columns')}")
        self._id = selection.id_among(names)
        self.numbered = self._id is None
        self._tables = iter(()) if first is None else _chained(first, tables)
        kind = pa.int64() if self._id is None or first is None else first.schema.field(self._id).type
        kept = [
            pa.field(name, pa.null() if first is None else first.schema.field(name).type) for name in selection.keep
        ]
        self.schema = pa.schema([pa.field(ID, kind), *kept])

    def windows(self) -> Iterator[RowWindow]:
        """In the order of the stream."""
        at = 0
        with connect() as connection:
            for table in self._tables:
                for start in range(0, table.num_rows, WINDOW):
                    rows = table.slice(start, WINDOW)
                    yield self._window(connection, rows, at)
                    at += rows.num_rows

    def _window(self, connection: duckdb.DuckDBPyConnection, rows: pa.Table, first: int) -> RowWindow:
        ids = pa.array(np.arange(first, first + rows.num_rows)) if self._id is None else rows[self._id]
        columns = pa.table({ID: ids, **{name: rows[name] for name in self._selection.keep}})
        try:
            columns = columns.cast(self.schema)
        except pa.ArrowException as error:
            raise SourceError(
                f"{self._origin}: from row {first} on a column has values of another type than before: {error}. Give "
                "each column values of one type"
            ) from error
        return RowWindow(columns, self._texts(connection, rows))

    def _texts(self, connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> pa.ChunkedArray:
        names, template = self._selection.text_columns, self._selection.template
        if len(names) == 1 and template is None and _is_text(rows.schema.field(names[0]).type):
            return rows[names[0]]
        connection.register("rows", rows.select(list(names)))
        select = f"SELECT {embeddable_sql(names, template)} AS text FROM rows"
        try:
            return connection.sql(select).to_arrow_table()["text"]
        except duckdb.Error as error:
            raise SourceError(f"{self._origin} cannot be read: {first_line(error)}") from error


def standard_input(stream: IO[bytes], selection: Selection, *, has_fields: bool) -> LineRows | RecordRows:
    """Rows of a stream: Arrow IPC where it is that, NDJSON where `has_fields` names fields to read, else lines of text.

    Raises:
        SourceError: the stream is damaged, or has no such field.
    """
    peeked = cast(Any, stream).peek(4)[:4]
    if peeked == _ARROW_STREAM:
        return RecordRows(_arrow_tables(stream), STANDARD_INPUT, selection)
    if has_fields:
        return RecordRows(_json_tables(stream, selection), STANDARD_INPUT, selection)
    return LineRows([(STANDARD_INPUT, lambda: stream)], selection)


def open_lines(path: Path) -> IO[bytes]:
    """A file of text, uncompressed where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def count_lines(path: Path) -> int:
    """Lines of a file, the last one also where nothing ends it. Raises SourceError when it cannot be read."""
    lines, last = 0, b"\n"
    try:
        with open_lines(path) as file:
            while block := file.read(_COUNTED_BYTES):
                lines, last = lines + block.count(b"\n"), block[-1:]
    except (OSError, EOFError) as error:
        raise SourceError(f"{path} cannot be read: {error}. Check the path and the file") from error
    return lines + (last != b"\n")


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view())


def _windows_of_lines(file: IO[bytes]) -> Iterator[list[bytes]]:
    """Lines without what ends them, a window at a time."""
    lines: list[bytes] = []
    size = 0
    for line in file:
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        lines.append(line)
        size += len(line)
        if len(lines) == WINDOW or size > _WINDOW_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _json_tables(stream: IO[bytes], selection: Selection) -> Iterator[pa.Table]:
    numbered = enumerate((line for line in stream if line.strip()), start=1)
    while lines := list(islice(numbered, WINDOW)):
        records = []
        for number, line in lines:
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError(f"it is a {type(record).__name__}")
            except ValueError as error:
                raise SourceError(
                    f"line {number} of {STANDARD_INPUT} is no JSON object ({error}): send an object a line, or leave "
                    "out --text to embed the lines themselves"
                ) from error
            records.append(record)
        names = dict.fromkeys((*selection.wanted, *([ID] if any(ID in record for record in records) else [])))
        missing = next((name for name in selection.wanted if all(name not in record for record in records)), None)
        if missing is not None:
            found = list(dict.fromkeys(name for record in records[:50] for name in record))
            raise SourceError(f"{STANDARD_INPUT} has no field {missing!r}: {choices(missing, found, 'fields')}")
        try:
            yield pa.table({name: pa.array([record.get(name) for record in records]) for name in names})
        except pa.ArrowException as error:
            raise SourceError(f"{STANDARD_INPUT}: {error}. Give each field values of one type") from error


def _arrow_tables(stream: IO[bytes]) -> Iterator[pa.Table]:
    try:
        with pa.ipc.open_stream(stream) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{STANDARD_INPUT} is no whole Arrow stream: {error}. Send it again") from error


def _chained(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest
