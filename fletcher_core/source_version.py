"""The state of a source for little work: which files there are and how old, or how far a table has come.

In comes a source; out go short texts that differ when its rows may differ. Neither Parquet files nor the texts of a
table are read, so that a sensor may ask every half minute.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import duckdb

from fletcher_core.columns import choices
from fletcher_core.errors import ConfigError, SourceError
from fletcher_core.object_files import filesystem
from fletcher_core.partition import Partition
from fletcher_core.sources import DuckDBTable, ParquetTable, Source, attached, filter_column, reading_failed
from fletcher_core.sql import connect, first_line, identifier, literal

# What file systems call the mark of a file's content, the surest first.
_MARKS = ("ETag", "etag", "e_tag", "md5Hash", "sha256", "checksum")
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True)
class Watermark:
    """How far a table has come: the greatest value of a column as text (None without rows), and how many rows."""

    greatest: str | None
    rows: int

    @property
    def version(self) -> str:
        """Changes with either figure (16 hex digits)."""
        return digest({"greatest": str(self.greatest), "rows": str(self.rows), "none": str(self.greatest is None)})


def file_states(source: ParquetTable) -> dict[str, str]:
    """Every file of the source with a mark that changes when the file is written again.

    On local disks the mark is size and time of the last change (nanoseconds); elsewhere what the file system tells in
    a listing: the ETag, or size and time. A file that is replaced by one of the same size and time goes unseen. No
    files are an empty dictionary.

    Raises:
        SourceError: a folder cannot be listed.
        ConfigError: the package for this kind of address (`s3fs` for s3://) is not installed.
    """
    states: dict[str, str] = {}
    for pattern in source.patterns:
        is_local = "://" not in pattern or pattern.startswith("file://")
        states |= _local(pattern) if is_local else _remote(pattern)
    return states


def digest(states: Mapping[str, str]) -> str:
    """One mark for many (16 hex digits); the order does not matter."""
    text = "".join(f"{len(name)}:{name}{len(state)}:{state}" for name, state in sorted(states.items()))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def watermark(source: Source, column: str, *, lock_timeout: float | None = None) -> Watermark:
    """The greatest value of `column` and the number of rows, by one query.

    Args:
        column: one that grows when a row is new or changed: a time of the last change, a running number.
        lock_timeout: seconds to wait for a writer of the database; None: as the source says.

    Raises:
        SourceLockedError: a writer still holds the database.
        SourceError: there is no such database, table or column.
    """
    with _opened(source, lock_timeout, [column]) as (connection, relation, _):
        ((greatest, rows),) = connection.execute(
            f"SELECT max({identifier(column)})::VARCHAR, count(*) FROM {relation}"
        ).fetchall()
    return Watermark(greatest, rows)


def watermarks(
    source: Source, column: str | None, partitions: Sequence[Partition], *, lock_timeout: float | None = None
) -> dict[str, Watermark]:
    """The watermark of each partition by its key, all by one query; without `column` only the rows are counted.

    Raises:
        ConfigError: the source has no partition_column.
        SourceLockedError, SourceError: as `watermark`.
    """
    found = {partition.key: Watermark(None, 0) for partition in partitions}
    by = {part: filter_column(source, part) for partition in partitions for part in partition.conditions}
    columns = dict.fromkeys([*by.values(), *([column] if column else [])])
    greatest = f"max({identifier(column)})::VARCHAR" if column else "NULL::VARCHAR"
    with _opened(source, lock_timeout, list(columns)) as (connection, relation, types):
        alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}  # bounds by what they are compared with, and how
        for partition in partitions:
            compared = [one for part in partition.conditions for one in part.compared(by[part], types[by[part]])]
            shape = tuple(f"{subject} {sign}" for subject, sign, _ in compared)
            alike.setdefault(shape, []).append((literal(partition.key), *(bound for _, _, bound in compared)))
        counts = [_count_joined(relation, greatest, shape, rows) for shape, rows in alike.items()]
        answer = connection.execute(" UNION ALL ".join(counts)).fetchall() if counts else []
    return found | {key: Watermark(most, rows) for key, most, rows in answer}


def _count_joined(relation: str, greatest: str, shape: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """SQL: the watermark of each slice, by a join: a CASE of a thousand branches would try them one by one."""
    bounds = [f"fletcher_bound_{number}" for number in range(len(shape))]
    values = ", ".join(f"({', '.join(row)})" for row in rows)
    met = " AND ".join(f"{left} {bound}" for left, bound in zip(shape, bounds, strict=True)) or "true"
    return (
        f"SELECT fletcher_slice, {greatest}, count(*) FROM {relation} AS source_rows JOIN (VALUES {values}) "
        f"AS slices({', '.join(['fletcher_slice', *bounds])}) ON {met} GROUP BY ALL"
    )


@contextmanager
def _opened(
    source: Source, lock_timeout: float | None, columns: Sequence[str]
) -> Iterator[tuple[duckdb.DuckDBPyConnection, str, dict[str, str]]]:
    """A connection, the source's relation on it, and the types of `columns`."""
    if isinstance(source, DuckDBTable) and lock_timeout is not None:
        source = replace(source, lock_timeout=lock_timeout)
    with connect() as connection, attached(source, connection) as relation:
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {relation}").fetchall()
            existing = {str(row[0]).lower(): str(row[1]) for row in described}
            for column in columns:
                if column.lower() not in existing:
                    names = [str(row[0]) for row in described]
                    raise SourceError(
                        f"{source.origin()} has no column {column!r}: {choices(column, names, 'columns')}"
                    )
            yield connection, relation, {column: existing[column.lower()] for column in columns}
        except duckdb.Error as error:
            raise reading_failed(source, error) from error


def _local(pattern: str) -> dict[str, str]:
    with connect() as connection:
        try:
            found = connection.execute("SELECT file FROM glob(?)", [pattern]).fetchall()
        except duckdb.Error as error:
            raise SourceError(f"cannot list the Parquet files {pattern!r}: {first_line(error)}") from error
    states = {}
    for (path,) in found:
        try:
            facts = os.stat(path)
        except FileNotFoundError:  # gone since it was listed
            continue
        states[path] = f"{facts.st_size}/{facts.st_mtime_ns}"
    return states


def _remote(pattern: str) -> dict[str, str]:
    try:
        files = filesystem(pattern.split("://", 1)[0].lower())
        path = files._strip_protocol(pattern)
        files.invalidate_cache()  # a listing of an earlier tick tells nothing
        found: dict[str, dict[str, object]] = files.glob(path, detail=True)
    except ImportError as error:
        raise ConfigError(f"cannot list {pattern!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot list the Parquet files {pattern!r}: {error}") from error
    return {
        files.unstrip_protocol(name): _state(facts) for name, facts in found.items() if facts.get("type") != "directory"
    }


def _state(facts: Mapping[str, object]) -> str:
    """What a file system's listing says of the content of a file."""
    marks = [str(facts[name]) for name in (*_MARKS, *_TIMES) if facts.get(name)][:1]
    return "/".join([str(facts.get("size")), *marks])
