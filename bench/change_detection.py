"""What finding the changes costs, against DuckDB's bare scan and hash of the same column.

Run: .venv/bin/python bench/change_detection.py [--rows 10_000_000] [--runs 1000] [--json FILE]

Builds a table with texts of about 300 bytes (DuckDB and Parquet) and a vector store that holds all of them, in a
temporary folder. Then times `detect_changes` when nothing changed, when 1 % of the texts did, and when the store is
empty, against `max(md5(text))`: each in a process and on a connection of its own, with the same threads and memory
limit, in turns; medians. The processor's seconds of the same calls tell more on a shared machine. With --runs the store
goes through so many small commits first, each ended as a run ends. The target for no change is at most 2x the scan.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from results import JSON_OPTION, Row, write_results

from fletcher_core.changes import detect_changes
from fletcher_core.models.card import ModelCard
from fletcher_core.sources import DuckDBTable, ParquetTable, Partition, Source, attached
from fletcher_core.sql import connect, literal
from fletcher_core.store import Generation, VectorStore

DIMENSION = 8
CARD = ModelCard("bench", "beef", DIMENSION)
SEGMENT_ROWS = 65_536
CHANGED_OF = 100  # one row of so many
COMMIT_ROWS = 200  # of each of --runs
MAX_SEGMENTS = 32  # `materialize`'s default
TEXT = "concat('Document ', i, ': ', repeat(concat(md5(i::VARCHAR), ' '), 8), (i * 7919) % 1000003)"


@dataclass(frozen=True)
class Settings:
    """What every measured connection gets."""

    memory_limit: str
    threads: int | None


@dataclass(frozen=True)
class Cost:
    """Of one call in a process of its own; `peak_mb` is the process's largest resident size."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Case:
    """Change detection, and what it must find."""

    name: str
    source: Source
    store: Path
    expected: dict[str, int]


@dataclass(frozen=True)
class Line:
    """A case's medians beside the scan's."""

    source: str
    case: str
    rows: int
    segments: int
    seconds: float
    scan_seconds: float
    ratio: float
    cpu_ratio: float
    peak_mb: float
    scan_peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=0, help="small commits before the last measurement of a no-op")
    parser.add_argument("--source", choices=("duckdb", "parquet", "both"), default="both")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", **JSON_OPTION)
    arguments = parser.parse_args()
    settings = Settings(arguments.memory_limit, arguments.threads)
    lines: list[Line] = []
    print(
        f"{arguments.rows:,} rows, DuckDB threads: {arguments.threads or 'all'}, memory limit {settings.memory_limit}"
    )
    print(
        f"{'source':<9}{'case':<16}{'files':>6}{'time':>10}{'scan+md5':>10}{'ratio':>7}{'CPU':>7}{'peak':>10}{'scan':>8}"
    )
    with tempfile.TemporaryDirectory(prefix="fletcher-bench-") as folder:
        for kind in ("duckdb", "parquet") if arguments.source == "both" else (arguments.source,):
            for line in measure(kind, Path(folder) / kind, arguments.rows, arguments.runs, arguments.repeats, settings):
                lines.append(line)
                print_line(line)
    rows = [
        Row(f"{line.source}, {line.case}", line.seconds, "s", "bare scan and hash", 1 / line.ratio) for line in lines
    ]
    write_results(arguments.json, "change_detection", rows, lines=[asdict(line) for line in lines])


def measure(kind: str, folder: Path, rows: int, runs: int, repeats: int, settings: Settings) -> Iterator[Line]:
    folder.mkdir()
    same, changed = build_sources(kind, folder, rows)
    store, empty = folder / "store", folder / "empty"
    apart(fill, same, store, settings)
    touched = len(range(0, rows, CHANGED_OF))
    cases = [
        Case("no-op", same, store, {"unchanged": rows, "to_embed": 0, "deleted": 0}),
        Case("1 % changed", changed, store, {"changed": touched, "unchanged": rows - touched, "to_embed": touched}),
        Case("full", same, empty, {"new": rows, "to_embed": rows}),
    ]
    for case in cases:
        yield compare(kind, case, repeats, settings)
    if runs:
        apart(commit_often, store, runs, rows)
        yield compare(kind, Case(f"after {runs:,} runs", same, store, cases[0].expected), repeats, settings)


def build_sources(kind: str, folder: Path, rows: int) -> tuple[Source, Source]:
    """The rows, and the same with 1 % of the texts changed. No two texts are equal."""
    selects = {
        "docs": f"SELECT i AS id, {TEXT} AS text FROM range({rows}) t(i)",
        "changed": f"SELECT i AS id, {TEXT} || CASE WHEN i % {CHANGED_OF} = 0 THEN '!' ELSE '' END AS text "
        f"FROM range({rows}) t(i)",
    }
    database = folder / "docs.duckdb"
    with connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        if kind == "duckdb":
            connection.execute(f"ATTACH {literal(database)} AS built")
        for name, select in selects.items():
            target = folder / f"{name}.parquet"
            build = f"CREATE TABLE built.{name} AS {select}"
            connection.execute(build if kind == "duckdb" else f"COPY ({select}) TO {literal(target)} (FORMAT parquet)")
    if kind == "duckdb":
        return DuckDBTable(database, "docs"), DuckDBTable(database, "changed")
    return ParquetTable(folder / "docs.parquet", name="docs"), ParquetTable(folder / "changed.parquet", name="docs")


def compare(kind: str, case: Case, repeats: int, settings: Settings) -> Line:
    """In turns, so that a change of the machine's pace meets both."""
    scans, detections = [], []
    for _ in range(repeats):
        scans.append(apart(scan, case.source, settings))
        detections.append(apart(detect, case, settings))
    seconds, scan_seconds = (statistics.median(cost.seconds for cost in costs) for costs in (detections, scans))
    cpu_seconds, scan_cpu = (statistics.median(cost.cpu_seconds for cost in costs) for costs in (detections, scans))
    return Line(
        kind,
        case.name,
        sum(case.expected.get(name, 0) for name in ("new", "changed", "unchanged")),
        apart(count_files, case.store),
        seconds,
        scan_seconds,
        seconds / scan_seconds,
        cpu_seconds / scan_cpu,
        max(cost.peak_mb for cost in detections),
        max(cost.peak_mb for cost in scans),
    )


def print_line(line: Line) -> None:
    print(
        f"{line.source:<9}{line.case:<16}{line.segments:>6}{line.seconds:>8.2f} s{line.scan_seconds:>8.2f} s"
        f"{line.ratio:>6.2f}x{line.cpu_ratio:>6.2f}x{line.peak_mb:>7,.0f} MB{line.scan_peak_mb:>5,.0f} MB",
        flush=True,
    )


# In processes of their own


def apart(function, *arguments):  # type: ignore[no-untyped-def]
    """What `function` returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def scan(source: Source, settings: Settings) -> Cost:
    start, cpu = time.perf_counter(), time.process_time()
    with (
        connect(memory_limit=settings.memory_limit, threads=settings.threads) as connection,
        attached(source, connection) as relation,
    ):
        connection.execute("SET enable_progress_bar = false")
        connection.execute(f"SELECT max(md5(text)) FROM {relation}").fetchall()
    return Cost(time.perf_counter() - start, time.process_time() - cpu, peak_mb())


def detect(case: Case, settings: Settings) -> Cost:
    with opened(case.store) as (store, generation), store.workspace("bench") as workspace:
        start, cpu = time.perf_counter(), time.process_time()
        found = detect_changes(case.source, Partition(), generation, workspace, **vars(settings))
        cost = Cost(time.perf_counter() - start, time.process_time() - cpu, peak_mb())
    different = {name: getattr(found, name) for name, rows in case.expected.items() if getattr(found, name) != rows}
    assert not different, f"{case.name}: found {different}, expected {case.expected}"
    return cost


def fill(source: Source, path: Path, settings: Settings) -> None:
    """Stores every row of the source, as a first materialization would, with made-up vectors."""
    with opened(path) as (store, generation), generation.locked("", "fill"), store.workspace("fill") as workspace:
        changes = detect_changes(source, Partition(), generation, workspace, **vars(settings))
        for batch in pq.ParquetFile(changes.changes_path).iter_batches(SEGMENT_ROWS):
            write(generation, pa.Table.from_batches([batch]))
        generation.compact_if_needed("", MAX_SEGMENTS)


def commit_often(path: Path, runs: int, rows: int) -> None:
    """Small commits, each ended as a run ends. They store what the source says, so that nothing is to be embedded."""
    with opened(path) as (_, generation), generation.locked("", "often"):
        wanted = min(rows, runs * COMMIT_ROWS)
        with connect() as connection:
            live = connection.sql(
                "SELECT id, content_hash, metadata_hash, sequence AS replaces "
                f"FROM ({generation.live_sql('')}) WHERE id::BIGINT < {wanted} ORDER BY id::BIGINT"
            ).to_arrow_table()
        for run in range(runs):
            start = run * COMMIT_ROWS % wanted
            batch = live.slice(start, COMMIT_ROWS)
            first = write(generation, batch)
            column = live["replaces"].to_numpy().copy()
            column[start : start + batch.num_rows] = range(first, first + batch.num_rows)
            live = live.set_column(3, "replaces", pa.array(column))
            generation.compact_if_needed("", MAX_SEGMENTS)


def write(generation: Generation, rows: pa.Table) -> int:
    """Commits the rows as upserts; the first one's sequence."""
    count = rows.num_rows
    flat = np.random.default_rng(0).random(count * DIMENSION, np.float32)
    added = {
        "op": pa.repeat("upsert", count),
        "tokens": pa.repeat(pa.scalar(70, pa.int32()), count),
        "truncated": pa.repeat(False, count),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(flat), DIMENSION),
    }
    kept = {name: rows[name] for name in ("id", "content_hash", "metadata_hash", "replaces")}
    return generation.write_segment("", pa.table(kept | added), "bench").first_sequence


def count_files(path: Path) -> int:
    with opened(path) as (_, generation):
        return len(generation.files())


class opened:  # noqa: N801  # a context manager, read as a word
    """The store at a path and its one generation."""

    def __init__(self, path: Path) -> None:
        self.store = VectorStore.open(path, collection="docs")

    def __enter__(self) -> tuple[VectorStore, Generation]:
        return self.store, self.store.generation(CARD, pa.schema([]))

    def __exit__(self, *_: object) -> None:
        self.store.close()


def peak_mb() -> float:
    """This process's own; getrusage would count what its parent had before it, where /proc knows better."""
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(peak) / 1e3
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


if __name__ == "__main__":
    main()
