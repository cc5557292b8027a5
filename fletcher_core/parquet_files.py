"""Parquet files and what their paths say of the rows inside: hive partitions, and the file's own name.

In come patterns; out go the files that they stand for, a SQL relation over them, and the few files that a partition is
about where its columns come from the paths. All columns that come from paths are texts, whatever the values look like,
so that a further file changes the type of none.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import duckdb

from fletcher_core.errors import SourceError
from fletcher_core.filesystems import make_readable
from fletcher_core.partition import Partition
from fletcher_core.sql import first_line, identifier, literal, literals

_NULL = "__HIVE_DEFAULT_PARTITION__"
_FILE = "fletcher_file"


@dataclass(frozen=True)
class ParquetFiles:
    """Files of one table.

    Attributes:
        paths: as DuckDB reads them.
        depth: of the folder that file names are relative to, in parts of a path.
        file_column: what the column with the file's name is called, if there is to be one.
        hive: the keys that each of the paths has, as in `day=2026-11-01/`.
    """

    paths: tuple[str, ...]
    depth: int
    file_column: str | None
    hive: tuple[str, ...]

    @cached_property
    def path_columns(self) -> frozenset[str]:
        """Names of the columns that come from the paths, in lower case."""
        return frozenset(name.lower() for name in (*self.hive, *filter(None, [self.file_column])))

    def relation(self) -> str:
        """The SQL relation over the files."""
        if self.file_column is None:
            return f"{self.read()})"
        # First, so that it is the one meant where the files have a column of this name themselves.
        name = f"{self.name_sql(_FILE)} AS {identifier(self.file_column)}"
        return f"(SELECT {name}, * EXCLUDE ({_FILE}) FROM {self.read()}, filename = '{_FILE}'))"

    def read(self) -> str:
        """A call of read_parquet with all but its closing bracket; it has no column for the file's name yet."""
        hive = "hive_partitioning = true, hive_types_autocast = false" if self.hive else "hive_partitioning = false"
        return f"read_parquet({literals(self.paths)}, union_by_name = true, {hive}"

    def name_sql(self, path: str) -> str:
        """SQL: the name of the file that the SQL expression `path` is the path of."""
        folders = sorted({path[: -len(self.name(path))] for path in self.paths}, key=len, reverse=True)
        cases = " ".join(f"WHEN starts_with({path}, {literal(f)}) THEN substr({path}, {len(f) + 1})" for f in folders)
        return f"CASE {cases} END"

    def name(self, path: str) -> str:
        """The file's path from the folder on that all patterns have in common."""
        return "/".join(_parts(path)[self.depth :])

    def of_partition(
        self, connection: duckdb.DuckDBPyConnection, conditions: Sequence[tuple[str, Partition]]
    ) -> "ParquetFiles":
        """The files that can have rows of a partition; one file, for its columns, when none can.

        Args:
            conditions: columns, and the slice of one condition that each has to meet.
        """
        known = [(name, part) for name, part in conditions if name.lower() in self.path_columns]
        if not known:
            return self
        values = [self._values(path) for path in self.paths]
        columns = {name.lower(): [row[name.lower()] for row in values] for name, _ in known}
        lists = ", ".join(
            f"unnest([{', '.join('NULL' if value is None else literal(value) for value in column)}]::VARCHAR[]) "
            f"AS {identifier(name)}"
            for name, column in columns.items()
        )
        wanted = " AND ".join(f"({part.condition(name, 'VARCHAR')})" for name, part in known)
        found = connection.execute(
            f"SELECT index FROM (SELECT unnest(range({len(self.paths)})) AS index, {lists}) WHERE {wanted} ORDER BY 1"
        ).fetchall()
        return replace(self, paths=tuple(self.paths[index] for (index,) in found) or self.paths[:1])

    def _values(self, path: str) -> dict[str, str | None]:
        values = {name.lower(): value for name, value in _hive(path).items()}
        return values if self.file_column is None else {**values, self.file_column.lower(): self.name(path)}


def list_files(
    connection: duckdb.DuckDBPyConnection, patterns: Sequence[str], file_column: str | None = None
) -> ParquetFiles:
    """The files that the patterns stand for at this moment.

    Raises:
        SourceError: a pattern stands for no file, or its protocol cannot be read.
    """
    make_readable(connection, patterns)
    paths: list[str] = []
    for pattern in patterns:
        try:
            found = connection.execute("SELECT file FROM glob(?) ORDER BY file", [pattern]).fetchall()
        except (duckdb.Error, OSError) as error:  # a filesystem of fsspec has errors of its own
            raise SourceError(f"cannot list the Parquet files {pattern!r}: {first_line(error)}") from error
        if not found:
            check = "the address" if "://" in pattern else f"the path (relative to {Path.cwd()})"
            raise SourceError(f"there is no Parquet file at {pattern!r}: check {check}")
        paths += [path for (path,) in found]
    keys = {tuple(sorted(_hive(path))) for path in paths}
    return ParquetFiles(tuple(paths), _common_depth(patterns), file_column, keys.pop() if len(keys) == 1 else ())


def file_name(patterns: Sequence[str], path: str) -> str:
    """What a `file_column` holds of the file at `path`, which one of the patterns stands for."""
    return "/".join(_parts(path)[_common_depth(patterns) :])


def _hive(path: str) -> dict[str, str | None]:
    """Keys and values of the folders, the first of each key, as DuckDB reads them."""
    found: dict[str, str | None] = {}
    for part in re.split(r"[/\\]", path.split("?", 1)[0])[:-1]:
        name, equals, value = part.partition("=")
        if equals and name and "=" not in value:
            found.setdefault(name, None if value == _NULL else unquote(value))
    return found


def _parts(path: str) -> list[str]:
    """The parts of a path, however many slashes part them."""
    protocol, found, rest = path.rpartition("://")
    parts = [part for part in posixpath.normpath(rest.replace("\\", "/")).split("/") if part not in ("", ".")]
    return [f"{protocol}:", *parts] if found else parts


def _common_depth(patterns: Sequence[str]) -> int:
    folders = []
    for pattern in patterns:
        parts = _parts(pattern)[:-1]
        fixed = next((at for at, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
        folders.append(parts[:fixed])
    return next(
        (at for at, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1),
        min(len(folder) for folder in folders),
    )
