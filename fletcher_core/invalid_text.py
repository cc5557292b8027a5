"""Parquet files whose text columns hold bytes that are no UTF-8: which values, and a relation that marks them.

DuckDB refuses to read such a column at all, unless told to leave the bytes out or to put a `?` in their place: a value
is invalid where these two readings differ. In the relation made here a mark stands for it, a text that occurs nowhere
else, so that it is found again behind whatever query a source has. All this costs two readings more, of files that
could not be read before; other files never come here.
"""

import secrets
from collections.abc import Sequence

import duckdb

from fletcher_core.parquet_files import ParquetFiles
from fletcher_core.sql import identifier, literal, literals

_REFUSED = "Invalid string encoding found in Parquet file"
_TABLE = "fletcher_invalid"  # number, file, row (from 0), name of the column in lower case, shown
_MARK = "\ufdd0"  # begins a mark; no character, so no text of people has it
_SHOWN = 200  # characters of an invalid value that are kept, for messages
_PLAIN = ("VARCHAR", "JSON")


def is_invalid_text(error: duckdb.Error) -> bool:
    """Whether DuckDB refused to read a Parquet file because of bytes that are no UTF-8."""
    return _REFUSED in str(error)


def marked_files(connection: duckdb.DuckDBPyConnection, files: ParquetFiles, wanted: Sequence[str] | None) -> str:
    """A relation like `files.relation()`, with a mark in place of each invalid value.

    Args:
        wanted: the columns that will be read, of which nested ones may become texts; None when that is not known. A
            nested column then keeps its type, and an error stands in it where a value is invalid.
    """
    connection.execute(
        f"CREATE TEMP TABLE {_TABLE} (number BIGINT, file VARCHAR, row BIGINT, name VARCHAR, shown VARCHAR)"
    )
    known = None if wanted is None else {name.lower() for name in wanted}
    for path in files.paths:
        columns = [
            name
            for name, kind in _columns(connection, f"read_parquet({literals([path])}, hive_partitioning = false)")
            if any(plain in kind for plain in _PLAIN)
            and (known is None or name.lower() in known)
            and name.lower() not in files.path_columns  # a path's value stands for the file's own
        ]
        _find_invalid(connection, path, columns)
    return _with_marks(connection, files, keep_types=wanted is None)


def has_mark(text: str) -> str:
    """SQL: whether a text holds a mark or a part of one."""
    return f"contains({text}, {literal(_MARK)})"


def number_in(text: str) -> str:
    """SQL: the number of the first mark in a text, a BIGINT; null when it is not there whole."""
    return f"TRY_CAST(regexp_extract({text}, '{_MARK}\\d+:(\\d+);', 1) AS BIGINT)"


def quarantined_select(rows: str) -> str:
    """A SELECT of id, reason, message, content_hash, one row for each id, from rows with an id and a mark's number.

    An id that is invalid itself is made up of what can be read of it and its place, so that no two are the same.
    """
    place = "'row ', row + 1, ' of ', file"
    named = (
        f"SELECT *, CASE WHEN NOT {has_mark('id')} THEN id WHEN number IS NULL THEN 'an id that is not valid UTF-8' "
        f"ELSE concat(shown, ' (', {place}, ')') END AS name_of_row FROM ({rows}) LEFT JOIN "
        f"(SELECT * RENAME (name AS name_of_column) FROM {_TABLE}) USING (number)"
    )
    message = (
        "CASE WHEN number IS NULL THEN concat('id ', name_of_row, ': a column holds bytes that are not valid UTF-8') "
        f"ELSE concat('id ', name_of_row, ': ', {place}, ' holds bytes in column ', name_of_column, "
        "' that are not valid UTF-8, ? in: ', shown) END"
    )
    return (
        "SELECT name_of_row AS id, 'invalid_text' AS reason, concat(arg_min(message, coalesce(number, 0)), "
        "CASE WHEN count(*) > 1 THEN concat(' (and ', count(*) - 1, ' more rows of this id)') END, "
        "'. Write the file again with this text in UTF-8') AS message, CAST(NULL AS VARCHAR) AS content_hash "
        f"FROM (SELECT name_of_row, number, {message} AS message FROM ({named})) GROUP BY name_of_row"
    )


def _columns(connection: duckdb.DuckDBPyConnection, relation: str) -> list[tuple[str, str]]:
    """Names and types."""
    return [(str(row[0]), str(row[1])) for row in connection.execute(f"DESCRIBE FROM {relation}").fetchall()]


def _find_invalid(connection: duckdb.DuckDBPyConnection, path: str, columns: Sequence[str]) -> None:
    """Adds the invalid values of one file to the table. Memory: 16 bytes a row, which DuckDB may spill."""
    replaced, ignored = (
        f"read_parquet({literals([path])}, filename = 'fletcher_file', file_row_number = true, "
        f"hive_partitioning = false, utf8_validation = '{reading}')"
        for reading in ("replace", "ignore")
    )
    if not columns:
        return
    sums = ", ".join(f"sum({_hash(name)})" for name in columns)
    one, other = (connection.execute(f"SELECT {sums} FROM {reading}").fetchall()[0] for reading in (replaced, ignored))
    for index, name in enumerate(columns):
        if one[index] == other[index]:
            continue
        connection.execute(
            f"INSERT INTO {_TABLE} SELECT (SELECT count(*) FROM {_TABLE}) + row_number() OVER (ORDER BY row), "
            f"file, row, {literal(name.lower())}, shown FROM "
            f"(SELECT fletcher_file AS file, file_row_number AS row, {_hash(name)} AS replaced, "
            f"left(CAST({identifier(name)} AS VARCHAR), {_SHOWN}) AS shown FROM {replaced}) JOIN "
            f"(SELECT file_row_number AS row, {_hash(name)} AS ignored FROM {ignored}) USING (row) "
            "WHERE replaced <> ignored"
        )


def _hash(name: str) -> str:
    """Differs between the two readings of an invalid value. DuckDB takes lengths from the file, so they do not."""
    return f"hash(CAST({identifier(name)} AS VARCHAR))"


def _with_marks(connection: duckdb.DuckDBPyConnection, files: ParquetFiles, *, keep_types: bool) -> str:
    columns = _columns(connection, f"{files.read()})")
    found = connection.execute(f"SELECT DISTINCT name FROM {_TABLE} ORDER BY name").fetchall()
    places = {name: f"fletcher_number_{index}" for index, (name,) in enumerate(found)}
    # So random that no text has it; digits, which a query that changes the case of a text leaves alone.
    begin = literal(f"{_MARK}{secrets.randbelow(10**18)}:")
    values = []
    for name, kind in columns:
        value, place = f"files.{identifier(name)}", places.get(name.lower())
        if place is not None and keep_types and kind not in _PLAIN:
            reason = literal(f"column {name} holds text that is not valid UTF-8: write the file again, or leave it out")
            value = f"CASE WHEN {place} IS NULL THEN {value} ELSE error(concat({reason}, ' (', fletcher_file, ')')) END"
        elif place is not None:
            value = f"CASE WHEN {place} IS NULL THEN CAST({value} AS VARCHAR) ELSE concat({begin}, {place}, ';') END"
        values.append(f"{value} AS {identifier(name)}")
    if files.file_column is not None:
        values.insert(0, f"{files.name_sql('fletcher_file')} AS {identifier(files.file_column)}")
    numbers = ", ".join(f"max(number) FILTER (name = {literal(name)}) AS {place}" for name, place in places.items())
    marks = (
        f"SELECT file AS fletcher_marked_file, row AS fletcher_marked_row, {numbers} FROM {_TABLE} GROUP BY file, row"
    )
    return (
        f"(SELECT {', '.join(values)} FROM {files.read()}, filename = 'fletcher_file', file_row_number = true, "
        f"utf8_validation = 'replace') files LEFT JOIN ({marks}) marks "
        "ON fletcher_file = fletcher_marked_file AND files.file_row_number = fletcher_marked_row)"
    )
