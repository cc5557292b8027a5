"""10^5 to 10^7 rows through everything but a model: rows/s by stage, memory, files, and what a row costs at each size.

    .venv/bin/python bench/scale.py [--rows 100000,1000000,10000000] [--dimension 64] [--partitions 0] [--json FILE]

For each size a Parquet table of short texts (a twentieth of them repeat another), then step by step, each in a process
of its own (`scale_steps.py`): embed everything with a trivial engine and the real tokenizer; the same table again;
delivery to the embedded Longbow server, another process; a table with 1 % of its texts changed and 0.1 % of its rows
gone, delivered as it is embedded; compaction of everything; opening the store and counting; `fletcher status`; and,
with --redeliver, delivery of everything to a server that came back empty.
Seconds of the processor are those of the step's process and of the server's. Memory is the most that was private to
each (mapped files are the page cache's); files that a step had open and its working files are looked at five times a
second. A row's cost should not depend on the number of rows. With 10^7 rows: some 12 GB of disk and 3 GB of memory.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import duckdb
import pyarrow.parquet as pq
from results import JSON_OPTION, ROOT, Row, write_results

STAGES = ("diff", "read", "tokenize", "compute", "guard", "write", "send")
_LOOK_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
_WORDS = """order delivery late customer asks refund invoice the for with broken screen battery charger was sent twice
missing parcel damaged box changed address wrong size colour return label support answered after days price higher than
shown cancelled before payment failed card account locked password reset mail never arrived new update slow crash on
start when saving file lost settings language german french manual please help urgent thanks quick friendly service
excellent quality poor packaging works again contract renewal monthly plan"""


@dataclass
class Process:
    """The most that a process had while it was watched; bytes, and seconds of the processor."""

    private_bytes: int = 0
    resident_bytes: int = 0
    open_files: int = 0
    cpu_seconds: float = 0.0


@dataclass
class Step:
    """What one step took. `figures` are its own words, `work_bytes` the most that its working files took."""

    name: str
    rows: int
    wall_seconds: float
    figures: dict[str, Any]
    driver: Process
    server: Process
    work_bytes: int
    places: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Without the start of the process, where the step says so."""
        return float(self.figures.get("core_seconds", self.wall_seconds))

    @property
    def cpu_seconds(self) -> float:
        """Of the driver without its start, where it says so."""
        return float(self.figures.get("core_cpu_seconds", self.driver.cpu_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="100000,1000000", help="sizes, with commas between them")
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--partitions", type=int, default=0, help="hash buckets; 0: one partition")
    parser.add_argument("--memory-limit", default="2GB", help="of DuckDB while it finds changes")
    parser.add_argument("--redeliver", action="store_true", help="deliver everything once more, to an empty server")
    parser.add_argument("--no-longbow", dest="longbow", action="store_false", help="leave delivery out")
    parser.add_argument("--folder", type=Path, help="where tables and stores go; a temporary one by default")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    sizes = [int(float(size)) for size in options.rows.split(",")]
    runs: dict[str, list[dict[str, Any]]] = {}
    rows: list[Row] = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="fletcher-scale-", dir=options.folder) as folder:
            arguments = ["--dimension", str(options.dimension), "--partitions", str(options.partitions)]
            arguments += ["--memory-limit", options.memory_limit]
            steps = Run(Path(folder), size, arguments).all(longbow=options.longbow, redeliver=options.redeliver)
        runs[str(size)] = [asdict(step) | {"seconds": step.seconds, "cpu": step.cpu_seconds} for step in steps]
        rows += [Row(f"{step.name}, {size} rows", step.rows / step.seconds, "rows/s") for step in steps]
        show(size, steps)
        settings = {name: getattr(options, name) for name in ("dimension", "partitions", "memory_limit")}
        write_results(options.json, "scale", rows, settings=settings, runs=runs)


class Run:
    """All steps over a table of `rows` rows in `folder`; `arguments` are for each of them."""

    def __init__(self, folder: Path, rows: int, arguments: list[str]) -> None:
        self.folder, self.rows, self.arguments = folder, rows, arguments
        self.server: subprocess.Popen[str] | None = None
        self.address: dict[str, Any] = {}

    def all(self, *, longbow: bool, redeliver: bool) -> list[Step]:
        write_tables(self.folder, self.rows)
        few = self.rows // 100
        steps = [self.step("embed", self.rows), self.step("embed", self.rows, name="again")]
        with self.longbow("longbow") if longbow else contextlib.nullcontext():
            if longbow:
                steps.append(self.step("deliver", self.rows))
            steps.append(self.step("embed", few, name="few", table=2))
            steps.append(self.step("compact", self.rows))
            steps.append(self.step("embed", self.rows, name="again, compacted", table=2))
            steps.append(self.step("open", self.rows))
            status = [
                "-c",
                "import sys; from fletcher_core.cli import main; sys.exit(main())",
                "status",
                "--store",
                str(self.folder / "store"),
            ]
            steps.append(self.watched("status", self.rows, [*status, "--longbow", self.address.get("data", "")]))
        if redeliver:
            shutil.rmtree(self.folder / "longbow", ignore_errors=True)
            with self.longbow("longbow"):
                steps.append(self.step("deliver", self.rows, name="redeliver"))
        return steps

    def step(self, what: str, rows: int, *, name: str = "", table: int = 1) -> Step:
        command = [str(ROOT / "bench" / "scale_steps.py"), what, "--folder", str(self.folder), "--table", str(table)]
        command += self.arguments
        if self.server is not None and (what == "deliver" or table == 2):
            command += ["--longbow", self.address["data"], "--meta", self.address["meta"]]
        return self.watched(name or what, rows, command)

    def watched(self, name: str, rows: int, command: list[str]) -> Step:
        """Runs a step and looks at its process, at the server's and at the working files meanwhile."""
        began = time.perf_counter()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        watch = Watch(process.pid, self.server.pid if self.server else None, self.folder / "store" / "work")
        output = process.stdout.read() if process.stdout else ""
        watch.end()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{name} ended with status {process.returncode}: {output}")
        last = output.strip().splitlines()[-1]
        figures = json.loads(last) if last.startswith("{") else {}
        watch.driver.cpu_seconds = usage.ru_utime + usage.ru_stime
        step = Step(name, rows, wall, figures, watch.driver, watch.server, watch.work_bytes)
        step.places = places(self.folder)
        print(f"  {name}: {wall:.1f} s", file=sys.stderr, flush=True)
        return step

    @contextlib.contextmanager
    def longbow(self, folder: str) -> Iterator[None]:
        """The embedded server as a process of its own, always on the same port."""
        command = ["-m", "fletcher_core.longbow.server", "--data-path", str(self.folder / folder)]
        for port in ("data", "meta"):
            number = self.address.get(port, ":0").rpartition(":")[2]
            command += [f"--{port}-port", number]
        self.server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert self.server.stdout is not None
            self.address = json.loads(self.server.stdout.readline())
            yield
        finally:
            self.server.send_signal(signal.SIGTERM)
            self.server.wait()
            self.server = None


class Watch:
    """Looks at two processes and a folder until `end`."""

    def __init__(self, driver: int, server: int | None, work: Path) -> None:
        self.driver, self.server, self.work_bytes = Process(), Process(), 0
        self._pids, self._work = (driver, server), work
        self._before = cpu_seconds(server)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self.server.cpu_seconds = cpu_seconds(self._pids[1]) - self._before

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            for process, pid in zip((self.driver, self.server), self._pids, strict=True):
                if pid is not None:
                    with contextlib.suppress(OSError, KeyError):  # it has just ended
                        memory = memory_of(pid)
                        process.private_bytes = max(process.private_bytes, memory["RssAnon"])
                        process.resident_bytes = max(process.resident_bytes, memory["VmRSS"])
                        process.open_files = max(process.open_files, len(os.listdir(f"/proc/{pid}/fd")))
            self.work_bytes = max(self.work_bytes, folder_size(self._work)[0])


def memory_of(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = [line.split(":", 1) for line in lines if line.startswith(("RssAnon", "VmRSS"))]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process that runs."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def folder_size(folder: Path) -> tuple[int, int]:
    """Bytes and files below a folder, which others may be writing."""
    size = files = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(path, name)).st_size
                files += 1
    return size, files


def places(folder: Path) -> dict[str, float]:
    """Bytes, files and rows in each place below `folder`: the table, the store's parts, Longbow's."""
    store = folder / "store"
    found: dict[str, float] = {"source_bytes": (folder / "texts-1.parquet").stat().st_size}
    for name, paths in {
        "segment": list(store.glob("*/segments/**/*.parquet")),
        "ledger": list(store.glob("*/ledger/*.parquet")),
        "longbow": list((folder / "longbow" / "batches").glob("*")),
    }.items():
        found[f"{name}_bytes"] = sum(path.stat().st_size for path in paths)
        found[f"{name}_files"] = len(paths)
        found[f"largest_{name}_bytes"] = max((path.stat().st_size for path in paths), default=0)
    found["store_bytes"], found["store_files"] = folder_size(store)
    found["log_bytes"] = sum(path.stat().st_size for path in folder.glob("longbow/*.duckdb*"))
    found["manifest_bytes"] = sum(path.stat().st_size for path in store.glob("manifest.sqlite*"))
    with contextlib.closing(sqlite3.connect(store / "manifest.sqlite")) as manifest:
        for table in ("segments", "deliveries", "garbage"):
            (found[f"manifest_{table}"],) = manifest.execute(f"SELECT count(*) FROM {table}").fetchone()
        (found["next_sequence"],) = manifest.execute("SELECT next_sequence FROM counter").fetchone()
    found["vector_bytes"] = found["segment_rows"] = found["segment_footer_bytes"] = 0
    for path in store.glob("*/segments/**/*.parquet"):
        metadata = pq.read_metadata(path)
        found["segment_rows"] += metadata.num_rows
        found["segment_footer_bytes"] += metadata.serialized_size
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(metadata.num_columns)):
                if column.path_in_schema.startswith("vector"):
                    found["vector_bytes"] += column.total_compressed_size
    return found


def write_tables(folder: Path, rows: int) -> None:
    """`texts-1.parquet` and its successor `texts-2.parquet`: 1 % of the texts changed, 0.1 % of the rows gone."""
    phrases = ", ".join(f"'{phrase}'" for phrase in make_phrases())
    pick = "phrases[(hash(seed, {0}) % 512)::INT + 1]"
    text = f"concat_ws(' ', {', '.join(pick.format(n) for n in range(4))}, 'no.', seed)"
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = '4GB'; SET preserve_insertion_order = false")
        connection.execute(f"SET temp_directory = '{folder / 'spill'}'")
        connection.execute(
            f"COPY (SELECT concat('doc', lpad(i::VARCHAR, 9, '0'), '-', substr(md5(i::VARCHAR), 1, 6)) AS id, "
            f"{text} AS text FROM (SELECT i, [{phrases}] AS phrases, CASE WHEN hash(i) % 20 = 0 "
            f"THEN hash(i, 1) % {rows} ELSE i END AS seed FROM range({rows}) AS numbers(i))) "
            f"TO '{folder / 'texts-1.parquet'}' (FORMAT parquet)"
        )
        connection.execute(
            f"COPY (SELECT id, CASE WHEN hash(id, 2) % 100 = 0 THEN text || ' (revised)' ELSE text END AS text "
            f"FROM '{folder / 'texts-1.parquet'}' WHERE hash(id, 3) % 1000 <> 0) "
            f"TO '{folder / 'texts-2.parquet'}' (FORMAT parquet)"
        )


def make_phrases() -> list[str]:
    """512 different phrases of about 18 letters."""
    random, phrases = Random(11), set[str]()
    while len(phrases) < 512:
        phrases.add(" ".join(random.choices(_WORDS.split(), k=3)))
    return sorted(phrases)


def show(size: int, steps: list[Step]) -> None:
    """A table for people."""
    print(f"\n{size:,} rows")
    print(
        f"{'step':<18}{'rows/s':>10}{'us/row':>8}{'cpu us':>8}{'server':>8}"
        f"{'private':>9}{'server':>8}{'work':>8}{'files':>7}{'open':>6}"
    )
    for step in steps:
        each = 1e6 / max(step.rows, 1)
        print(
            f"{step.name:<18}{step.rows / step.seconds:>10,.0f}{step.seconds * each:>8.2f}"
            f"{step.cpu_seconds * each:>8.2f}{step.server.cpu_seconds * each:>8.2f}"
            f"{step.driver.private_bytes / 2**20:>8,.0f}M"
            f"{step.server.private_bytes / 2**20:>7,.0f}M{step.work_bytes / 2**20:>7,.0f}M"
            f"{step.places['segment_files']:>7,.0f}{step.driver.open_files:>6}"
        )
    for step in steps:
        if stages := step.figures.get("stages"):
            rates = ", ".join(f"{stage} {stages[stage] * 1e6 / max(step.rows, 1):.2f}" for stage in STAGES)
            print(f"  {step.name}: us/row busy: {rates}")
    last = steps[-1].places
    print("  " + ", ".join(f"{name} {value:,.0f}" for name, value in last.items()), flush=True)


if __name__ == "__main__":
    main()
