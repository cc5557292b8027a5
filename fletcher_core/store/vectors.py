"""Vectors that the store already has for given texts: nothing is embedded twice under one model.

The content hashes are matched first; then only the row groups with a match are read, vectors and all.
"""

from collections.abc import Iterator
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


def write_known_vectors(
    connection: duckdb.DuckDBPyConnection, hashes: str | None, generation: Generation, target: Path
) -> None:
    """Writes the known vectors for the content hashes that the SELECT `hashes` gives to the Parquet file `target`;
    None stands for no hashes, for which the store's files need no look.

    It has the columns of `SCHEMA` and each hash at most once; no rows when nothing is known. All generations of the
    collection under the same fingerprint are searched, unless they keep their vectors less precisely.
    """
    files = [
        path for each in (generation, *generation.siblings()) if _serves(each, generation) for path in each.files()
    ]
    with pq.ParquetWriter(target, SCHEMA, compression="none") as writer:
        if hashes is None or not files:
            return
        for path, rows in _places(connection, hashes, files):
            for table in _rows_of(path, rows):
                writer.write_table(table.cast(SCHEMA))


def _serves(other: Generation, generation: Generation) -> bool:
    same_model = other.card.fingerprint == generation.card.fingerprint
    return same_model and other.vector_type in ("float32", generation.vector_type)


def _places(
    connection: duckdb.DuckDBPyConnection, hashes: str, files: list[Path]
) -> Iterator[tuple[Path, npt.NDArray[np.int64]]]:
    """File by file, the ascending numbers of the rows that hold the hashes; a large file comes in several parts."""
    matches = (
        "SELECT max_by({'file': fletcher_file, 'row': file_row_number}, sequence) AS place "
        f"FROM read_parquet({literals(files)}, hive_partitioning = false, file_row_number = true, "
        f"filename = 'fletcher_file') WHERE op = 'upsert' AND content_hash IN ({hashes}) GROUP BY content_hash"
    )
    found = connection.sql(f"SELECT place.file AS file, place.row AS row FROM ({matches}) ORDER BY ALL")
    batches: pa.RecordBatchReader = found.to_arrow_reader(1 << 16)
    for batch in batches:
        names = batch.column("file").dictionary_encode()
        for index, name in enumerate(names.dictionary.to_pylist()):
            here = np.asarray(names.indices) == index
            yield Path(name), np.asarray(batch.column("row"), np.int64)[here]


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
