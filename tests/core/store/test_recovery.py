"""What killed runs, and people with a file manager, leave behind."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from store_contents import check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.errors import ConfigError, StoreError
from fletcher_core.store import Generation, VectorStore
from fletcher_core.store.database import Database


def test_temporary_files_are_swept(store: VectorStore, generation: Generation) -> None:
    segment = write(generation, "p", {"a": "one"})
    leftovers = [
        segment.file.with_name("seg-1.parquet.abc.tmp"),
        store.root / "sequence_floor.abc.tmp",
        store.root / generation.name / "schema.parquet.abc.tmp",
    ]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    open_store(store.root).close()
    assert not any(leftover.exists() for leftover in leftovers)
    assert live_texts(generation) == {("p", "a"): "one"}


def test_a_partition_in_use_is_left_alone(store: VectorStore, generation: Generation) -> None:
    with generation.locked("p", "busy"):
        segment = write(generation, "p", {"a": "one"})
        temporary = segment.file.with_name("seg-1.parquet.abc.tmp")
        temporary.write_bytes(b"being written")
        open_store(store.root).close()
        assert temporary.exists()
    with generation.locked("p", "next"):
        assert not temporary.exists()


def test_workspaces_of_dead_runs_are_swept_and_those_of_living_ones_stay(store: VectorStore) -> None:
    dead = store.root / "work" / "dead"
    (dead / "spill").mkdir(parents=True)
    with store.workspace("run") as mine, store.workspace("run") as another:
        assert mine != another
        (mine / "file").write_bytes(b"x")
        open_store(store.root).close()
        assert (mine / "file").exists()
        assert not dead.exists()
    assert not mine.exists()
    assert not list((store.root / "locks").iterdir())


def test_a_segment_file_that_vanished_is_forgotten_at_the_next_run(
    store: VectorStore, generation: Generation, caplog: pytest.LogCaptureFixture
) -> None:
    lost = write(generation, "p", {"a": "one"})
    write(generation, "p", {"b": "two"})
    lost.file.unlink()
    with pytest.raises(StoreError, match=lost.label):
        generation.row_count()
    with pytest.raises(StoreError, match=lost.label):
        generation.read_segment(lost.label)
    with caplog.at_level(logging.WARNING), generation.locked("p", "next"):
        assert lost.label in caplog.text
        assert live_texts(generation) == {("p", "b"): "two"}
    check_invariants(store)


def test_a_foreign_file_among_the_segments_is_named(store: VectorStore, generation: Generation) -> None:
    segment = write(generation, "p", {"a": "one"})
    (segment.file.parent / "foreign.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(StoreError, match=r"foreign\.parquet' is damaged or no segment.*move it"):
        open_store(store.root)


def test_a_damaged_segment_is_named(generation: Generation) -> None:
    segment = write(generation, "p", {"a": "one"})
    segment.file.write_bytes(segment.file.read_bytes()[:200])
    with pytest.raises(StoreError, match=segment.label):
        generation.read_segment(segment.label)
    with pytest.raises(StoreError, match=segment.label):
        generation.row_count()


def test_a_damaged_identity_is_named(store: VectorStore, generation: Generation) -> None:
    (store.root / generation.name / "schema.parquet").write_bytes(b"?")
    with pytest.raises(StoreError, match=r"schema\.parquet' is missing or damaged"):
        open_store(store.root)


def test_a_store_can_be_moved_and_copied(store: VectorStore, generation: Generation, tmp_path: Path) -> None:
    write(generation, "p", {"a": "one"})
    store.close()
    shutil.copytree(store.root, tmp_path / "copy")
    shutil.move(store.root, tmp_path / "moved")
    for root in (tmp_path / "copy", tmp_path / "moved"):
        with open_store(root) as moved:
            write(generation_of(moved), "p", {"a": "two"})
            assert live_texts(generation_of(moved)) == {("p", "a"): "two"}
            check_invariants(moved)


def test_a_store_needs_a_usable_folder_and_a_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot use .*file"):
        open_store(tmp_path / "file")
    with pytest.raises(ConfigError, match="collection name"):
        VectorStore.open(tmp_path, collection="")


def test_a_partition_costs_the_same_however_many_others_there_are(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(30):
        write(generation, f"p{n}", {"a": "one"})
    read, rows = Database.read, []

    def counted(database: Database, *arguments: Any) -> list[tuple[Any, ...]]:
        found = read(database, *arguments)
        rows.append(len(found))
        return found

    monkeypatch.setattr(Database, "read", counted)
    with generation.locked("p7", "run"):
        assert sum(rows) < 10
    open_store(store.root).close()
    assert sum(rows) < 60
