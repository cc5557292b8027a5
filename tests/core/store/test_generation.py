"""One generation: rows in, live rows out."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_contents import (
    CARD,
    DIMENSION,
    METADATA,
    check_invariants,
    deletes,
    generation_of,
    live_sequences,
    live_texts,
    open_store,
    texts_by_glob,
    upserts,
    vector,
    write,
)

from fletcher_core.errors import ConfigError, StoreError, StoreLockedError
from fletcher_core.models.card import ModelCard
from fletcher_core.store import RESERVED_COLUMNS, Generation, VectorStore


def test_a_generation_is_named_after_what_makes_it(store: VectorStore) -> None:
    name = generation_of(store).name
    assert name.startswith("docs-mini_lm-4-")
    assert generation_of(store).name == name
    others = [
        store.generation(ModelCard(CARD.name, "beef", DIMENSION), METADATA),
        store.generation(ModelCard(CARD.name, CARD.fingerprint, 8), METADATA),
        store.generation(CARD, pa.schema([pa.field("topic", pa.int64())])),
        store.generation(CARD, pa.schema([])),
        store.generation(CARD, METADATA, "float16"),
        VectorStore.open(store.root, collection="Docs").generation(CARD, METADATA),
    ]
    assert len({name, *(other.name for other in others)}) == 7


def test_a_new_generation_can_be_queried(generation: Generation) -> None:
    assert generation.row_count() == 0
    assert generation.segments() == []
    assert generation.resolve([1, 2]).num_rows == 0
    assert generation.resolve([]).column_names == ["sequence", "id", "partition_key", "content_hash", "topic"]
    types = {name: kind for name, kind, *_ in duckdb.execute(f"DESCRIBE {generation.live_sql()}").fetchall()}
    assert types["vector"] == "FLOAT[]"
    assert types["sequence"] == "BIGINT"
    assert list(types) == generation.schema.names


def test_a_segment_is_read_back_as_written(generation: Generation) -> None:
    segment = generation.write_segment("p", upserts({"a": "one", "b": "two"}), "run 7")
    rows = generation.read_segment(segment.label)
    assert rows.schema.equals(generation.schema)
    assert rows["id"].to_pylist() == ["a", "b"]
    assert rows["vector"].to_pylist() == [vector("one"), vector("two")]
    assert rows["sequence"].to_pylist() == [segment.first_sequence, segment.last_sequence]
    assert set(rows["segment"].to_pylist()) == {segment.label}
    assert set(rows["fingerprint"].to_pylist()) == {CARD.fingerprint}
    assert set(rows["partition_key"].to_pylist()) == {"p"}
    assert (segment.upserts, segment.deletes, segment.rows, segment.run_id) == (2, 0, 2, "run 7")
    assert segment.bytes == segment.file.stat().st_size
    assert generation.segments("p") == generation.segments() == [segment]
    assert generation.segments("q") == []
    assert generation.partitions() == ["p"]
    assert generation.read_segment("seg-none").equals(generation.schema.empty_table())


def test_live_rows_are_those_that_nothing_replaced(store: VectorStore, generation: Generation) -> None:
    write(generation, "p", {"a": "one", "b": "two", "c": "three"})
    write(generation, "p", {"a": "four", "b": None})
    write(generation, "q", {"a": "five"})
    assert live_texts(generation) == {("p", "a"): "four", ("p", "c"): "three", ("q", "a"): "five"}
    assert [generation.row_count(key) for key in ("p", "q", "none", None)] == [2, 1, 0, 3]
    check_invariants(store)


def test_sequences_rise_over_all_generations_and_collections(store: VectorStore, generation: Generation) -> None:
    first = write(generation, "p", {"a": "one", "b": "two"})
    other = VectorStore.open(store.root, collection="other").generation(CARD, METADATA)
    second = write(other, "p", {"a": "one"})
    third = write(generation, "q", {"a": "one"})
    assert [first.first_sequence, second.first_sequence, third.first_sequence] == [1, 3, 4]


def test_resolve_keeps_only_live_sequences(generation: Generation) -> None:
    write(generation, "p", {"a": "one", "b": "two", "c": "three"})
    write(generation, "p", {"a": "four", "b": None})
    found = generation.resolve(np.array([5, 4, 3, 2, 1, 99]))  # type: ignore[arg-type]
    assert found.select(["sequence", "id", "partition_key", "topic"]).to_pylist() == [
        {"sequence": 3, "id": "c", "partition_key": "p", "topic": "three"},
        {"sequence": 4, "id": "a", "partition_key": "p", "topic": "four"},
    ]


def test_the_newest_written_generation_is_current(store: VectorStore) -> None:
    assert store.current() is None
    old = generation_of(store)
    new = store.generation(ModelCard("newer", "beef", DIMENSION), METADATA)
    write(new, "", {"a": "one"})
    assert _name(store.current()) == new.name
    write(old, "", {"a": "one"})
    assert _name(store.current()) == old.name
    assert [generation.name for generation in store.generations()] == [old.name, new.name]
    assert [generation.name for generation in old.siblings()] == [new.name]
    current = store.current()
    assert current is not None
    assert (current.card, current.vector_type) == (CARD, "float32")
    assert current.metadata_schema == METADATA


def test_retiring_a_partition_leaves_the_others(store: VectorStore, generation: Generation) -> None:
    write(generation, "p", {"a": "one"})
    write(generation, "q", {"a": "two"})
    store.retire(generation.name, "p")
    assert live_texts(generation) == {("q", "a"): "two"}
    check_invariants(store)
    with pytest.raises(StoreError, match="no generation 'none'"):
        store.retire("none", "p")
    with generation_of(store).locked("q", "busy"), pytest.raises(StoreLockedError, match="'busy'"):
        store.retire(generation.name, "q")


def test_sequences_of_retired_rows_are_not_given_out_again_by_a_rebuilt_manifest(store: VectorStore) -> None:
    generation = generation_of(store)
    last = write(generation, "p", {"a": "one"}).last_sequence
    store.retire(generation.name, "p")
    store.close()
    (store.root / "manifest.sqlite").unlink()
    with open_store(store.root) as rebuilt:
        assert write(generation_of(rebuilt), "p", {"a": "one"}).first_sequence > last


def test_float16_vectors_are_half_as_large_and_read_as_floats(store: VectorStore) -> None:
    generation = store.generation(CARD, METADATA, "float16")
    segment = generation.write_segment("p", upserts({"a": "one"}), "run")
    assert generation.read_segment(segment.label).schema.field("vector").type == pa.list_(pa.float16(), DIMENSION)
    assert live_texts(generation) == {("p", "a"): "one"}


def test_vectors_lie_plain_in_the_file_and_the_rest_compressed(generation: Generation) -> None:
    write(generation, "p", {str(number): "text" for number in range(50)})
    group = pq.ParquetFile(generation.files()[0]).metadata.row_group(0)
    columns = {column.path_in_schema.split(".")[0]: column for column in map(group.column, range(group.num_columns))}
    assert columns["vector"].compression == "UNCOMPRESSED"
    assert not any("DICTIONARY" in encoding for encoding in columns["vector"].encodings)
    assert {column.compression for name, column in columns.items() if name != "vector"} == {"ZSTD"}


def test_the_footer_says_what_the_file_holds(generation: Generation) -> None:
    segment = write(generation, "Ä/b", {"a": "one", "b": "two"}, "run 7")
    footer = json.loads(pq.read_metadata(segment.file).metadata[b"fletcher.segment"])
    assert footer["generation"] == generation.name
    assert footer["partition_key"] == "Ä/b"
    assert footer["inputs"] == []
    (entry,) = footer["segments"]
    assert entry["label"] == segment.label
    assert (entry["upserts"], entry["deletes"], entry["run_id"]) == (2, 0, "run 7")
    assert (entry["first_sequence"], entry["last_sequence"]) == (1, 2)


@pytest.mark.parametrize(
    "keys",
    [
        ["", "_"],
        ["a", "A", "Ä", "ä"],
        ["a/b", "a_b", "a\\b"],
        [".", "..", "../x"],
        ["k" * 300, "k" * 301],
        ["a|2024-01"],
    ],
)
def test_partition_keys_of_any_spelling_get_folders_of_their_own(
    store: VectorStore, generation: Generation, keys: list[str]
) -> None:
    for key in keys:
        write(generation, key, {"a": f"text of {key}"})
    assert live_texts(generation) == {(key, "a"): f"text of {key}" for key in keys}
    folders = list((store.root / generation.name / "segments").iterdir())
    assert len({folder.name.lower() for folder in folders}) == len(keys)
    check_invariants(store)


def test_a_root_of_any_spelling_works(tmp_path: Path) -> None:
    with open_store(tmp_path / "it's [a] root, year=2024") as store:
        generation = generation_of(store)
        write(generation, "p", {"a": "one"})
        write(generation, "p", {"a": "two"})
        generation.compact()
        assert live_texts(generation) == {("p", "a"): "two"}
        assert generation.resolve([2])["id"].to_pylist() == ["a"]


def test_the_glob_needs_no_knowledge_of_the_store(store: VectorStore, generation: Generation) -> None:
    write(generation, "p", {"a": "one", "b": "two"})
    write(generation, "p", {"a": None})
    assert texts_by_glob(store.root / generation.name) == {("p", "b"): "two"}


ROWS = upserts({"a": "one", "b": "two"})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS.drop_columns(["tokens"]), "lack the columns \\['tokens'\\]"),
        (ROWS.append_column("more", pa.nulls(2)), "\\['more'\\] too many"),
        (ROWS.slice(0, 0), "at least one row"),
        (pa.concat_tables([ROWS, ROWS]), "'a' is more than once"),
        (ROWS.set_column(0, "id", pa.array(["a", None])), "'id' of a segment has 1 nulls"),
        (ROWS.set_column(1, "op", pa.array(["upsert", "insert"])), "'op' .*must be 'upsert' or 'delete'"),
        (ROWS.set_column(2, "content_hash", pa.array(["x", None])), "'b' is an upsert without 'content_hash'"),
        (ROWS.set_column(8, "vector", pa.nulls(2, ROWS["vector"].type)), "'a' is an upsert without 'vector'"),
        (ROWS.set_column(8, "vector", pa.array([[1.0] * 3] * 2)), "'vector' .*must be fixed_size_list"),
        (ROWS.set_column(4, "tokens", pa.array(["x", "y"])), "'tokens' .*must be int32"),
        (ROWS.set_column(1, "op", pa.array(["upsert", "delete"])), "'b' is a delete with a vector"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_leave_no_trace(
    store: VectorStore, generation: Generation, rows: pa.Table, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        generation.write_segment("p", rows, "run")
    assert not list(store.root.glob("**/seg-*"))
    assert store.manifest.next_sequence() == 1


def test_lists_and_doubles_are_taken_as_vectors(generation: Generation) -> None:
    rows = ROWS.set_column(8, "vector", pa.array([vector("one"), vector("two")], pa.list_(pa.float64())))
    generation.write_segment("p", rows, "run")
    assert live_texts(generation) == {("p", "a"): "one", ("p", "b"): "two"}


def test_a_write_that_fails_is_not_in_the_store(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(store.manifest, "add_file", lambda *_: (_ for _ in ()).throw(StoreError("disk full")))
        with pytest.raises(StoreError, match="disk full"):
            write(generation, "p", {"a": "one"})
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(StoreError, match=r"cannot write .*seg-.*disk full"):
            write(generation, "p", {"a": "one"})
    assert live_texts(generation) == {}
    check_invariants(store)
    write(generation, "p", {"a": "one"})
    assert live_texts(generation) == {("p", "a"): "one"}


@pytest.mark.parametrize("name", [*sorted(RESERVED_COLUMNS)[:3], "VECTOR", "version", "segment", "key", "id"])
def test_metadata_cannot_take_a_reserved_name(store: VectorStore, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r}.*query="):
        store.generation(CARD, pa.schema([pa.field(name, pa.string())]))


def test_an_unknown_vector_type_is_refused(store: VectorStore) -> None:
    with pytest.raises(ConfigError, match="'int8'"):
        store.generation(CARD, METADATA, "int8")  # type: ignore[arg-type]


def test_one_object_holds_a_partition_and_another_of_the_same_process_cannot(
    store: VectorStore, generation: Generation
) -> None:
    other = generation_of(store)
    with generation.locked("p", "first"):
        write(generation, "p", {"a": "one"})
        assert generation.compact("p").files_before == 1
        with pytest.raises(StoreLockedError, match="'first'"):
            write(other, "p", {"a": "two"})
        with pytest.raises(StoreLockedError, match="'first'"), other.locked("p", "second"):
            pass
        with pytest.raises(StoreLockedError, match="'first'"):
            other.compact("p")
        assert other.compact().files_before == 0
        write(other, "q", {"a": "two"})
    write(other, "p", {"a": "two"})
    assert not list((store.root / "locks").iterdir())


def test_rows_written_under_a_lock_may_come_from_another_thread_and_deletes_have_no_vector(
    generation: Generation,
) -> None:
    write(generation, "p", {"a": "one"})
    generation.write_segment("p", deletes(["a"], live_sequences(generation, "p")), "run")
    rows = generation.read_segment(generation.segments()[1].label)
    assert rows["vector"].null_count == 1
    assert live_texts(generation) == {}


def _name(generation: Generation | None) -> str:
    assert generation is not None
    return generation.name
