"""Deliveries, the sequence counter, and a manifest that was lost or damaged."""

import logging
import re
import shutil
import time
from pathlib import Path

import pytest
from store_contents import check_invariants, generation_of, live_texts, open_store, write

from fletcher_core.errors import StoreError
from fletcher_core.store import Delivery, Generation, Manifest, VectorStore
from fletcher_core.store.manifest import SEQUENCE_LIMIT


@pytest.fixture
def labels(generation: Generation) -> list[str]:
    return [write(generation, key, {"a": key}).label for key in ("p", "q", "r")]


def test_everything_is_undelivered_at_first_in_sequence_order(
    store: VectorStore, generation: Generation, labels: list[str]
) -> None:
    assert [segment.label for segment in store.manifest.undelivered("t", generation.name)] == labels
    assert store.manifest.delivery("t", labels[0]) == Delivery("t", labels[0])
    assert store.manifest.deliveries("t", generation.name) == []


def test_a_delivery_goes_through_its_states_with_times(
    store: VectorStore, generation: Generation, labels: list[str]
) -> None:
    manifest, started = store.manifest, time.time()
    manifest.record_delivery("t", labels[1], "sending")
    manifest.record_delivery("t", labels[1], "sent", rows=1, bytes=99)
    manifest.record_delivery("t", labels[1], "applied")
    delivery = manifest.delivery("t", labels[1])
    assert (delivery.state, delivery.rows, delivery.bytes) == ("applied", 1, 99)
    times = [delivery.sending_at, delivery.sent_at, delivery.applied_at]
    assert started <= (times[0] or 0) <= (times[1] or 0) <= (times[2] or 0) <= time.time()
    assert delivery.searchable_at is None
    assert [segment.label for segment in manifest.undelivered("t", generation.name)] == [labels[0], labels[2]]
    assert len(manifest.undelivered("another target", generation.name)) == 3
    manifest.record_delivery("t", labels[1], "searchable")
    manifest.record_delivery("t", labels[0], "sent", rows=1)
    assert len(manifest.undelivered("t", generation.name)) == 2
    assert [delivery.label for delivery in manifest.deliveries("t", generation.name)] == labels[:2]


def test_deliveries_are_counted_by_state_of_one_generation_and_target(
    store: VectorStore, generation: Generation, labels: list[str]
) -> None:
    other = store.generation(generation.card, generation.metadata_schema, "float16")
    manifest, name = store.manifest, generation.name
    manifest.record_delivery("t", write(other, "p", {"a": "one"}).label, "applied", rows=7)
    manifest.record_delivery("u", labels[0], "searchable", rows=5)
    assert manifest.delivery_counts("t", name) == {"pending": (3, 3)}
    assert manifest.rows_delivered("t", name) == 0
    manifest.record_delivery("t", labels[2], "applied", rows=2)  # a copy of its row is there already
    manifest.record_delivery("t", labels[0], "applied", rows=1)
    manifest.record_delivery("t", labels[1], "sent", rows=1)
    assert manifest.labels_in("t", name, "applied") == [labels[0], labels[2]]
    assert manifest.labels_in("t", name, "searchable") == []
    assert manifest.delivery_counts("t", name) == {"applied": (2, 2), "sent": (1, 1)}
    assert manifest.rows_delivered("t", name) == 3
    manifest.record_delivery("t", labels[0], "searchable")
    assert manifest.delivery_counts("t", name) == {"applied": (1, 1), "searchable": (1, 1), "sent": (1, 1)}
    assert manifest.rows_delivered("t", name) == 3


def test_a_target_that_came_back_empty_gets_everything_again(
    store: VectorStore, generation: Generation, labels: list[str]
) -> None:
    other = store.generation(generation.card, generation.metadata_schema, "float16")
    other_label = write(other, "p", {"a": "one"}).label
    for label in (*labels, other_label):
        store.manifest.record_delivery("t", label, "applied", rows=1, bytes=9)
        store.manifest.record_delivery("u", label, "applied", rows=1, bytes=9)
    store.manifest.reset_deliveries("t", generation.name)
    assert len(store.manifest.undelivered("t", generation.name)) == 3
    assert store.manifest.undelivered("u", generation.name) == []
    assert store.manifest.undelivered("t", other.name) == []
    assert store.manifest.delivery("t", labels[0]).rows == 0


def test_a_delivery_of_a_segment_that_is_gone_is_passed_over(store: VectorStore, generation: Generation) -> None:
    store.manifest.record_delivery("t", "seg-gone", "sent", rows=1)
    assert store.manifest.delivery("t", "seg-gone").state == "pending"
    assert store.manifest.deliveries("t", generation.name) == []


def test_an_unknown_state_is_refused(store: VectorStore, labels: list[str]) -> None:
    with pytest.raises(StoreError, match="'lost'"):
        store.manifest.record_delivery("t", labels[0], "lost")  # type: ignore[arg-type]


def test_sequences_end_where_longbows_ids_end(store: VectorStore, generation: Generation) -> None:
    store.manifest.allocate(SEQUENCE_LIMIT - 2)
    write(generation, "p", {"a": "the last one"})
    with pytest.raises(StoreError, match=rf"{re.escape(str(store.root))}' has used up its 2\^32 sequences.*new store"):
        write(generation, "p", {"a": "one too many"})
    assert live_texts(generation) == {("p", "a"): "the last one"}


def test_a_lost_manifest_comes_back_from_the_files(store: VectorStore, generation: Generation) -> None:
    write(generation, "", {"a": "one", "b": "two"})
    write(generation, "Ä", {"a": "three"})
    generation.compact()
    write(generation, "", {"a": None, "c": "four"}, "last run")
    other = store.generation(generation.card, generation.metadata_schema, "float16")
    before = (generation.segments(), live_texts(generation), store.manifest.next_sequence())
    store.manifest.record_delivery("t", before[0][0].label, "applied")
    store.close()
    for file in store.root.glob("manifest.sqlite*"):
        file.unlink()
    with open_store(store.root) as rebuilt:
        again = generation_of(rebuilt)
        assert (again.segments(), live_texts(again), rebuilt.manifest.next_sequence()) == before
        assert {each.name for each in rebuilt.generations()} == {generation.name, other.name}
        current = rebuilt.current()
        assert current is not None
        assert current.name == generation.name
        assert len(rebuilt.manifest.undelivered("t", generation.name)) == 3
        check_invariants(rebuilt)


def test_inputs_that_a_lost_manifest_knew_to_be_merged_do_not_come_back(
    store: VectorStore, caplog: pytest.LogCaptureFixture
) -> None:
    generation = generation_of(store)
    for change in ({"a": "one"}, {"b": "two"}, {"b": "three"}):
        write(generation, "p", dict(change))
    files = generation.files()
    kept = [file.with_name(file.name + ".kept") for file in files]
    for file, copy in zip(files, kept, strict=True):
        shutil.copy(file, copy)
    generation.compact()
    store.close()
    (store.root / "manifest.sqlite").unlink()
    for file, copy in zip(files, kept, strict=True):
        copy.rename(file)
    with open_store(store.root) as rebuilt:
        assert live_texts(generation_of(rebuilt)) == {("p", "a"): "one", ("p", "b"): "three"}
        check_invariants(rebuilt)
        assert not any(file.exists() for file in files)
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_damaged_manifest_says_how_to_get_over_it(store: VectorStore) -> None:
    write(generation_of(store), "p", {"a": "one"})
    store.close()
    (store.root / "manifest.sqlite").write_bytes(b"no database at all" * 300)
    with pytest.raises(StoreError, match=r"manifest.sqlite.*delete it with its -wal and -shm"):
        open_store(store.root)
    (store.root / "manifest.sqlite").unlink()
    with open_store(store.root) as rebuilt:
        assert live_texts(generation_of(rebuilt)) == {("p", "a"): "one"}


def test_a_manifest_whose_rebuilding_was_interrupted_is_rebuilt(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        write(generation_of(store), "p", {"a": "one"})
    (tmp_path / "manifest.sqlite").unlink()
    Manifest(tmp_path).close()  # created, and then the process died
    with open_store(tmp_path) as store:
        assert live_texts(generation_of(store)) == {("p", "a"): "one"}
        check_invariants(store)
