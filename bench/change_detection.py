"""What change detection costs when nothing changed, against DuckDB's own scans of the same column.

Run: .venv/bin/python bench/change_detection.py [rows] [--threads N]

Builds a table of 1,000,000 rows with texts of about 300 bytes (DuckDB and Parquet) and a vector store that holds all of
them, in a temporary folder; then times, best of three on the same connection settings: the no-op `detect_changes`,
`max(md5(text))`, and `bit_xor(hash(text))`. The target is at most 3x the md5 scan.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.changes import detect_changes
from fletcher_core.models.card import ModelCard
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, Source, attached
from fletcher_core.sql import connect, literal
from fletcher_core.store import Generation, VectorStore

DIMENSION = 8
MEMORY_LIMIT = "2GB"
SEGMENT_ROWS = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fletcher-bench-") as folder:
        sources = build_sources(Path(folder), arguments.rows)
        print(f"{arguments.rows:,} rows, DuckDB threads: {arguments.threads or 'all cores'}, memory {MEMORY_LIMIT}")
        print(
            f"{'source':<10}{'segments':>9}{'no-op diff':>12}{'md5 scan':>10}{'hash scan':>11}{'/ md5':>8}{'/ hash':>8}"
        )
        for source in sources:
            measure(source, Path(folder), arguments.threads)


def build_sources(folder: Path, rows: int) -> list[Source]:
    """The same rows as a DuckDB table and as a Parquet file. No two texts are equal."""
    database, parquet = folder / "docs.duckdb", folder / "docs.parquet"
    with connect() as connection:
        connection.execute(f"ATTACH {literal(database)} AS built")
        connection.execute(
            "CREATE TABLE built.docs AS SELECT i AS id, concat('Document ', i, ': ', "
            f"repeat(concat(md5(i::VARCHAR), ' '), 8), (i * 7919) % 1000003) AS text FROM range({rows}) t(i)"
        )
        connection.execute(f"COPY built.docs TO {literal(parquet)} (FORMAT parquet)")
    return [DuckDBTable(database, "docs"), ParquetTable(parquet, name="docs_parquet")]


def measure(source: Source, folder: Path, threads: int | None) -> None:
    """One line with the store in the segments of a first run, one with it compacted."""
    with VectorStore.open(folder / "store", collection=source.name) as store:
        generation = store.generation(ModelCard("bench", "beef", DIMENSION), pa.schema([]))
        with generation.locked("", "bench"), store.workspace("bench") as workspace:
            fill(generation, source, workspace, threads)
            print_line(source, generation, workspace, threads)
            generation.compact("")
            print_line(source, generation, workspace, threads)


def fill(generation: Generation, source: Source, workspace: Path, threads: int | None) -> None:
    """Stores every row of the source, as a first materialization would, with made-up vectors."""
    changes = detect_changes(source, Partition(), generation, workspace, memory_limit=MEMORY_LIMIT, threads=threads)
    for batch in pq.ParquetFile(changes.changes_path).iter_batches(SEGMENT_ROWS):
        count = batch.num_rows
        flat = np.random.default_rng(0).random(count * DIMENSION, np.float32)
        rows = pa.table(
            {
                "id": batch.column("id"),
                "op": pa.repeat("upsert", count),
                "content_hash": batch.column("content_hash"),
                "metadata_hash": batch.column("metadata_hash"),
                "tokens": pa.repeat(pa.scalar(70, pa.int32()), count),
                "truncated": pa.repeat(False, count),
                "replaces": pa.nulls(count, pa.int64()),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSION),
            }
        )
        generation.write_segment("", rows, "bench")


def print_line(source: Source, generation: Generation, workspace: Path, threads: int | None) -> None:
    rows = generation.row_count()

    def diff() -> None:
        found = detect_changes(source, Partition(), generation, workspace, memory_limit=MEMORY_LIMIT, threads=threads)
        assert found.unchanged == found.source_rows == rows

    with connect(memory_limit=MEMORY_LIMIT, threads=threads) as connection, attached(source, connection) as relation:
        md5_seconds = best_of_three(lambda: connection.execute(f"SELECT max(md5(text)) FROM {relation}").fetchall())
        hash_seconds = best_of_three(
            lambda: connection.execute(f"SELECT bit_xor(hash(text)) FROM {relation}").fetchall()
        )
    seconds = best_of_three(diff)
    kind = "DuckDB" if isinstance(source, DuckDBTable) else "Parquet"
    print(
        f"{kind:<10}{len(generation.files()):>9}{seconds:>10.2f} s{md5_seconds:>8.2f} s{hash_seconds:>9.2f} s"
        f"{seconds / md5_seconds:>7.2f}x{seconds / hash_seconds:>7.1f}x"
    )


def best_of_three(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
