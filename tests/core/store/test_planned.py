"""Segments that one process plans and commits, and another writes."""

import pickle
from pathlib import Path

import pytest
from store_contents import check_invariants, generation_of, live_texts, upserts

from fletcher_core.errors import StoreError, StoreLockedError
from fletcher_core.store import VectorStore
from fletcher_core.store.planned import write_planned


@pytest.fixture
def store(tmp_path: Path) -> VectorStore:
    return VectorStore.open(tmp_path / "vectors", collection="docs")


def test_it_counts_once_it_is_adopted(store: VectorStore) -> None:
    generation = generation_of(store)
    with store.workspace("run") as folder, generation.locked("p", "run"):
        plan = pickle.loads(pickle.dumps(generation.plan_segment("p", 5, "run", folder)))
        written = write_planned(plan, upserts({"a": "one", "b": "two"}), 12.5)
        written = write_planned(plan, upserts({"a": "one", "b": "two"}), 12.5)  # by another, when the first was lost
        assert live_texts(generation) == {}
        segment = generation.adopt(pickle.loads(pickle.dumps(written)))
        assert (segment.rows, segment.run_id, segment.committed_at) == (2, "run", 12.5)
        assert segment.first_sequence == plan.first_sequence
        assert segment.last_sequence == plan.first_sequence + 1
        later = generation.plan_segment("p", 1, "run", folder)
        assert later.first_sequence == plan.first_sequence + 5, "what was planned is given to nobody else"
        assert live_texts(generation) == {("p", "a"): "one", ("p", "b"): "two"}
    check_invariants(store)


def test_a_lost_writer_that_goes_on_changes_nothing(store: VectorStore) -> None:
    generation = generation_of(store)
    with store.workspace("run") as folder, generation.locked("p", "run"):
        plan = generation.plan_segment("p", 1, "run", folder)
        generation.adopt(write_planned(plan, upserts({"a": "one"}), 1.0))
        lost = generation.plan_segment("p", 1, "run", folder)
    write_planned(plan, upserts({"a": "late"}), 2.0)
    write_planned(lost, upserts({"b": "late"}), 2.0)
    with VectorStore.open(store.root, collection="docs") as again:
        assert live_texts(generation_of(again)) == {("p", "a"): "one"}
        assert not list((store.root / "work").glob("*")), "opening the store sweeps what was left"
        check_invariants(again)


def test_a_lost_writer_does_not_touch_what_is_written_again(store: VectorStore) -> None:
    generation = generation_of(store)
    with store.workspace("run") as folder, generation.locked("p", "run"):
        lost = generation.plan_segment("p", 2, "run", folder)
        again = lost.again()
        assert (again.first_sequence, again.rows) == (lost.first_sequence, lost.rows)
        written = write_planned(again, upserts({"a": "one", "b": "two"}), 1.0)
        write_planned(lost, upserts({"a": "late"}), 2.0)
        generation.adopt(written)
        write_planned(lost, upserts({"a": "late"}), 2.0)
    assert live_texts(generation) == {("p", "a"): "one", ("p", "b"): "two"}
    check_invariants(store)


def test_a_file_that_is_gone_or_cut_is_not_adopted(store: VectorStore) -> None:
    generation = generation_of(store)
    with store.workspace("run") as folder, generation.locked("p", "run"):
        written = write_planned(generation.plan_segment("p", 1, "run", folder), upserts({"a": "one"}), 1.0)
        assert isinstance(written.plan.where, Path)
        content = written.plan.where.read_bytes()
        written.plan.where.write_bytes(content[:-8])
        with pytest.raises(StoreError, match="bytes long, not"):
            generation.adopt(written)
        written.plan.where.unlink()
        with pytest.raises(StoreError, match="is gone: all of them must see the store on one file system"):
            generation.adopt(written)
    assert live_texts(generation) == {}
    check_invariants(store)


def test_a_partition_that_another_run_has_is_not_adopted_into(store: VectorStore) -> None:
    mine, others = generation_of(store), generation_of(store)
    with store.workspace("run") as folder, others.locked("p", "other"):
        written = write_planned(mine.plan_segment("p", 1, "run", folder), upserts({"a": "one"}), 1.0)
        with pytest.raises(StoreLockedError, match="'other'"):
            mine.adopt(written)
