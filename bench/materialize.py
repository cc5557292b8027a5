"""A whole materialization against the engine alone: how much of the engine's rate reaches the vector store.

    .venv/bin/python bench/materialize.py [--rows 20000] [--rounds 2]

The engine runs the table's texts already tokenized and sorted. `materialize` reads them from DuckDB, detects changes,
tokenizes, embeds, commits segments and streams them to the embedded Longbow server (a process of its own on the same
cores). Then a run over the unchanged table, and one after 1 % of its texts changed: what that costs beyond no change,
in times of embedding these texts alone. Rounds alternate; the best of each counts.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import duckdb
import pyarrow as pa
from results import JSON_OPTION, Row, write_results
from texts import mixed_texts

from fletcher_core import Embedder
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.embedded import ensure_embedded, stop_embedded
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import VectorStore
from fletcher_core.telemetry import RunReport


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", **JSON_OPTION)
    options = parser.parse_args()
    texts = mixed_texts(options.rows)
    embedder = Embedder.load()
    folder = Path(tempfile.mkdtemp(prefix="fletcher-bench-"))
    try:
        source = build_table(folder / "texts.duckdb", texts)
        alone, whole, of_embedding = float("inf"), float("inf"), float("inf")
        for n in range(options.rounds):
            alone = min(alone, engine_seconds(embedder, texts))
            report, seconds = timed_run(source, embedder, folder / f"store-{n}", folder / f"longbow-{n}")
            if seconds < whole:
                whole, best = seconds, report
            idle, idle_seconds = timed_run(source, embedder, folder / f"store-{n}", folder / f"longbow-{n}")
            few = change_some(source, n)
            changed, changed_seconds = timed_run(source, embedder, folder / f"store-{n}", folder / f"longbow-{n}")
            assert (changed.changed, changed.embedded) == (len(few), len(few))
            started = time.perf_counter()
            embedder.embed(few)
            of_embedding = min(of_embedding, (changed_seconds - idle_seconds) / (time.perf_counter() - started))
            stop_embedded(folder / f"longbow-{n}")
        print(f"{embedder.engine.device}, {embedder.engine.precision}; {options.rows} rows, {best.tokens} tokens")
        print(f"  engine alone, tokenized and sorted  {options.rows / alone:8.1f} texts/s  {alone:6.2f} s")
        print(f"  materialize(), to the last commit   {best.texts_per_s:8.1f} texts/s  {best.seconds_total:6.2f} s")
        print(f"  materialize(), all searchable       {options.rows / whole:8.1f} texts/s  {whole:6.2f} s")
        print(f"  => materialization / engine: {alone / best.seconds_total:.3f} ({alone / whole:.3f} with delivery)")
        print(f"  stages, seconds busy: {best.seconds}; padding {best.padding_share:.3f}")
        print(f"  unchanged table again: {idle_seconds:.2f} s, {idle.embedded} embedded, {idle.unchanged} unchanged")
        print(f"  1 % of it changed: {changed_seconds:.2f} s, beyond no change {of_embedding:.2f}x of embedding alone")
        print(f"  delivered: {best.delivery}")
        rate = options.rows / alone
        rows = [
            Row("engine alone, tokenized and sorted", rate, "texts/s"),
            Row("to the last commit", best.texts_per_s, "texts/s", roof=best.texts_per_s / rate),
            Row("all searchable", options.rows / whole, "texts/s", roof=alone / whole),
            Row("unchanged table again", idle_seconds, "s"),
            Row(
                "1 % changed, beyond no change", of_embedding, "of embedding", peer="embedding the changed texts alone"
            ),
        ]
        write_results(options.json, "materialize", rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_table(path: Path, texts: list[str]) -> DuckDBTable:
    rows = pa.table({"id": range(len(texts)), "text": texts})  # noqa: F841 - DuckDB reads it by its name
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE texts AS SELECT * FROM rows")
    return DuckDBTable(path, "texts")


def change_some(source: DuckDBTable, number: int) -> list[str]:
    """Gives every hundredth row another text; these texts."""
    with duckdb.connect(str(source.database)) as connection:
        connection.execute(f"UPDATE texts SET text = text || ' ({number})' WHERE id % 100 = {number}")
        rows = connection.execute(f"SELECT text FROM texts WHERE id % 100 = {number}").fetchall()
    return [text for (text,) in rows]


def engine_seconds(embedder: Embedder, texts: list[str]) -> float:
    sequences = embedder.encoder.encode(texts).sequences
    plan = embedder.engine.batching.plan(sequences.lengths)
    start = time.perf_counter()
    for _ in embedder.engine.run(sequences.take(rows) for rows in plan):
        pass
    return time.perf_counter() - start


def timed_run(source: DuckDBTable, embedder: Embedder, store: Path, longbow: Path) -> tuple[RunReport, float]:
    address = ensure_embedded(longbow)
    client = LongbowClient(LongbowSettings(address.data, address.meta))
    start = time.perf_counter()
    report = materialize(source, embedder=embedder, store=VectorStore.open(store, collection="bench"), longbow=client)
    return report, time.perf_counter() - start


if __name__ == "__main__":
    main()
