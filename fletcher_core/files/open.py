"""What a user names as a source in, its rows out: by the ends of the names, or from standard input."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Literal

from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.files.rows import Rows, Selection
from fletcher_core.files.streams import LineRows, RecordRows, count_lines, open_lines, standard_input
from fletcher_core.files.tables import TextTable, parquet_tables, table_rows
from fletcher_core.sources import DuckDBTable, ParquetTable
from fletcher_core.sql import connect

Kind = Literal["stdin", "parquet", "csv", "json", "duckdb", "lines"]

_KINDS: dict[str, Kind] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".duckdb": "duckdb",
    ".ddb": "duckdb",
    ".db": "duckdb",
}
_PACKED = (".gz", ".zst")  # which DuckDB opens by itself


@dataclass(frozen=True)
class Named:
    """What was named. Args: names of files, globs, or `-` for standard input; a DuckDB database with `table` or
    `query`, and seconds to wait for a process that writes the database."""

    names: tuple[str, ...]
    table: str | None = None
    query: str | None = None
    lock_timeout: float = 30.0

    @property
    def kind(self) -> Kind:
        """Raises ConfigError for kinds that cannot be one source, and for a database without a table."""
        if not self.names:
            raise ConfigError("no source is named: give files, a DuckDB database with --table or --query, or '-'")
        kinds = {_kind(name) for name in self.names}
        if len(kinds) > 1:
            raise ConfigError(
                f"the sources are of several kinds ({', '.join(sorted(kinds))}): embed each kind by itself"
            )
        (kind,) = kinds
        if (self.table or self.query) and kind not in ("duckdb", "parquet"):
            kind = "duckdb"  # whatever its file is called
        if kind in ("duckdb", "stdin") and len(self.names) > 1:
            raise ConfigError(f"{self.names[0]!r} cannot be read together with others: embed each by itself")
        if kind == "duckdb" and bool(self.table) == bool(self.query):
            raise ConfigError(f"{self.names[0]!r} is a DuckDB database: name either a --table or a --query of it")
        if kind == "parquet" and self.table:
            raise ConfigError("--table is for DuckDB databases; a --query of Parquet files calls them `files`")
        return kind

    def includes(self, path: Path) -> bool:
        """Whether the file `path` is one of the files that are named."""
        if not path.exists():
            return False
        files = [each for name in self.names for each in (glob(name, recursive=True) if has_magic(name) else [name])]
        return any(Path(each).exists() and path.samefile(each) for each in [*self.names, *files])

    def table_source(
        self, selection: Selection, *, name: str = "rows", metadata: tuple[str, ...] = ()
    ) -> DuckDBTable | ParquetTable | None:
        """The source as a materialization takes it; None where it is no table that can be compared with a store."""
        columns = {
            "id_column": selection.id_column or "id",
            "text_columns": selection.text_columns,
            "template": selection.template,
            "metadata_columns": metadata,
            "name": name,
        }
        if self.kind == "duckdb":
            return DuckDBTable(
                self.names[0],
                table=self.table,
                query=self.query,
                lock_timeout=self.lock_timeout,
                **columns,  # type: ignore[arg-type]
            )
        if self.kind == "parquet":
            return ParquetTable(self.names, query=self.query, **columns)  # type: ignore[arg-type]
        return None


@contextmanager
def open_rows(
    named: Named, selection: Selection, *, has_fields: bool, stdin: IO[bytes] | None = None
) -> Iterator[Rows]:
    """The rows, for the length of a `with` block.

    Args:
        has_fields: of standard input, whether its lines are JSON objects with the fields of `selection`.
        stdin: in place of standard input.

    Raises:
        ConfigError: kinds of sources that do not go together.
        SourceError: a file does not exist or cannot be read.
    """
    kind = named.kind
    with ExitStack() as stack:
        if kind == "stdin":
            yield standard_input(stdin or sys.stdin.buffer, selection, has_fields=has_fields)
        elif kind == "lines":
            files = [path for name in named.names for path in _paths(name)]
            total = sum(map(count_lines, files))
            yield LineRows([(str(path), partial(open_lines, path)) for path in files], selection, total)
        else:
            table: DuckDBTable | ParquetTable | TextTable | None = named.table_source(selection)
            if table is None:
                table = TextTable(named.names, "csv" if kind == "csv" else "json")
            rows = stack.enter_context(table_rows(table, selection))
            yield _around_invalid(table, selection) if rows.has_invalid_text else rows


def _around_invalid(table: DuckDBTable | ParquetTable | TextTable, selection: Selection) -> RecordRows:
    """Rows of Parquet files of which some texts are not UTF-8: these concern their own rows alone."""
    assert isinstance(table, ParquetTable)
    if table.query or selection.template is not None or len(selection.text_columns) > 1:
        raise SourceError(
            f"{table.origin()} holds texts that are not UTF-8: embed a single column of the files, without a query or "
            "a template, and only these rows have no vector; or write the files again in UTF-8"
        )
    with connect() as connection:
        return RecordRows(parquet_tables(table.paths(connection)), table.origin(), selection)


def _kind(name: str) -> Kind:
    if name == "-":
        return "stdin"
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    packed = bool(suffixes) and suffixes[-1] in _PACKED
    end = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    kind = _KINDS.get(end, "lines")
    if kind == "lines" and suffixes and suffixes[-1] in (".zst", ".bz2", ".xz", ".zip"):
        raise ConfigError(f"{name!r} is compressed in a way that lines of text are not read: unpack it, or use gzip")
    return kind


def _paths(name: str) -> list[Path]:
    if has_magic(name) and not Path(name).exists():
        found = sorted(glob(name, recursive=True))
        if not found:
            raise SourceError(f"there is no file at {name!r}: check the path (relative to {Path.cwd()})")
        return [Path(path) for path in found]
    if not Path(name).is_file():
        raise SourceError(f"there is no file at {name!r}: check the path (relative to {Path.cwd()})")
    return [Path(name)]
