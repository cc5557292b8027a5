"""Vectors that the store already has for given texts: nothing is embedded twice under one model.

The content hashes are matched first; then only the row groups with a match are read, vectors and all.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.sql import literals
from fletcher_core.store.generation import Generation

SCHEMA = pa.schema(
    [
        pa.field("content_hash", pa.string()),
        pa.field("tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
        pa.field("vector", pa.list_(pa.float32())),
    ]
)

_ATTEMPTS = 5  # readings while other partitions are compacted or dropped
_FILES, _PLACES = "memory.main.fletcher_files", "memory.main.fletcher_places"


def write_known_vectors(
    connection: duckdb.DuckDBPyConnection, hashes: str | None, generation: Generation, target: Path
) -> None:
    """Writes the known vectors for the content hashes that the SELECT `hashes` gives to the Parquet file `target`;
    None stands for no hashes, for which the store's files need no look.

    It has the columns of `SCHEMA` and each hash at most once; no rows when nothing is known. All generations of the
    collection under the same fingerprint are searched, unless they keep their vectors less precisely. From its second
    call on, a database remembers which hashes are where, and reads of the store only files that it does not know.
    """
    for attempt in range(_ATTEMPTS):
        files = [] if hashes is None else _files(generation)
        try:
            with pq.ParquetWriter(target, SCHEMA, compression="none") as writer:
                if hashes is not None and files:
                    for path, rows in _places(connection, hashes, files):
                        for table in _rows_of(path, rows):
                            writer.write_table(table.cast(SCHEMA))
            return
        except (FileNotFoundError, duckdb.IOException):
            # Other partitions are not ours to lock: their runs merge and drop files between the naming and the reading.
            if attempt + 1 == _ATTEMPTS or _files(generation) == files:
                raise


def _files(generation: Generation) -> list[Path]:
    """Of a store on object storage only those that are here: a few texts are embedded sooner than all is fetched."""
    served = (each for each in (generation, *generation.siblings()) if _serves(each, generation))
    files = (path for each in served for path in each.manifest.files(each.name))
    return [path for path in files if generation.place.holds_all or path.exists()]


def _serves(other: Generation, generation: Generation) -> bool:
    same_model = other.card.fingerprint == generation.card.fingerprint
    return same_model and other.vector_type in ("float32", generation.vector_type)


def _places(
    connection: duckdb.DuckDBPyConnection, hashes: str, files: list[Path]
) -> Iterator[tuple[Path, npt.NDArray[np.int64]]]:
    """File by file, the ascending numbers of the rows that hold the hashes; a large file comes in several parts."""
    if _is_used_again(connection):
        _remember(connection, files)
        rows, key = f"{_PLACES} JOIN {_FILES} USING (number)", "hash"
        wanted = f"SELECT hash(content_hash) FROM ({hashes})"
    else:
        rows, key, wanted = f"({_rows(files)})", "content_hash", hashes
    matches = (
        f"SELECT max_by({{'file': file, 'row': row}}, sequence) AS place FROM {rows} "
        f"WHERE {key} IN ({wanted}) GROUP BY {key}"
    )
    found = connection.sql(f"SELECT place.file AS file, place.row AS row FROM ({matches}) ORDER BY ALL")
    batches: pa.RecordBatchReader = found.to_arrow_reader(1 << 16)
    for batch in batches:
        names = batch.column("file").dictionary_encode()
        for index, name in enumerate(names.dictionary.to_pylist()):
            here = np.asarray(names.indices) == index
            yield Path(name), np.asarray(batch.column("row"), np.int64)[here]


def _rows(files: Sequence[Path]) -> str:
    """A SELECT of the upserts in the files: file, row, sequence, content_hash."""
    numbered = "hive_partitioning = false, file_row_number = true, filename = 'fletcher_file'"
    columns = "fletcher_file AS file, file_row_number AS row, sequence, content_hash"
    return f"SELECT {columns} FROM read_parquet({literals(files)}, {numbered}) WHERE op = 'upsert'"


def _is_used_again(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether this database looked for vectors before: a single look costs less without a memory."""
    name = _FILES.rpartition(".")[2]
    if connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [name]).fetchall():
        return True
    connection.execute(f"CREATE TABLE {_FILES} (number INTEGER, file VARCHAR)")
    connection.execute(f"CREATE TABLE {_PLACES} (number INTEGER, row BIGINT, sequence BIGINT, hash UBIGINT)")
    return False


def _remember(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> None:
    """Brings the tables of files and of places in them up to date, both or none.

    A place takes 28 bytes; what exceeds the database's memory it spills. Equal hashes of different texts cost only a
    look: the text's own hash is read with its vector.
    """
    known = {file: number for number, file in connection.execute(f"SELECT number, file FROM {_FILES}").fetchall()}
    names = [str(path) for path in files]
    named = set(names)
    gone = [number for file, number in known.items() if file not in named]
    added = [name for name in names if name not in known]
    if not gone and not added:
        return
    first = max(known.values(), default=-1) + 1
    connection.begin()
    try:
        for table in (_FILES, _PLACES):
            connection.execute(f"DELETE FROM {table} WHERE number IN ({', '.join(map(str, gone)) or 'NULL'})")
        if added:
            connection.execute(
                f"INSERT INTO {_FILES} SELECT {first} + generate_subscripts(names, 1) - 1, unnest(names) "
                f"FROM (SELECT {literals(added)} AS names)"
            )
            connection.execute(
                f"INSERT INTO {_PLACES} SELECT number, row, sequence, hash(content_hash) "
                f"FROM ({_rows([Path(name) for name in added])}) JOIN {_FILES} USING (file)"
            )
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


def _rows_of(path: Path, rows: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """The given rows of a segment file, one table for each row group that has some."""
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)] - start
            if len(wanted):
                yield file.read_row_group(group, columns=SCHEMA.names).take(wanted)
            start = end
