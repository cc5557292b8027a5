"""Merging only the newest files must not bring a row of an older file back."""

from pathlib import Path

import duckdb
import pyarrow as pa

from fletcher_core.models import ModelCard
from fletcher_core.store import Generation, VectorStore


def rows(op: str, replaces: int | None) -> pa.Table:
    vector = [0.6, 0.8] if op == "upsert" else None
    return pa.table(
        {
            "id": ["a"],
            "op": [op],
            "content_hash": ["h"],
            "metadata_hash": [""],
            "tokens": pa.array([1], pa.int32()),
            "truncated": [False],
            "replaces": pa.array([replaces], pa.int64()),
            "vector": pa.array([vector], pa.list_(pa.float32(), 2)),
        }
    )


def live(generation: Generation) -> int:
    with duckdb.connect() as connection:
        return len(connection.execute(generation.live_sql()).fetchall())


def test_a_superseded_row_in_an_older_file_stays_superseded(tmp_path: Path) -> None:
    with VectorStore.open(tmp_path, collection="notes") as store:
        generation = store.generation(ModelCard("m", "f" * 64, 2), pa.schema([]))
        many = pa.concat_tables([rows("upsert", None)] * 5000)
        filler = many.set_column(0, "id", pa.array([f"x{n}" for n in range(5000)]))
        old = generation.write_segment("", pa.concat_tables([rows("upsert", None), filler]), "1")
        second = generation.write_segment("", rows("upsert", old.first_sequence), "2")
        third = generation.write_segment("", rows("upsert", second.first_sequence), "3")
        generation.write_segment("", rows("delete", third.first_sequence), "4")
        assert live(generation) == 5000
        report = generation.compact_if_needed("", max_segments=2)
        assert report is not None
        assert (report.files_before, report.files_after) == (3, 1), "the large old file is left alone"
        assert live(generation) == 5000
        generation.compact("")
        assert live(generation) == 5000
        assert len(generation.segments()) == 1
