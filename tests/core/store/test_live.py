"""Reading a collection's live rows: the current versions, from the current generation, whatever else happens."""

import random
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_contents import CARD, DIMENSION, METADATA, generation_of, live_texts, open_store, upserts, vector, write

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.models.card import ModelCard
from fletcher_core.store import Generation, VectorStore, live_reader, live_table, vector_matrix

OTHER_CARD = ModelCard("org/Other", "beef", DIMENSION)


def texts(table: pa.Table) -> dict[tuple[str, str], str]:
    """Text by partition and id, with every vector checked to be that text's."""
    rows = table.to_pylist()
    for row in rows:
        assert row["vector"] == vector(row["topic"])
    found = {(row["partition_key"], row["id"]): row["topic"] for row in rows}
    assert len(found) == len(rows)
    return found


changes = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "B/c"]),
        st.one_of(
            st.just("compact"),
            st.dictionaries(st.sampled_from("uvwxyz"), st.one_of(st.none(), st.text("pqr", min_size=1)), min_size=1),
        ),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=changes)
def test_the_live_rows_are_those_that_sql_finds(
    changes: list[tuple[str, str | dict[str, str | None]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with open_store(tmp_path_factory.mktemp("store")) as store:
        generation = generation_of(store)
        for key, change in changes:
            if isinstance(change, str):
                generation.compact(key)
            elif any(change.values()):
                write(generation, key, change)
        assert texts(live_table(store)) == live_texts(generation)
        for key in ("", "a", "B/c"):
            wanted = {place: text for place, text in live_texts(generation).items() if place[0] == key}
            assert texts(live_table(store, [key])) == wanted


def test_columns_and_partitions_come_as_asked_and_the_schema_names_the_generation(
    store: VectorStore, generation: Generation
) -> None:
    for key in ("a", "b", "c"):
        write(generation, key, {"x": f"text of {key}"})
    table = live_table(store, ["c", "a", "c", "unknown"], ["topic", "embedded_at"])
    assert table.schema.names == ["topic", "embedded_at"]
    assert table["topic"].to_pylist() == ["text of c", "text of a"]
    assert table.schema.metadata[b"fletcher_generation"].decode() == generation.name
    assert table.schema.metadata[b"fletcher_model"].decode() == CARD.name
    assert live_table(store).schema.names == ["id", "partition_key", "topic", "vector"]
    assert live_table(store).schema.field("vector").type == pa.list_(pa.float32(), DIMENSION)
    assert live_table(store, "a", "topic")["topic"].to_pylist() == ["text of a"]  # one name, not letters


@pytest.mark.parametrize("columns", [["id", "texts"], ["op"], []])
def test_columns_that_are_not_there_are_named(store: VectorStore, generation: Generation, columns: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"there are id, content_hash, .*topic, vector") as raised:
        live_reader(store, columns=columns)
    assert all(repr(name) in str(raised.value) for name in columns if name != "id")


def test_an_empty_store_says_to_materialize_first(store: VectorStore) -> None:
    with pytest.raises(StoreError, match="materialize the asset first"):
        live_reader(store)


def test_partitions_of_an_older_generation_are_never_mixed_in(
    store: VectorStore, generation: Generation, caplog: pytest.LogCaptureFixture
) -> None:
    for key in ("a", "b"):
        write(generation, key, {"x": f"old {key}"})
    newer = store.generation(OTHER_CARD, METADATA)
    write(newer, "a", {"x": "new a"})
    assert live_table(store)["topic"].to_pylist() == ["new a"]
    assert "1 of its partitions ('b') in an older generation only" in caplog.text
    assert live_table(store, ["a"])["topic"].to_pylist() == ["new a"]
    with pytest.raises(StoreError, match=r"\('b'\) in an older generation only"):
        live_reader(store, ["a", "b"])
    assert live_table(generation)["topic"].to_pylist() == ["old a", "old b"]  # asked for by itself


def test_a_stream_survives_that_another_process_compacts_and_deletes_what_it_reads(
    tmp_path: Path, store: VectorStore, generation: Generation
) -> None:
    for turn in range(4):
        write(generation, "a", {f"x{turn}": f"text {turn}", "y": f"version {turn}"})
    wanted = live_texts(generation)
    reader = live_reader(store, ["a"])
    first = reader.read_next_batch()
    with open_store(tmp_path / "store") as other:
        elsewhere = generation_of(other)
        write(elsewhere, "a", {"x1": None, "y": "too late"})
        files = elsewhere.files()
        elsewhere.compact()
        assert not any(path.exists() for path in files)
    table = pa.Table.from_batches([first, *reader], reader.schema)
    assert texts(table) == wanted


def test_every_table_is_of_one_instant_while_another_thread_writes_and_compacts(tmp_path: Path) -> None:
    """Every write gives both rows the same text, so that two different ones would be of two instants."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    with open_store(tmp_path / "store") as store:
        write(generation_of(store), "a", {"x": "0", "y": "0"})
        done = threading.Event()

        def change() -> None:
            with open_store(tmp_path / "store") as other:
                generation = generation_of(other)
                for turn in range(1, 25):
                    write(generation, "a", {"x": str(turn), "y": str(turn)})
                    if chance.random() < 0.5:
                        generation.compact("a")
            done.set()

        writer = threading.Thread(target=change)
        writer.start()
        looks = 0
        try:
            while not done.is_set() or looks == 0:
                found = texts(live_table(store))
                assert set(found) == {("a", "x"), ("a", "y")}
                assert len(set(found.values())) == 1, found
                looks += 1
        finally:
            writer.join()
        assert set(texts(live_table(store)).values()) == {"24"}


def test_a_stream_holds_only_a_part_of_the_vectors(tmp_path: Path) -> None:
    dimension, rows = 1024, 4096
    with open_store(tmp_path / "store") as store:
        generation = store.generation(ModelCard("org/wide", "f", dimension), METADATA)
        for part in range(6):
            small = upserts({f"{part}-{row}": "t" for row in range(rows)}).drop_columns("vector")
            flat = np.full(rows * dimension, part, np.float32)
            generation.write_segment(
                "", small.append_column("vector", pa.FixedSizeListArray.from_arrays(pa.array(flat), dimension)), "run"
            )
        before, held, total = pa.total_allocated_bytes(), 0, 0
        for batch in live_reader(store):
            held = max(held, pa.total_allocated_bytes() - before)
            total += batch.nbytes
        assert total > 6 * rows * dimension * 4
        assert held < total / 2


def test_a_damaged_file_is_reported_in_words(store: VectorStore, generation: Generation) -> None:
    write(generation, "a", {"x": "text"})
    (path,) = generation.files()
    path.write_bytes(b"PAR1 no longer")
    with pytest.raises(StoreError, match=r"partition 'a', cannot be read.*move it away"):
        live_table(store)


def test_more_files_than_may_be_open_are_reported_with_the_way_out(store: VectorStore, generation: Generation) -> None:
    write(generation, "a", {"x": "text"})
    reader = live_reader(store)
    with (
        patch.object(Path, "open", side_effect=OSError(24, "Too many open files")),
        pytest.raises(StoreError, match="fletcher compact"),
    ):
        reader.read_all()


@pytest.mark.parametrize("vector_type", ["float32", "float16"])
def test_the_matrix_has_the_vectors_in_the_order_of_the_rows(store: VectorStore, vector_type: str) -> None:
    generation = store.generation(CARD, METADATA, vector_type)  # type: ignore[arg-type]
    for turn in range(3):
        write(generation, "", {f"{turn}-{row}": f"text {turn} {row}" for row in range(3)})
    table = live_table(store)
    for column in (table["vector"], table["vector"].slice(2, 5), table["vector"].chunk(1).slice(1)):
        matrix = vector_matrix(column)
        assert matrix.dtype == np.float32
        assert matrix.tolist() == column.to_pylist()
    assert vector_matrix(table.slice(0, 0)["vector"]).shape == (0, DIMENSION)
    assert pq.read_table(generation.files()[0])["vector"].type == table["vector"].type
