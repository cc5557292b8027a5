"""Compaction, when nothing goes wrong. What happens when something does is in test_store_crash.py."""

from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_contents import check_invariants, generation_of, live_texts, upserts, write

from fletcher_core.errors import StoreLockedError
from fletcher_core.store import Generation, VectorStore, compaction
from fletcher_core.store.compaction import _FULL_BYTES as FULL
from fletcher_core.store.compaction import _survivors, files_to_merge
from fletcher_core.store.segments import read_labelled


def test_files_become_one_without_superseded_rows(store: VectorStore, generation: Generation) -> None:
    for text in ("one", "two", "three"):
        write(generation, "p", {"a": text, "b": f"{text} b"})
    write(generation, "q", {"a": "alone"})
    before = live_texts(generation)
    report = generation.compact()
    assert (report.files_before, report.files_after, report.rows_before, report.rows_after) == (4, 2, 7, 3)
    assert report.bytes_after < report.bytes_before
    assert live_texts(generation) == before
    assert [segment.upserts for segment in generation.segments()] == [2, 1]
    check_invariants(store)
    again = generation.compact()
    assert (again.rows_before, again.rows_after) == (3, 3)
    assert again.bytes_after == again.bytes_before


def test_deletes_go_once_the_file_is_alone(store: VectorStore, generation: Generation) -> None:
    write(generation, "p", {"a": "one", "b": "two"})
    write(generation, "p", {"a": None})
    assert generation.compact("p").rows_after == 1
    check_invariants(store)
    write(generation, "p", {"b": None})
    report = generation.compact("p")
    assert (report.files_before, report.files_after, report.rows_before, report.rows_after) == (2, 0, 2, 0)
    assert generation.files() == []
    assert generation.row_count() == 0
    check_invariants(store)


def test_deletes_stay_until_every_target_that_was_ever_served_has_them(
    store: VectorStore, generation: Generation
) -> None:
    first = write(generation, "p", {"a": "one", "b": "two"})
    store.manifest.record_delivery("t", first.label, "applied")
    store.manifest.record_delivery("u", first.label, "applied")
    deleted = write(generation, "p", {"a": None})
    generation.compact("p")
    assert generation.read_segment(deleted.label)["op"].to_pylist() == ["delete"]
    store.manifest.record_delivery("t", deleted.label, "applied")
    generation.compact("p")
    assert [segment.label for segment in store.manifest.undelivered("u", generation.name)] == [deleted.label]
    store.manifest.record_delivery("u", deleted.label, "searchable")
    generation.compact("p")
    assert [segment.label for segment in generation.segments()] == [first.label]
    check_invariants(store)


def test_a_target_stays_known_when_all_that_it_received_is_superseded(
    store: VectorStore, generation: Generation
) -> None:
    first = write(generation, "p", {"a": "one"})
    store.manifest.record_delivery("t", first.label, "applied")
    deleted = write(generation, "p", {"a": None})
    generation.compact("p")
    generation.compact("p")
    assert [segment.label for segment in generation.segments()] == [deleted.label]


def test_labels_and_their_deliveries_survive_in_the_merged_file(store: VectorStore, generation: Generation) -> None:
    labels = [write(generation, "p", {text: text}).label for text in ("a", "b", "c")]
    store.manifest.record_delivery("t", labels[0], "applied", rows=1)
    write(generation, "p", {"b": "new b"})
    generation.compact("p")
    assert [segment.label for segment in generation.segments()][:2] == [labels[0], labels[2]]
    assert generation.read_segment(labels[0])["id"].to_pylist() == ["a"]
    assert generation.read_segment(labels[1]).num_rows == 0
    assert store.manifest.delivery("t", labels[0]).state == "applied"
    assert sum(segment.bytes for segment in generation.segments()) <= generation.files()[0].stat().st_size


def test_a_merged_file_keeps_the_order_of_sequences_and_full_row_groups(
    generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.store.compaction.row_group_rows", lambda _: 10)
    for number in range(7):
        write(generation, "p", {f"{number} {row}": "text" for row in range(6)})
    generation.compact("p")
    file = pq.ParquetFile(generation.files()[0])
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 10, 10, 2]
    sequences = file.read(["sequence"])["sequence"].to_pylist()
    assert sequences == sorted(sequences)
    label = generation.segments()[3].label
    assert generation.read_segment(label)["id"].to_pylist() == [f"3 {row}" for row in range(6)]


def test_automatic_compaction_waits_for_many_files_and_spares_the_large_ones(
    store: VectorStore, generation: Generation
) -> None:
    generation.write_segment("p", upserts({str(row): f"text {row}" for row in range(3000)}), "run")
    (large,) = generation.files()
    for number in range(4):
        write(generation, "p", {"a": str(number)})
    assert generation.compact_if_needed("p", max_segments=5) is None
    report = generation.compact_if_needed("p", max_segments=4)
    assert report is not None
    assert (report.files_before, report.files_after) == (4, 1)
    assert generation.files()[0] == large
    assert live_texts(generation)["p", "a"] == "3"
    check_invariants(store)


def test_automatic_compaction_rewrites_a_row_a_logarithmic_number_of_times(
    store: VectorStore, generation: Generation
) -> None:
    rewritten = 0
    for number in range(64):
        write(generation, "p", {f"{number} {row}": "text" for row in range(20)})
        report = generation.compact_if_needed("p", max_segments=4)
        rewritten += report.rows_before if report else 0
        assert len(generation.files("p")) <= 4
    assert generation.row_count() == 64 * 20
    assert rewritten < 8 * 64 * 20  # merging all files each time would make it about 16
    check_invariants(store)


@given(sizes=st.lists(st.sampled_from([1, 1000, FULL - 1, FULL, 10 * FULL]), max_size=60), most=st.integers(1, 5))
def test_full_files_are_merged_only_when_they_are_many(sizes: list[int], most: int) -> None:
    files = {Path(str(at)): size for at, size in enumerate(sizes)}
    chosen = files_to_merge(files, most)
    assert chosen == list(files)[len(files) - len(chosen) :], "the newest, in order"
    assert len(chosen) != 1
    assert len(files) - len(chosen) + bool(chosen) <= 4 * most
    small_at_the_end = len(list(takewhile(lambda size: size < FULL, reversed(sizes))))
    if len(chosen) > small_at_the_end:
        assert len(files) > 4 * most
        assert len(chosen) > len(files) - most
    elif small_at_the_end > most:
        assert len(chosen) > small_at_the_end - most
    else:
        assert not chosen


def test_runs_that_each_write_many_small_files_keep_them_few() -> None:
    """What is merged of one run's files is full, so that only their number in all says that they are many."""
    files: dict[Path, int] = {}
    for run in range(1000):
        files |= {Path(f"{run} {at}"): FULL // 32 for at in range(33)}
        if chosen := files_to_merge(files, 32):
            merged = sum(files.pop(file) for file in chosen)
            files[Path(f"{run} merged")] = merged
        assert len(files) <= 128


def test_files_of_which_most_rows_were_replaced_are_merged(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "_FULL_BYTES", 1)
    for text in ("one", "two", "three"):
        write(generation, "p", {str(row): text for row in range(5)})
    assert generation.compact_if_needed("p", live_rows=5) is None, "there is little of them"
    monkeypatch.setattr(compaction, "_WORTH_BYTES", 1)
    assert generation.compact_if_needed("p") is None
    assert generation.compact_if_needed("p", live_rows=5) is None, "two thirds"
    write(generation, "p", {str(row): "four" for row in range(5)})
    report = generation.compact_if_needed("p", live_rows=5)
    assert report is not None
    assert (report.files_after, report.rows_before, report.rows_after) == (1, 20, 5)
    write(generation, "p", {"0": None})
    assert generation.compact_if_needed("p", live_rows=4) is None
    check_invariants(store)


def test_a_run_that_writes_full_files_merges_none_of_them(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write(generation, "p", {f"{number} {row}": "text" for row in range(5)})
    monkeypatch.setattr(compaction, "_FULL_BYTES", min(file.stat().st_size for file in generation.files("p")))
    assert generation.compact_if_needed("p", max_segments=2) is None
    monkeypatch.setattr(compaction, "_MANY_TIMES", 1)
    report = generation.compact_if_needed("p", max_segments=2)
    assert report is not None
    assert (report.files_before, report.files_after) == (3, 1)
    check_invariants(store)


def test_a_partition_in_use_is_passed_over_unless_it_is_named(store: VectorStore, generation: Generation) -> None:
    for key in ("p", "q"):
        for text in ("one", "two"):
            write(generation, key, {"a": text})
    with generation_of(store).locked("p", "busy"):
        assert generation.compact().files_before == 2
        with pytest.raises(StoreLockedError, match="'busy'"):
            generation.compact("p")
    assert len(generation.files("p")) == 2
    assert len(generation.files("q")) == 1


def test_readers_follow_when_their_file_is_merged_away(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [write(generation, "p", {text: text}).label for text in ("a", "b")]
    reader, reads = generation_of(store), []

    def just_after_a_compaction(path: Path, label: str) -> pa.Table:
        reads.append(path)
        if len(reads) == 1:
            generation.compact("p")
        return read_labelled(path, label)

    monkeypatch.setattr("fletcher_core.store.generation.read_labelled", just_after_a_compaction)
    assert reader.read_segment(labels[0])["id"].to_pylist() == ["a"]
    assert len(set(reads)) == 2
    assert reads[1:] == generation.files()


def test_reading_a_segment_lists_no_other_files(
    store: VectorStore, generation: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = write(generation, "p", {"a": "one"}).label

    def listed(*of: str) -> list[Path]:
        raise AssertionError(of)  # of all segments for each of them: the square of their number

    monkeypatch.setattr(generation.manifest, "files", listed)
    assert generation.read_segment(label)["id"].to_pylist() == ["a"]


def test_a_merge_keeps_a_bit_a_sequence_and_more_only_of_rows_that_others_are_dropped_for(
    store: VectorStore, generation: Generation
) -> None:
    write(generation, "q", {"elsewhere": "one"})
    write(generation, "p", {f"row {number}": "one" for number in range(100)})
    write(generation, "p", {"row 7": "two", "row 8": None, "new": "one"})
    survivors = _survivors(store.root, generation.files("p"), keep_deletes=True)
    assert len(survivors.bits) == 103 // 8 + 1
    assert len(survivors.heirs) == len(survivors.replaces) == 2
    assert survivors.lowest == 2
    upserts_alone = _survivors(store.root, generation.files("p"), keep_deletes=False)
    assert int(np.unpackbits(survivors.bits).sum()) - 1 == int(np.unpackbits(upserts_alone.bits).sum()) == 100
