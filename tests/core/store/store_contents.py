"""Writing to a store and looking at it from outside, for the tests in this folder."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fletcher_core.models.card import ModelCard
from fletcher_core.store import Generation, Segment, VectorStore

DIMENSION = 4
CARD = ModelCard("org/Mini-LM", "f00d", DIMENSION)
METADATA = pa.schema([pa.field("topic", pa.string())])


def vector(text: str) -> list[float]:
    """A vector that belongs to this text alone; its elements are exact in float16."""
    return [byte / 256 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSION]]


def upserts(texts: dict[str, str], replaces: dict[str, int] | None = None) -> pa.Table:
    flat = np.array([vector(text) for text in texts.values()], np.float32).reshape(-1)
    return _rows(list(texts), "upsert", list(texts.values()), replaces or {}).append_column(
        "vector", pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSION)
    )


def deletes(ids: Iterable[str], replaces: dict[str, int]) -> pa.Table:
    ids = list(ids)
    return _rows(ids, "delete", [""] * len(ids), replaces).append_column(
        "vector", pa.nulls(len(ids), pa.list_(pa.float32(), DIMENSION))
    )


def write(generation: Generation, partition_key: str, change: dict[str, str | None], run_id: str = "run") -> Segment:
    """Puts texts, and deletes ids whose text is None, as a materialization would."""
    live = live_sequences(generation, partition_key)
    put = {row_id: text for row_id, text in change.items() if text is not None}
    gone = [row_id for row_id, text in change.items() if text is None and row_id in live]
    tables = ([upserts(put, live)] if put else []) + ([deletes(gone, live)] if gone else [])
    return generation.write_segment(partition_key, pa.concat_tables(tables), run_id)


def live_sequences(generation: Generation, partition_key: str) -> dict[str, int]:
    rows = duckdb.execute(f"SELECT id, sequence FROM ({generation.live_sql(partition_key)})")
    return dict(rows.fetchall())


def live_texts(generation: Generation) -> dict[tuple[str, str], str]:
    """Text of every live row by partition and id, through `live_sql`."""
    return _texts(f"SELECT partition_key, id, topic, content_hash, vector FROM ({generation.live_sql()})")


def texts_by_glob(folder: Path) -> dict[tuple[str, str], str]:
    """The same for someone who knows only a generation's folder: an id's newest row counts, if it is an upsert."""
    if not any(folder.glob("segments/**/*.parquet")):
        return {}
    return _texts(
        "SELECT partition_key, id, topic, content_hash, vector FROM "
        f"(SELECT * FROM read_parquet('{folder}/segments/**/*.parquet') "
        "QUALIFY row_number() OVER (PARTITION BY partition_key, id ORDER BY sequence DESC) = 1) WHERE op = 'upsert'"
    )


def check_invariants(store: VectorStore) -> None:
    """Manifest and files agree, every segment can be read, no sequence is there twice, glob and `live_sql` agree."""
    sequences: list[int] = []
    for generation in store.generations():
        folder = store.root / generation.name / "segments"
        files = sorted(folder.glob("**/*.parquet"))
        assert files == sorted(generation.files())
        assert not list(folder.glob("**/*.tmp"))
        for file in files:
            sequences += pq.read_table(file, columns=["sequence"])["sequence"].to_pylist()
        for segment in generation.segments():
            rows = generation.read_segment(segment.label)
            assert rows.schema.equals(generation.schema)
            assert rows["op"].to_pylist().count("upsert") == segment.upserts
            assert rows["op"].to_pylist().count("delete") == segment.deletes
            assert segment.rows > 0
            for sequence in rows["sequence"].to_pylist():
                assert segment.first_sequence <= sequence <= segment.last_sequence
        live = live_texts(generation)
        assert live == texts_by_glob(store.root / generation.name)
        assert generation.row_count() == len(live)
    assert len(sequences) == len(set(sequences))
    assert max(sequences, default=0) < (store.manifest.next_sequence() or 0)


def generation_of(store: VectorStore) -> Generation:
    return store.generation(CARD, METADATA)


def open_store(root: Path) -> VectorStore:
    return VectorStore.open(root, collection="docs")


def _rows(ids: list[str], op: str, texts: list[str], replaces: dict[str, int]) -> pa.Table:
    count = len(ids)
    return pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "op": pa.repeat(op, count),
            "content_hash": pa.array([hashlib.md5(text.encode()).hexdigest() for text in texts], pa.string()),
            "metadata_hash": pa.repeat("", count),
            "tokens": pa.array([len(text) for text in texts], pa.int32()),
            "truncated": pa.repeat(False, count),
            "replaces": pa.array([replaces.get(row_id) for row_id in ids], pa.int64()),
            "topic": pa.array(texts, pa.string()),
        }
    )


def _texts(select: str) -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for partition_key, row_id, topic, content_hash, stored in duckdb.execute(select).fetchall():
        assert (partition_key, row_id) not in found, "two live rows of one id"
        assert content_hash == hashlib.md5(topic.encode()).hexdigest()
        assert list(stored) == vector(topic), "a vector of another text"
        found[partition_key, row_id] = topic
    return found
