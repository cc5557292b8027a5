"""What benchmarks put into a table of DuckDB, and what of it a vector store holds in the end."""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore


def write_texts(path: Path, texts: Sequence[str]) -> DuckDBTable:
    """The table `texts` in a new database: `id` from 0, and `text`."""
    rows = pa.table({"id": range(len(texts)), "text": texts})  # noqa: F841 - DuckDB reads it
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE texts AS FROM rows")
    return DuckDBTable(path, "texts")


def stored_vectors(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 [n] of the collection `texts`, in order, and their vectors float32 [n, dimension]."""
    with VectorStore.open(root, collection="texts") as store:
        generation = store.current()
        assert generation is not None
        rows = duckdb.sql(f"SELECT id::BIGINT AS id, vector FROM ({generation.live_sql()}) ORDER BY 1").to_arrow_table()
    vectors = rows["vector"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    ids = rows["id"].to_numpy()
    assert len(np.unique(ids)) == len(ids), "a row is live twice"
    return ids, vectors


def different_bits(one: np.ndarray, other: np.ndarray) -> int:
    """How many of the vectors float32 [n, dimension] are not the same to the last bit."""
    return int((one.view(np.uint32) != other.view(np.uint32)).any(axis=1).sum())
