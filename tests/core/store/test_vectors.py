"""Vectors that the store has for given texts: the same ones in a database that remembers where they are."""

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from store_contents import DIMENSION, METADATA, vector, write

from fletcher_core.changes import changes_database
from fletcher_core.models.card import ModelCard
from fletcher_core.sql import literals
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store import vectors as known_vectors
from fletcher_core.store.vectors import write_known_vectors


def found(
    database: duckdb.DuckDBPyConnection, generation: Generation, texts: Iterable[str], folder: Path
) -> dict[str, list[float]]:
    hashes = {hashlib.md5(text.encode()).hexdigest(): text for text in texts}
    values = ", ".join(f"('{known}')" for known in hashes) or "(NULL)"
    with database.cursor() as cursor:
        write_known_vectors(
            cursor, f"SELECT content_hash FROM (VALUES {values}) t(content_hash)", generation, folder / "known.parquet"
        )
    rows = pq.read_table(folder / "known.parquet")
    names = [hashes[known] for known in rows["content_hash"].to_pylist()]
    assert len(names) == len(set(names))
    return dict(zip(names, rows["vector"].to_pylist(), strict=True))


def test_a_database_that_is_used_again_knows_what_was_written_merged_and_dropped_since(
    store: VectorStore, generation: Generation, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    kept: dict[str, set[str]] = {}  # every text in the partition's files
    with changes_database(spill=tmp_path / "spill") as database:
        for step in range(15):
            key = f"p{chance.randrange(4)}"
            what = chance.choice(["write", "write", "write", "compact", "drop"])
            if what == "write":
                texts = {f"{key}-{chance.randrange(5)}": f"text {chance.randrange(20)}" for _ in range(3)}
                write(generation, key, dict(texts))
                kept.setdefault(key, set()).update(texts.values())
            elif what == "compact":
                generation.compact(key)
                kept[key] = {
                    text for (text,) in duckdb.execute(f"SELECT topic FROM ({generation.live_sql(key)})").fetchall()
                }
            elif key in kept:
                generation.drop(key)
                del kept[key]
            known = set().union(*kept.values())
            asked = [f"text {n}" for n in range(20)]
            assert found(database, generation, asked, tmp_path) == {text: vector(text) for text in known}, step


def test_a_database_that_is_used_again_reads_no_file_twice(
    store: VectorStore, generation: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def named(files: Iterable[Path]) -> str:
        files = list(files)
        read.extend(map(Path, files))
        return literals(files)

    monkeypatch.setattr(known_vectors, "literals", named)
    with changes_database(spill=tmp_path / "spill") as database:
        for n in range(12):
            write(generation, f"p{n}", {"a": f"text {n}"})
            assert found(database, generation, [f"text {n}", "unknown"], tmp_path).keys() == {f"text {n}"}
    # Each is named for the table of files and for its rows, and the first look is one without a memory.
    assert len(read) <= 2 * 12 + 1


@pytest.mark.parametrize("is_used_again", [False, True])
def test_files_that_another_run_drops_meanwhile_do_not_fail_the_search(
    store: VectorStore, generation: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_used_again: bool
) -> None:
    for n in range(3):
        write(generation, f"p{n}", {"a": f"text {n}"})
    files, dropped = known_vectors._places, ["p1"]

    def dropping(*arguments: object):  # type: ignore[no-untyped-def]
        if dropped:
            generation.drop(dropped.pop())
        return files(*arguments)  # type: ignore[arg-type]

    with changes_database(spill=tmp_path / "spill") as database:
        if is_used_again:
            found(database, generation, ["text 0"], tmp_path)
        monkeypatch.setattr(known_vectors, "_places", dropping)
        asked = [f"text {n}" for n in range(3)]
        assert found(database, generation, asked, tmp_path).keys() == {"text 0", "text 2"}
        assert not dropped


def test_vectors_of_another_generation_under_the_same_model_are_known_too(
    store: VectorStore, generation: Generation, tmp_path: Path
) -> None:
    write(generation, "p", {"a": "one"})
    write(store.generation(ModelCard("org/Mini-LM", "beef", DIMENSION), METADATA), "p", {"a": "two"})
    wider = store.generation(generation.card, METADATA.append(METADATA.field("topic").with_name("more")))
    with changes_database(spill=tmp_path / "spill") as database:
        for _ in range(2):
            assert found(database, wider, ["one", "two"], tmp_path).keys() == {"one"}
