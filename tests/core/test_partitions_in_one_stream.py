"""Several partitions through one stream: the same vectors, rows and reports as one run each, whatever their sizes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from fletcher_core.embedder import Embedder
from fletcher_core.errors import ConfigError, InputError, RunCancelled, SourceError, StoreError, StoreLockedError
from fletcher_core.partition_run import PartitionRun
from fletcher_core.pipeline import MaterializeSettings, materialize, materialize_partitions
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress, RunReport

SIZES = {"a": 3, "b": 0, "c": 40, "d": 1, "e": 7, "f": 0, "g": 90}
PARTITIONS = [Partition(key, value=key) for key in SIZES]


@pytest.fixture
def source(tmp_path: Path) -> DuckDBTable:
    path = tmp_path / "notes.duckdb"
    rows = [
        (f"{key}{n}", f"note {n % 5} of {key}" if n % 3 else f"common {n}", key)
        for key, size in SIZES.items()
        for n in range(size)
    ]
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE notes (id VARCHAR, text VARCHAR, part VARCHAR)")
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?)", rows)
    return DuckDBTable(path, "notes", partition_column="part")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore.open(tmp_path / "vectors", collection="notes") as store:
        yield store


def change(source: DuckDBTable, statement: str) -> None:
    with duckdb.connect(str(source.database)) as connection:
        connection.execute(statement)


def vectors(store: VectorStore) -> dict[tuple[str, str], np.ndarray]:
    generation = store.current()
    assert generation is not None
    rows = duckdb.sql(generation.live_sql()).to_arrow_table()
    found = np.stack(rows["vector"].to_pylist()) if rows.num_rows else np.empty((0, 1))
    return dict(zip(zip(rows["partition_key"].to_pylist(), rows["id"].to_pylist(), strict=True), found, strict=True))


def test_each_partition_gets_its_own_rows_and_report(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, tmp_path: Path
) -> None:
    seen: list[RunReport] = []
    reports = materialize_partitions(source, PARTITIONS, embedder=minilm, store=store, committed=seen.append)
    assert seen == reports
    assert {report.partition_key: report.new for report in reports} == SIZES
    assert {report.partition_key: report.rows_in_store for report in reports} == SIZES
    assert all(report.embedded + report.cache_hits == report.new for report in reports)
    assert [sum(report.lengths) for report in reports] == [report.embedded for report in reports]
    assert all(slow.seconds > 0 for report in reports for slow in report.slowest)
    assert all(len(report.slowest) == min(report.embedded, 10) for report in reports)
    with VectorStore.open(tmp_path / "single", collection="notes") as single:
        for partition in PARTITIONS:
            materialize(source, embedder=minilm, store=single, partition=partition)
        expected, found = vectors(single), vectors(store)
    assert expected.keys() == found.keys()
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, atol=1e-3)


def test_windows_hold_rows_of_several_partitions(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.stream._FILL_SECONDS", 60.0)
    reports = materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)
    # 141 rows in windows of 64 or more: fewer than the five partitions that have rows would need, each alone.
    assert len(reports[-1].timeline) in (2, 3)


def test_a_second_run_reports_unchanged_partitions_too(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)
    change(source, "UPDATE notes SET text = 'another' WHERE id = 'c7'")
    change(source, "DELETE FROM notes WHERE part = 'e'")
    again = materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)
    assert {report.partition_key: report.unchanged for report in again} == SIZES | {"c": 39, "e": 0}
    assert {report.partition_key: report.deleted for report in again if report.deleted} == {"e": 7}
    assert {report.partition_key: report.changed for report in again if report.changed} == {"c": 1}
    assert sum(report.embedded for report in again) == 1


def test_a_run_that_ends_early_reports_only_what_is_whole(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    seen: list[RunReport] = []
    gone = [*PARTITIONS[:3], Partition("later", column="nowhere", value="x")]
    with pytest.raises(SourceError, match="nowhere"):
        materialize_partitions(source, gone, embedder=minilm, store=store, committed=seen.append)
    whole = {report.partition_key for report in seen}
    again = materialize_partitions(source, PARTITIONS[:3], embedder=minilm, store=store)
    assert all(report.new == 0 for report in again if report.partition_key in whole)


def test_a_store_that_fails_costs_the_partitions_before_it_no_report(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.stream._FILL_SECONDS", 60.0)
    commit, seen = PartitionRun.commit, []

    def failing(run: PartitionRun, rows: pa.Table) -> None:
        if run.partition.key == "d":
            raise StoreError("the disk is full")
        commit(run, rows)

    monkeypatch.setattr(PartitionRun, "commit", failing)
    with pytest.raises(StoreError, match="full"):
        materialize_partitions(source, PARTITIONS, embedder=minilm, store=store, committed=seen.append)
    assert [report.partition_key for report in seen] == ["a", "b", "c"]


def test_no_partition_at_all_is_refused(source: DuckDBTable, store: VectorStore, minilm: Embedder) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        materialize_partitions(source, [], embedder=minilm, store=store)


def test_a_partition_in_use_costs_the_others_nothing(source: DuckDBTable, store: VectorStore, minilm: Embedder) -> None:
    materialize(source, embedder=minilm, store=store, partition=PARTITIONS[0])
    generation = store.current()
    assert generation is not None
    seen: list[RunReport] = []
    with generation.locked("c", "another"), pytest.raises(StoreLockedError, match="'c'"):
        materialize_partitions(source, PARTITIONS, embedder=minilm, store=store, committed=seen.append)
    assert [report.partition_key for report in seen] == ["a", "b", "d", "e", "f", "g"]
    assert materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)[2].new == 40  # no lock was left


def test_rows_that_a_policy_refuses_fail_their_partition_alone(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    change(source, "UPDATE notes SET text = ' ' WHERE id IN ('a1', 'g1')")
    seen: list[RunReport] = []
    with pytest.raises(InputError, match=r"a1.*1 more of 7 partitions failed"):
        materialize_partitions(
            source, PARTITIONS, embedder=minilm, store=store, committed=seen.append,
            settings=MaterializeSettings(on_empty="error"),
        )  # fmt: skip
    assert [report.partition_key for report in seen] == ["b", "c", "d", "e", "f"]


def test_a_cancelled_run_has_reported_what_is_whole_and_kept_the_rest(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    cancelled, seen, progress = threading.Event(), [], []

    def stop(report: RunReport) -> None:
        seen.append(report.partition_key)
        if len(seen) == 2:
            cancelled.set()

    few = MaterializeSettings(segment_rows=4)
    with pytest.raises(RunCancelled):
        materialize_partitions(
            source, PARTITIONS, embedder=minilm, store=store, committed=stop, cancelled=cancelled, settings=few,
            progress=progress.append,
        )  # fmt: skip
    assert seen[:2] == ["a", "b"]
    last: Progress = progress[-1]
    assert last.committed == len(vectors(store)) < sum(SIZES.values())
    assert (last.partitions, last.partitions_done) == (7, len(seen))
    rest = materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)
    assert sum(report.new for report in rest) == sum(SIZES.values()) - last.committed
    assert {report.partition_key: report.rows_in_store for report in rest} == SIZES


def test_a_budget_leaves_the_rest_to_the_next_runs(source: DuckDBTable, store: VectorStore, minilm: Embedder) -> None:
    settings = MaterializeSettings(max_rows=60)
    rows = []
    for _ in range(4):
        reports = materialize_partitions(source, PARTITIONS, embedder=minilm, store=store, settings=settings)
        rows.append((sum(report.rows_in_store for report in reports), sum(report.remaining for report in reports)))
    assert rows == [(60, 81), (120, 21), (141, 0), (141, 0)]


def test_a_budget_keeps_the_earlier_model_until_it_is_replaced(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    shorter = Embedder.load(max_length=32)
    materialize_partitions(source, PARTITIONS, embedder=minilm, store=store)
    settings = MaterializeSettings(max_rows=100)
    first = materialize_partitions(source, PARTITIONS, embedder=shorter, store=store, settings=settings)
    assert [report.remaining for report in first] == [0, 0, 0, 0, 0, 0, 41]
    assert {generation.card.fingerprint for generation in store.generations() if generation.row_count("g")} == {
        shorter.card.fingerprint,
        minilm.card.fingerprint,
    }
    second = materialize_partitions(source, PARTITIONS, embedder=shorter, store=store, settings=settings)
    assert [report.stale for report in second] == [0, 0, 0, 0, 0, 0, 41]
    assert [generation.row_count() for generation in store.generations()] == [141, 0]


def test_few_partitions_are_held_at_a_time_where_nothing_changed(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.stream._FILL_SECONDS", 0.0)
    monkeypatch.setattr("fletcher_core.stream._WAITING_WORK", 2)
    opened, held = PartitionRun.opened, []

    def counted(*arguments: object) -> PartitionRun:
        held.append(len(list((store.root / "work").iterdir())))
        return opened(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(PartitionRun, "opened", counted)
    empty = [Partition(f"empty {n}", value=f"empty {n}") for n in range(40)]
    assert len(materialize_partitions(source, empty, embedder=minilm, store=store)) == 40
    assert max(held) < 15


def test_a_run_over_unchanged_partitions_can_be_cancelled(
    source: DuckDBTable, store: VectorStore, minilm: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fletcher_core.sql._LOOK_SECONDS", 60.0)  # no query here takes as long as to be interrupted
    cancelled, seen = threading.Event(), []
    empty = [Partition(f"empty {n}", value=f"empty {n}") for n in range(3)]
    cancelled.set()
    with pytest.raises(RunCancelled):
        materialize_partitions(source, empty, embedder=minilm, store=store, cancelled=cancelled, committed=seen.append)
    assert not seen


def test_a_budget_is_not_spent_again_and_again_on_rows_that_are_refused(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    strict = Embedder.load(max_length=32, long_text="error")
    long = "'" + "long " * 100 + "' || id"
    change(source, f"UPDATE notes SET text = {long} WHERE part = 'c' AND id < 'c3'")
    refused = ids(source, "text LIKE 'long%'")
    settings, partition = MaterializeSettings(max_rows=5), [PARTITIONS[2]]
    stored, remaining = [], []
    for _ in range(2 + SIZES["c"] // 5):
        (report,) = materialize_partitions(source, partition, embedder=strict, store=store, settings=settings)
        stored.append(report.rows_in_store)
        remaining.append(report.remaining)
    assert len(refused) > 5
    assert stored[-1] == SIZES["c"] - len(refused)
    assert remaining[-1] == 0
    assert sorted(store.quarantine.read("c")["id"].to_pylist()) == refused


def test_rows_that_are_refused_do_not_keep_the_next_partition_from_its_turn(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    strict = Embedder.load(max_length=32, long_text="error")
    change(source, "UPDATE notes SET text = '" + "long " * 100 + "' || id WHERE part = 'c'")
    settings, partitions = MaterializeSettings(max_rows=20), [PARTITIONS[2], PARTITIONS[6]]
    stored = [0]
    while stored[-1] < SIZES["g"]:
        reports = materialize_partitions(source, partitions, embedder=strict, store=store, settings=settings)
        stored.append(reports[1].rows_in_store)
        if len(stored) > 2 + SIZES["c"] // 20:  # every row of c was refused once
            assert stored[-1] >= min(stored[-2] + 10, SIZES["g"])
    assert store.quarantine.read("c").num_rows == SIZES["c"]


def ids(source: DuckDBTable, condition: str) -> list[str]:
    with duckdb.connect(str(source.database)) as connection:
        return [
            row_id for (row_id,) in connection.execute(f"SELECT id FROM notes WHERE {condition} ORDER BY id").fetchall()
        ]


def test_partitions_that_are_none_or_named_twice_are_refused_before_anything_is_done(
    source: DuckDBTable, store: VectorStore, minilm: Embedder
) -> None:
    with pytest.raises(ConfigError, match="no partition was named"):
        materialize_partitions(source, [], embedder=minilm, store=store)
    with pytest.raises(ConfigError, match="'c' is named twice"):
        materialize_partitions(source, [PARTITIONS[2], PARTITIONS[6], PARTITIONS[2]], embedder=minilm, store=store)
    assert not store.generations()
