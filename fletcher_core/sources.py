"""Where texts come from: a table or query of a DuckDB database, or Parquet files.

A source names its columns; `attach` makes it readable on a DuckDB connection as one SQL relation. DuckDB databases are
attached read-only and only as long as a scan takes, since a reader keeps writers out.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

import duckdb
import pyarrow as pa

from fletcher_core.columns import check_text_type, choices, stored_type
from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.invalid_text import is_invalid_text, marked_files
from fletcher_core.partition import Partition
from fletcher_core.sql import connect, first_line, identifier, literal, literals
from fletcher_core.store.schema import check_metadata_names
from fletcher_core.template import parse_template

__all__ = ["DuckDBTable", "ParquetTable", "Partition", "Source", "attached", "column_types", "metadata_schema"]

_LOG = logging.getLogger(__name__)

_CATALOG = "fletcher_source"  # the name a database has while attached
_RETRY_SECONDS = 0.1
_SAID_AFTER_SECONDS = 1.0


_WHOLE = Partition()


@dataclass(frozen=True)
class DuckDBTable:
    """A table, view or query of a DuckDB database file.

    Args:
        database: path of the database file.
        table: its name, `schema.name` outside the default schema. Either this or `query`.
        query: a SELECT over the database's tables.
        id_column: identifies a row; any type, compared in its text form.
        text_columns: what is embedded; one name or several.
        template: how several text columns become one text, "{title}\\n\\n{body}"; without it they are joined by an
            empty line. A null column counts as empty.
        metadata_columns: stored and delivered beside the vector.
        partition_column: what `Partition` filters by.
        name: of the collection; the table's name when not given, and needed with `query`.
        lock_timeout: seconds to wait for a writer that holds the database.

    Raises:
        ConfigError: settings that contradict each other, a reserved metadata name, a faulty template.
    """

    database: str | PurePath
    table: str | None = None
    query: str | None = None
    id_column: str = "id"
    text_columns: str | Sequence[str] = ("text",)
    template: str | None = None
    metadata_columns: str | Sequence[str] = ()
    partition_column: str | None = None
    name: str = ""
    lock_timeout: float = 30.0

    def __post_init__(self) -> None:
        if bool(self.table) == bool(self.query):
            raise ConfigError(f"DuckDBTable({str(self.database)!r}) needs either table= or query=, one of the two")
        if not self.name and not self.table:
            raise ConfigError(f"DuckDBTable({str(self.database)!r}, query=...) needs name=")
        object.__setattr__(self, "name", self.name or self.table)
        _settle_columns(self)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Attaches the database read-only and returns the SQL relation to select from.

        Raises:
            SourceError: no such file or table, not a DuckDB file, or still locked after `lock_timeout` (names the
                process that holds it).
        """
        self._attach_when_free(connection)
        connection.execute(f"USE {_CATALOG}")
        if self.query:
            return _subquery(self.query)
        return self._qualified_table(connection)

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Releases the database file."""
        connection.execute("USE memory")
        connection.execute(f"DETACH {_CATALOG}")

    def origin(self) -> str:
        """The source as error messages name it."""
        return (
            f"table {self.table!r} of {str(self.database)!r}" if self.table else f"the query on {str(self.database)!r}"
        )

    def _attach_when_free(self, connection: duckdb.DuckDBPyConnection) -> None:
        path = Path(self.database)
        started, is_said = time.monotonic(), False
        while True:
            if not path.is_file():
                raise SourceError(
                    f"there is no DuckDB database at {str(path)!r}: check the path (relative to {Path.cwd()})"
                )
            try:
                connection.execute(f"ATTACH {literal(path)} AS {_CATALOG} (READ_ONLY)")
                return
            except duckdb.Error as error:
                holder = _lock_holder(str(error))
                if holder is None:
                    raise SourceError(f"cannot open the DuckDB database {str(path)!r}: {first_line(error)}") from error
                waited = time.monotonic() - started
                if waited >= self.lock_timeout:
                    raise SourceError(
                        f"the DuckDB database {str(path)!r} is held open by {holder}, "
                        f"still after {self.lock_timeout:g} s: close it there, or raise lock_timeout"
                    ) from error
                if waited >= _SAID_AFTER_SECONDS and not is_said:
                    _LOG.warning(
                        "the DuckDB database %s is held open by %s: waiting for it, for %g s at most",
                        *(str(path), holder, self.lock_timeout),
                    )
                    is_said = True
            time.sleep(_RETRY_SECONDS)

    def _qualified_table(self, connection: duckdb.DuckDBPyConnection) -> str:
        assert self.table is not None
        found: list[tuple[str, str]] = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_catalog = ? ORDER BY 1, 2",
            [_CATALOG],
        ).fetchall()
        parts = self.table.split(".")
        # Schemas and tables may have dots of their own: the shortest name of a schema counts first.
        splits = [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]
        for wanted in (("main", self.table), *splits):
            for candidate in found:
                if tuple(part.lower() for part in candidate) == tuple(part.lower() for part in wanted):
                    return ".".join(identifier(part) for part in (_CATALOG, *candidate))
        names = [name if schema == "main" else f"{schema}.{name}" for schema, name in found]
        raise SourceError(f"{str(self.database)!r} has no table {self.table!r}: {choices(self.table, names, 'tables')}")


@dataclass(frozen=True)
class ParquetTable:
    """Parquet files that together make one table.

    Args:
        files: a path, a glob, or several of them; whatever DuckDB can read, `s3://` too.
        query: a SELECT over the files, which it calls `files`: "SELECT *, version AS doc_version FROM files".
        name: of the collection; by default from the path.
        The other fields are those of `DuckDBTable`.

    Raises:
        ConfigError: settings that contradict each other, a reserved metadata name, a faulty template.
    """

    files: str | PurePath | Sequence[str | PurePath]
    query: str | None = None
    id_column: str = "id"
    text_columns: str | Sequence[str] = ("text",)
    template: str | None = None
    metadata_columns: str | Sequence[str] = ()
    partition_column: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        files = (self.files,) if isinstance(self.files, (str, PurePath)) else tuple(self.files)
        if not files:
            raise ConfigError("ParquetTable needs at least one file in files=")
        object.__setattr__(self, "files", tuple(str(file) for file in files))
        object.__setattr__(self, "name", self.name or _name_of_files(self.patterns[0]))
        _settle_columns(self)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Paths and globs as given."""
        return self.files  # type: ignore[return-value]  # made so by __post_init__

    def attach(self, connection: duckdb.DuckDBPyConnection) -> str:
        """Returns the SQL relation to select from.

        Raises:
            SourceError: a file is missing.
        """
        return self.over(f"read_parquet({literals(self.paths(connection))}, union_by_name = true)")

    def over(self, files: str) -> str:
        """The SQL relation to select from, where `files` is that of the files as they are."""
        if self.query:
            return f"(WITH files AS (FROM {files}) SELECT * FROM {_subquery(self.query)})"
        return files

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing to release: DuckDB opens Parquet files only while it reads them."""

    def origin(self) -> str:
        """The source as error messages name it."""
        return f"the Parquet files {', '.join(self.patterns)}"

    def paths(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """The files that the patterns stand for at this moment."""
        paths: list[str] = []
        for pattern in self.patterns:
            try:
                found = connection.execute("SELECT file FROM glob(?) ORDER BY file", [pattern]).fetchall()
            except duckdb.Error as error:
                raise SourceError(f"cannot list the Parquet files {pattern!r}: {first_line(error)}") from error
            if not found:
                raise SourceError(f"there is no Parquet file at {pattern!r}: check the path (relative to {Path.cwd()})")
            paths += [path for (path,) in found]
        return paths


Source = DuckDBTable | ParquetTable


@contextmanager
def attached(source: Source, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """The source's relation for the length of a `with` block; the file is released at its end."""
    relation = source.attach(connection)
    try:
        yield relation
    finally:
        source.detach(connection)


def marked_relation(source: ParquetTable, connection: duckdb.DuckDBPyConnection, partition: Partition) -> str:
    """The source's relation with marks in place of texts that are no UTF-8, see `invalid_text`."""
    wanted = [source.id_column, *source.text_columns, *source.metadata_columns]
    if partition.filtered:
        wanted.append(filter_column(source, partition))
    files = marked_files(connection, source.paths(connection), None if source.query else wanted)
    return source.over(files)


def column_types(
    source: Source, connection: duckdb.DuckDBPyConnection, relation: str, partition: Partition = _WHOLE
) -> dict[str, str]:
    """DuckDB's type of every column that the source and the partition name, by the name as they spell it.

    Raises:
        SourceError: a column does not exist (lists those that do) or cannot be a text; a file is damaged.
        ConfigError: the partition filters, but no partition column is known.
    """
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
    except duckdb.Error as error:
        raise reading_failed(source, error) from error
    existing = {str(row[0]).lower(): str(row[1]) for row in described}
    wanted = [source.id_column, *source.text_columns, *source.metadata_columns]
    if partition.filtered:
        wanted.append(filter_column(source, partition))
    for name in wanted:
        if name.lower() not in existing:
            names = [str(row[0]) for row in described]
            raise SourceError(f"{source.origin()} has no column {name!r}: {choices(name, names, 'columns')}")
    types = {name: existing[name.lower()] for name in wanted}
    for name in source.text_columns:
        check_text_type(name, types[name], source.origin())
    return types


def filter_column(source: Source, partition: Partition) -> str:
    """What a filtering partition filters by; raises `ConfigError` when neither it nor the source names a column."""
    column = partition.column or source.partition_column
    if column is None:
        raise ConfigError(
            f"partition {partition.key!r} of {source.origin()} has no column to filter by: set partition_column"
        )
    return column


def metadata_schema(source: Source) -> pa.Schema:
    """The Arrow schema of the source's metadata columns as the store keeps them; empty when it has none.

    Raises:
        SourceError: as `attach` and `column_types`.
    """
    if not source.metadata_columns:
        return pa.schema([])
    with connect() as connection, attached(source, connection) as relation:
        types = column_types(source, connection, relation)
    return pa.schema([pa.field(name, stored_type(types[name])[1]) for name in source.metadata_columns])


def reading_failed(source: Source, error: duckdb.Error) -> SourceError:
    """The failure of a query over a source, in terms of the source: names the damaged file where one is."""
    if isinstance(source, ParquetTable):
        with connect() as connection:
            damaged = _damaged_file(source.paths(connection))
        if damaged is not None:
            return SourceError(damaged)
    elif is_invalid_text(error):
        return SourceError(
            f"cannot read {source.origin()}: {first_line(error)} Read that file through ParquetTable, which sets such "
            "rows aside, or write it again in UTF-8"
        )
    return SourceError(f"cannot read {source.origin()}: {first_line(error)}")


def _settle_columns(source: Source) -> None:
    for field in ("text_columns", "metadata_columns"):
        value = getattr(source, field)
        object.__setattr__(source, field, (value,) if isinstance(value, str) else tuple(value or ()))
    if not source.text_columns:
        raise ConfigError(f"source {source.name!r} needs at least one column in text_columns")
    check_metadata_names(tuple(source.metadata_columns))
    if source.template is not None:
        parse_template(source.template, source.text_columns)


def _damaged_file(paths: Sequence[str]) -> str | None:
    """A sentence on the first of `paths` that cannot be read through; None when all can."""
    for path in paths:
        with connect() as connection:
            try:
                relation = f"read_parquet({literals([path])}, utf8_validation = 'replace')"
                names = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()]
                sums = ", ".join(f"max(hash({identifier(name)}))" for name in names)
                connection.execute(f"SELECT {sums} FROM {relation}").fetchall()
            except duckdb.Error as error:
                return (
                    f"the Parquet file {path!r} is damaged or no Parquet file: {first_line(error)}. "
                    "Write it again, or take it out of files="
                )
    return None


def _subquery(query: str) -> str:
    return f"({query.strip().rstrip(';')}\n)"  # the line break ends a trailing comment


def _name_of_files(pattern: str) -> str:
    for part in reversed(PurePath(pattern).parts):
        stem = part.removesuffix(".parquet")
        if not re.search(r"[*?\[\]]", stem) and re.search(r"\w", stem):
            return stem
    return "parquet"


def _lock_holder(message: str) -> str | None:
    if "Unique file handle conflict" in message:
        return f"this very process ({os.getpid()}) through another DuckDB connection"
    if "Could not set lock" not in message:
        return None
    process = re.search(r"held in (.*?) ?\(PID (\d+)\)", message)
    return f"process {process[2]} ({process[1]})" if process else "another process"
