"""Segments just committed: taken once, bounded, never in place of what a merge left."""

from pathlib import Path

import pyarrow as pa
from store_contents import upserts

from fletcher_core.store import Generation
from fletcher_core.store.recent import RecentSegments


def table(values: int) -> pa.Table:
    return pa.table({"x": pa.array(range(values), pa.int64())})


def test_it_is_given_once() -> None:
    recent = RecentSegments(10_000)
    recent.put("a", Path("a.parquet"), table(3))
    assert recent.take("a", Path("a.parquet")) == table(3)
    assert recent.take("a", Path("a.parquet")) is None


def test_the_oldest_gives_way() -> None:
    recent = RecentSegments(limit=2 * table(100).nbytes)
    for label in "abc":
        recent.put(label, Path(label), table(100))
    assert [label for label in "abc" if recent.take(label, Path(label))] == ["b", "c"]


def test_what_alone_is_too_large_is_not_kept() -> None:
    recent = RecentSegments(limit=100)
    recent.put("a", Path("a"), table(100))
    recent.put("b", Path("b"), table(5))
    assert recent.take("a", Path("a")) is None
    assert recent.take("b", Path("b")) == table(5)


def test_after_a_merge_the_file_counts() -> None:
    recent = RecentSegments(10_000)
    recent.put("a", Path("a.parquet"), table(3))
    assert recent.take("a", Path("merged.parquet")) is None


def test_memory_and_disk_give_the_same_rows(generation: Generation) -> None:
    generation.recent = RecentSegments(10_000_000)
    segment = generation.write_segment("p", upserts({"a": "one", "b": "two"}), "run")
    from_memory = generation.read_segment(segment.label)
    assert generation.recent.take(segment.label, segment.file) is None
    assert generation.read_segment(segment.label).equals(from_memory)
