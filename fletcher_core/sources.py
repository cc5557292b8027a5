"""Where texts come from: a table or query of a DuckDB database, or Parquet files.

A source names its columns; `attach` makes it readable on a DuckDB connection as one SQL relation. DuckDB databases are
attached read-only and only as long as a scan takes, since a reader keeps writers out.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import duckdb
import pyarrow as pa

from fletcher_core.columns import check_text_type, choices, stored_type
from fletcher_core.errors import ConfigError, SourceError, SourceLockedError
from fletcher_core.filesystems import make_readable
from fletcher_core.invalid_text import has_mark, is_invalid_text, marked_files
from fletcher_core.parquet_files import ParquetFiles, list_files
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
        partition_column: what `Partition` filters by. A mapping names a column for each dimension of a
            multi-dimensional partition: {"day": "created_at", "tenant": "tenant"}.
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
    partition_column: str | Mapping[str, str] | None = field(default=None, hash=False)
    name: str = ""
    lock_timeout: float = 30.0

    def __post_init__(self) -> None:
        if bool(self.table) == bool(self.query):
            raise ConfigError(f"DuckDBTable({str(self.database)!r}) needs either table= or query=, one of the two")
        if not self.name and not self.table:
            raise ConfigError(f"DuckDBTable({str(self.database)!r}, query=...) needs name=")
        object.__setattr__(self, "name", self.name or self.table)
        _settle_columns(self)

    def attach(self, connection: duckdb.DuckDBPyConnection, partition: Partition = _WHOLE) -> str:
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
                    raise SourceLockedError(
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
        files: a path, a glob, or several of them; `s3://`, `gs://`, `https://` and whatever else fsspec knows, too.
            Folders named as in `day=2026-11-01/` give the columns of those names, of type VARCHAR.
        query: a SELECT over the files, which it calls `files`: "SELECT *, version AS doc_version FROM files".
        name: of the collection; by default from the path.
        file_column: a further column of this name holds the file's path from the last folder on that all patterns have
            in common: with it as `partition_column`, each file is a partition. Where the files have a column of this
            name themselves, or of a folder's, the path's value stands for it.
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
    partition_column: str | Mapping[str, str] | None = field(default=None, hash=False)
    name: str = ""
    file_column: str | None = None

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

    def attach(self, connection: duckdb.DuckDBPyConnection, partition: Partition = _WHOLE) -> str:
        """Returns the SQL relation to select from: of the files that can have rows of `partition`.

        Raises:
            SourceError: a file is missing.
        """
        return self.over(self.partition_files(connection, partition).relation())

    def over(self, files: str) -> str:
        """The SQL relation to select from, where `files` is that of the files as they are."""
        if self.query:
            return f"(WITH files AS (FROM {files}) SELECT * FROM {_subquery(self.query)})"
        return files

    def detach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Nothing to release: DuckDB opens Parquet files only while it reads them."""

    def origin(self) -> str:
        """The source as error messages name it."""
        return f"the Parquet table {', '.join(self.patterns)}"

    def paths(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """The files that the patterns stand for at this moment."""
        return list(list_files(connection, self.patterns).paths)

    def file_names(self) -> list[str]:
        """What `file_column` holds of the files that are there at this moment: the keys of a partition a file.

        Raises:
            SourceError: there is no file, or the files cannot be listed.
        """
        with connect() as connection:
            files = list_files(connection, self.patterns)
        return [files.name(path) for path in files.paths]

    def partition_files(self, connection: duckdb.DuckDBPyConnection, partition: Partition) -> ParquetFiles:
        """The files that can have rows of `partition`, as far as their paths tell; of a query, all files.

        All files, too, when those of the partition lack a column: others may have it, and then it is null here.

        Raises:
            SourceError: a file is missing.
        """
        every = list_files(connection, self.patterns, self.file_column)
        if self.query or not partition.filtered:
            return every
        found = every.of_partition(connection, [(filter_column(self, part), part) for part in partition.conditions])
        if found.paths == every.paths:
            return every
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {found.relation()}").fetchall()
        except duckdb.Error:
            return found  # whoever reads it says what is wrong
        existing = {str(row[0]).lower() for row in described}
        return found if existing.issuperset(name.lower() for name in _columns_used(self, partition)) else every


Source = DuckDBTable | ParquetTable


@contextmanager
def attached(source: Source, connection: duckdb.DuckDBPyConnection, partition: Partition = _WHOLE) -> Iterator[str]:
    """The source's relation for the length of a `with` block; the file is released at its end.

    The relation has all rows of `partition`, and may have others.
    """
    relation = source.attach(connection, partition)
    try:
        yield relation
    finally:
        source.detach(connection)


def marked_relation(source: ParquetTable, connection: duckdb.DuckDBPyConnection, partition: Partition) -> str:
    """The source's relation with marks in place of texts that are no UTF-8, see `invalid_text`."""
    files = source.partition_files(connection, partition)
    wanted = None if source.query else _columns_used(source, partition)
    return source.over(marked_files(connection, files, wanted))


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
        raise reading_failed(source, error, partition) from error
    existing = {str(row[0]).lower(): str(row[1]) for row in described}
    wanted = _columns_used(source, partition)
    for name in wanted:
        if name.lower() not in existing:
            names = [str(row[0]) for row in described]
            missing = f"{source.origin()} has no column {name!r}: {choices(name, names, 'columns')}"
            is_id = name == source.id_column
            raise SourceError(f"{missing}. Say with id_column which of them identifies a row" if is_id else missing)
    types = {name: existing[name.lower()] for name in wanted}
    for name in source.text_columns:
        check_text_type(name, types[name], source.origin())
    return types


def filter_column(source: Source, condition: Partition) -> str:
    """What a slice of one condition filters by.

    Raises:
        ConfigError: neither the slice nor the source names a column.
    """
    column = condition.column
    if column is None and isinstance(source.partition_column, str):
        column = source.partition_column
    if column is None and condition.bucket is not None:
        column = source.id_column
    if column is None:
        raise ConfigError(
            f"partition {condition.key!r} of {source.origin()} has no column to filter by: set partition_column"
        )
    return column


def partition_condition(source: Source, partition: Partition, types: Mapping[str, str], *, marked: bool = False) -> str:
    """SQL: whether a row is in the partition. With `marked`, a row with a mark where a condition looks meets it."""
    conditions = []
    for part in partition.conditions:
        name = filter_column(source, part)
        condition = part.condition(name, types[name])
        if marked:
            # Not by OR, which may work out both sides: a mark is no timestamp.
            is_marked = has_mark(f"CAST({identifier(name)} AS VARCHAR)")
            condition = f"CASE WHEN {is_marked} THEN true ELSE {condition} END"
        conditions.append(f"({condition})")
    return " AND ".join(conditions) or "true"


def metadata_schema(source: Source) -> pa.Schema:
    """The Arrow schema of the source's metadata columns as the store keeps them; empty when it has none.

    That of all files, whatever partition a run is about, since each has to find the same vectors. Files that cannot be
    read count for nothing where paths part the rows: a run over other files shall not fail for them.

    Raises:
        SourceError: as `attach` and `column_types`.
    """
    if not source.metadata_columns:
        return pa.schema([])
    with connect() as connection:
        if isinstance(source, ParquetTable) and not source.query:
            files = list_files(connection, source.patterns, source.file_column)
            if files.path_columns:
                files = _readable(connection, files)
            types = column_types(source, connection, files.relation())
        else:
            with attached(source, connection) as relation:
                types = column_types(source, connection, relation)
    return pa.schema([pa.field(name, stored_type(types[name])[1]) for name in source.metadata_columns])


def reading_failed(source: Source, error: duckdb.Error, partition: Partition = _WHOLE) -> SourceError:
    """The failure of a query over a source, in terms of the source: names the damaged file where one is."""
    if isinstance(source, ParquetTable):
        with connect() as connection:
            damaged = _damaged_file(source.partition_files(connection, partition).paths)
        if damaged is not None:
            return SourceError(damaged)
    elif is_invalid_text(error):
        return SourceError(
            f"cannot read {source.origin()}: {first_line(error)} Read that file through ParquetTable, which sets such "
            "rows aside, or write it again in UTF-8"
        )
    problem = f"cannot read {source.origin()}: {first_line(error)}"
    windows = [part for part in partition.conditions if part.start is not None or part.end is not None]
    if windows and isinstance(error, duckdb.ConversionException):
        column = filter_column(source, windows[0])
        problem += f". A time window needs dates or times in its partition_column, which is {column!r}"
    return SourceError(problem)


def _columns_used(source: Source, partition: Partition) -> list[str]:
    """The columns that a run over the partition reads, each once."""
    filters = [filter_column(source, part) for part in partition.conditions]
    return list(dict.fromkeys([source.id_column, *source.text_columns, *source.metadata_columns, *filters]))


def _readable(connection: duckdb.DuckDBPyConnection, files: ParquetFiles) -> ParquetFiles:
    """Those of the files that have a legible schema; all of them when none has."""

    def is_legible(paths: tuple[str, ...]) -> bool:
        try:
            connection.execute(f"DESCRIBE SELECT * FROM {replace(files, paths=paths).relation()}")
        except duckdb.Error:
            return False
        return True

    if is_legible(files.paths):
        return files
    legible = tuple(path for path in files.paths if is_legible((path,)))
    return replace(files, paths=legible or files.paths)


def _settle_columns(source: Source) -> None:
    for setting in ("text_columns", "metadata_columns"):
        value = getattr(source, setting)
        object.__setattr__(source, setting, (value,) if isinstance(value, str) else tuple(value or ()))
    if isinstance(source.partition_column, Mapping):
        object.__setattr__(source, "partition_column", dict(source.partition_column))
    if not source.text_columns:
        raise ConfigError(f"source {source.name!r} needs at least one column in text_columns")
    check_metadata_names(tuple(source.metadata_columns))
    if source.template is not None:
        parse_template(source.template, source.text_columns)


def _damaged_file(paths: Sequence[str]) -> str | None:
    """A sentence on the first of `paths` that cannot be read through; None when all can."""
    for path in paths:
        with connect() as connection:
            make_readable(connection, [path])
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
